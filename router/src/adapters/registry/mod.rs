//! The adapters of this router: the [`book`](super::book) that requests read, the [`disk`](super::disk) that survives, and the
//! order in which the two change. A change is checked first, then durable, then visible; whoever asks for it may leave in the
//! middle without harm. Called by HTTP, by the watcher and by the links, which serve blobs from it.
//!
//! Bounded: one adapter is read and checked at a time, further ones wait for it; one change of the ledger at a time.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use shoal_common::ambient;
use shoal_common::config::Pinning;
use shoal_common::ids::{Digest, Generation, Name};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::allow::Allowed;
use super::book::{Book, Found};
use super::change::{Inner, Order};
use super::disk::{DiskError, Restored, Store};
use super::entry::{Listing, Origin, Source, State, Trouble};
use super::error::RegisterError;
use super::intake::{Payload, check_stored};
use super::shelf::Lease;
use super::spool::{Spool, SpoolError, UPLOADS};
use super::stamp::Stamp;
use super::{WorkerAdapter, Workers};
use crate::catalogue::Catalogue;

/// How long a replaced adapter outlives its last request here. A worker fetches what it was told of within seconds.
const GRACE: Duration = Duration::from_secs(60);

/// What a registry is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `router.data_dir`
    pub data_dir: PathBuf,
    /// `limits.adapters`
    pub adapters: usize,
    /// `limits.adapter_bytes`
    pub adapter_bytes: u64,
    /// The models that the configuration names, which no adapter may be called like.
    pub models: BTreeSet<Name>,
    /// Which directories requests may name.
    pub allowed: Allowed,
}

/// A generation's bytes, and what keeps them.
#[derive(Debug)]
pub struct Blob {
    /// Where they are.
    pub path: PathBuf,
    /// How many.
    pub bytes: u64,
    /// Keeps them.
    pub lease: Lease,
}

/// The adapters. Cheap to clone: a clone is a reference.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

impl Registry {
    /// Opens the adapters of an earlier life; `catalogue` says which models are there. Blocks on the disk.
    ///
    /// # Errors
    /// Where the directory cannot be used. What is damaged in it is no error.
    pub fn open(settings: Settings, catalogue: Arc<dyn Catalogue>) -> Result<Self, DiskError> {
        let (store, ledger, restored) = Store::open(&settings.data_dir)?;
        let mut book = Book::new(settings.adapters, GRACE);
        for Restored { record, damage } in restored {
            if let Some(reason) = damage {
                tracing::error!(adapter = %record.name, generation = %record.generation, reason, "an adapter was lost");
            }
            let origin = Origin { source: record.source, pinning: Pinning::Evictable, stamp: record.stamp.clone() };
            let known = damage.map_or_else(|| Ok(record.version()), |reason| Err(reason.to_owned()));
            book.restore(record.name.clone(), origin, record.previous, known);
        }
        Ok(Self(Arc::new(Inner {
            store,
            ledger: Arc::new(tokio::sync::Mutex::new(ledger)),
            book: Mutex::new(book),
            intakes: Arc::new(Semaphore::new(1)),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            catalogue,
            workers: OnceLock::new(),
            settings,
        })))
    }

    /// Says who the workers are. Before that there are none to be ordered; a second time changes nothing.
    pub fn connect(&self, workers: Arc<dyn Workers>) {
        if self.0.workers.set(workers).is_ok() {
            self.0.order_pins(&BTreeSet::new());
        }
    }

    /// Where a generation is on workers.
    pub fn residency(&self, generation: Generation) -> Vec<WorkerAdapter> {
        self.0.workers.get().map(|workers| workers.residency(generation)).unwrap_or_default()
    }

    /// What `name` means to a request that comes now.
    pub fn find(&self, name: &Name) -> Found {
        self.0.book().find(name, &|base| self.0.widths(base))
    }

    /// The base model of an adapter, whatever its state.
    pub fn base_of(&self, name: &Name) -> Option<Name> {
        self.0.book().base_of(name)
    }

    /// All adapters, by name.
    pub fn list(&self) -> Vec<Listing> {
        self.0.book().list(&|base| self.0.widths(base))
    }

    /// One adapter.
    pub fn listing(&self, name: &Name) -> Option<Listing> {
        self.0.book().listing(name, &|base| self.0.widths(base))
    }

    /// Adapters by state.
    pub fn counts(&self) -> [(State, usize); 3] {
        let list = self.list();
        State::ALL.map(|state| (state, list.iter().filter(|listing| listing.state == state).count()))
    }

    /// The content with this digest, if it is an adapter's that is here.
    pub fn blob(&self, digest: Digest) -> Option<Blob> {
        let generation = Generation(digest);
        let (lease, bytes) = self.0.book().shelf().lease(generation)?;
        Some(Blob { path: self.0.store.blob(generation), bytes, lease })
    }

    /// A file for an upload that is on its way. Blocks on the disk.
    pub fn spool(&self) -> Result<Spool, SpoolError> {
        let place = Arc::clone(&self.0.uploads).try_acquire_owned().map_err(|_| SpoolError::Busy)?;
        Ok(Spool::new(self.0.store.spool()?, place))
    }

    /// Which directories requests may name.
    pub fn allowed(&self) -> &Allowed {
        &self.0.settings.allowed
    }

    /// `limits.adapter_bytes`
    pub fn adapter_bytes(&self) -> u64 {
        self.0.settings.adapter_bytes
    }

    /// The names that `source` registered.
    pub fn names_of(&self, source: Source) -> Vec<Name> {
        self.0.book().names_of(source)
    }

    /// Who has this name.
    pub fn owner(&self, name: &Name) -> Option<Source> {
        self.0.book().owner(name)
    }

    /// What the files of `name` looked like when what it points at was read from them.
    pub fn stamp(&self, name: &Name, source: Source) -> Option<Stamp> {
        self.0.book().stamp(name, source).cloned()
    }

    /// Notes files that nobody has looked at yet, so that their name is not unknown meanwhile.
    pub fn announce(&self, order: &Order) -> Result<(), RegisterError> {
        self.0.not_a_model(&order.name)?;
        let pinned = self.0.book().pinned();
        self.0.book().announce(&order.name, &order.origin, order.base.clone())?;
        self.0.order_pins(&pinned);
        Ok(())
    }

    /// Notes why files are not used.
    pub fn note(&self, order: &Order, error: &RegisterError) {
        let reason = error.to_string();
        let trouble = if error.will_pass() { Trouble::Waiting(reason) } else { Trouble::Refused(reason) };
        self.0.book().fail(&order.name, &order.origin, order.base.clone(), trouble);
    }

    /// Whether `order` has a chance, before its files are looked at.
    pub fn may(&self, order: &Order) -> Result<(), RegisterError> {
        self.0.may(order)
    }

    /// Checks an adapter and points its name at it.
    pub async fn register(&self, order: Order, payload: Payload) -> Result<Listing, RegisterError> {
        self.may(&order)?;
        let permit = self.intake().await?;
        let (inner, asked) = (Arc::clone(&self.0), order.clone());
        let check = move || {
            let _permit = permit;
            inner.check(&asked, payload)
        };
        let checked = ambient::off_runtime(check).await.map_err(|_| RegisterError::Crashed)??;
        let (inner, ledger) = (Arc::clone(&self.0), Arc::clone(&self.0.ledger).lock_owned().await);
        let commit = move || inner.commit(ledger, order, checked);
        ambient::off_runtime(commit).await.map_err(|_| RegisterError::Crashed)?
    }

    /// Removes a name that `source` registered.
    pub async fn remove(&self, name: Name, source: Source) -> Result<(), RegisterError> {
        let (inner, ledger) = (Arc::clone(&self.0), Arc::clone(&self.0.ledger).lock_owned().await);
        ambient::off_runtime(move || inner.remove(ledger, &name, source)).await.map_err(|_| RegisterError::Crashed)?
    }

    /// Deletes what nobody has needed for a while, here and on the workers.
    pub async fn sweep(&self, now: Instant) {
        let (inner, ledger) = (Arc::clone(&self.0), Arc::clone(&self.0.ledger).lock_owned().await);
        // A sweep that fails is made up for by the next.
        let _ = ambient::off_runtime(move || inner.sweep(ledger, now)).await;
    }

    /// Reads every stored adapter once, and lets go of those that are not what they should be. Returns their names.
    pub async fn verify(&self) -> Vec<Name> {
        let generations = self.0.book().shelf().generations();
        let mut lost = Vec::new();
        for generation in generations {
            let (inner, ledger) = (Arc::clone(&self.0), Arc::clone(&self.0.ledger).lock_owned().await);
            lost.extend(ambient::off_runtime(move || inner.verify(ledger, generation)).await.unwrap_or_default());
        }
        lost
    }

    /// Holds the adapters whose base model has new widths against these.
    pub async fn recheck(&self) {
        let stale = self.0.book().stale(&|base| self.0.widths(base));
        for (name, version, now) in stale {
            let Ok(permit) = self.intake().await else { return };
            let inner = Arc::clone(&self.0);
            let check = move || {
                let _permit = permit;
                let fits = check_stored(&inner.store.blob(version.generation), &now);
                let fits = fits.map_err(|error| error.to_string());
                inner.book().held_against(&name, version.generation, now, fits);
            };
            let _ = ambient::off_runtime(check).await;
        }
    }

    async fn intake(&self) -> Result<OwnedSemaphorePermit, RegisterError> {
        Arc::clone(&self.0.intakes).acquire_owned().await.map_err(|_| RegisterError::Crashed)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
