//! The blocking half of the [`Registry`](super::registry::Registry): checks files, and changes disk and book in the order that
//! leaves nothing half done. Whatever changes a name holds the ledger from its first look to its last.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use shoal_common::adapter::Geometry;
use shoal_common::ids::{Generation, Name};
use shoal_common::wire::hello::AdapterOrder;
use tempfile::NamedTempFile;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::Workers;
use super::base::{self, NoBase};
use super::book::{Book, BookError};
use super::disk::{Ledger, Store};
use super::entry::{Listing, Origin, Source, Version};
use super::error::RegisterError;
use super::intake::Payload;
use super::record::Record;
use super::registry::Settings;
use super::shelf::Lease;
use crate::catalogue::Catalogue;

/// Who wants a name to point at what.
#[derive(Clone, Debug)]
pub struct Order {
    /// The name.
    pub name: Name,
    /// Where the files come from.
    pub origin: Origin,
    /// The base model, if it was said.
    pub base: Option<Name>,
}

/// What all references to a registry share.
pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) ledger: Arc<tokio::sync::Mutex<Ledger>>,
    pub(super) book: Mutex<Book>,
    /// Adapters that are read and checked at once.
    pub(super) intakes: Arc<Semaphore>,
    /// Places for uploads.
    pub(super) uploads: Arc<Semaphore>,
    pub(super) catalogue: Arc<dyn Catalogue>,
    pub(super) workers: OnceLock<Arc<dyn Workers>>,
    pub(super) settings: Settings,
}

/// An adapter that passed the check.
pub(super) struct Checked {
    version: Version,
    bytes: Bytes,
}

/// Where a checked adapter's bytes are.
enum Bytes {
    /// In a file of their own.
    Fresh(NamedTempFile),
    /// On the shelf already.
    Kept(#[expect(dead_code, reason = "keeps them until the name points there")] Lease),
}

impl Inner {
    /// The book; the lock is never held over I/O.
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing panics halfway through a change of the book.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The widths of a model that has been seen.
    pub(super) fn widths(&self, base: &Name) -> Option<Geometry> {
        self.catalogue.model(base).map(|model| model.card.geometry)
    }

    /// Passes an order to the workers of `base`.
    pub(super) fn order(&self, base: &Name, order: AdapterOrder) {
        if let Some(workers) = self.workers.get() {
            workers.order(base, order);
        }
    }

    /// An adapter's name is no model's.
    pub(super) fn not_a_model(&self, name: &Name) -> Result<(), RegisterError> {
        let taken = self.settings.models.contains(name) || self.catalogue.model(name).is_some();
        if taken { Err(RegisterError::NameOfModel) } else { Ok(()) }
    }

    /// Whether `order` has a chance, as far as that can be told without its files.
    pub(super) fn may(&self, order: &Order) -> Result<(), RegisterError> {
        self.not_a_model(&order.name)?;
        self.book().claim(&order.name, order.origin.source)?;
        match &order.base {
            Some(base) => self.geometry(base).map(drop),
            None if self.models().is_empty() => Err(NoBase::NoModels.into()),
            None => Ok(()),
        }
    }

    /// The models that are configured or have been seen.
    fn models(&self) -> BTreeSet<Name> {
        let seen = self.catalogue.models();
        seen.iter().map(|model| model.card.name.clone()).chain(self.settings.models.iter().cloned()).collect()
    }

    /// The widths that an adapter of `base` must have.
    fn geometry(&self, base: &Name) -> Result<Geometry, RegisterError> {
        self.widths(base).ok_or_else(|| {
            let models = self.models();
            if models.is_empty() || models.contains(base) {
                RegisterError::Waiting { base: base.clone() }
            } else {
                RegisterError::UnknownBase { base: base.clone() }
            }
        })
    }

    /// Reads and checks an adapter's files, and stores its bytes in a file of their own if they are new.
    pub(super) fn check(&self, order: &Order, payload: Payload) -> Result<Checked, RegisterError> {
        let files = payload.read(self.settings.adapter_bytes)?;
        let made_for = base::made_for(&files.config);
        let base = base::choose(order.base.as_ref(), made_for.as_deref(), &self.models())?;
        let geometry = self.geometry(&base)?;
        let facts = files.check(&geometry)?;
        let kept = self.book().shelf().lease(facts.generation);
        let bytes = match kept {
            Some((lease, _)) => Bytes::Kept(lease),
            None => Bytes::Fresh(self.store.write(&files.bundle()).map_err(RegisterError::Storage)?),
        };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (generation, rank, length) = (facts.generation, facts.rank, facts.bytes);
        Ok(Checked { version: Version { generation, base, geometry, rank, bytes: length, created }, bytes })
    }

    /// Makes a checked adapter durable, then visible.
    pub(super) fn commit(
        &self,
        mut ledger: OwnedMutexGuard<Ledger>,
        order: Order,
        checked: Checked,
    ) -> Result<Listing, RegisterError> {
        let Order { name, origin, .. } = order;
        self.book().claim(&name, origin.source)?;
        let (version, previous) = self.book().succession(&name, checked.version);
        self.place(checked.bytes, version.generation)?;
        if let Err(error) = ledger.put(Record::new(&name, &origin, &version, previous)) {
            self.displace(version.generation);
            return Err(RegisterError::Storage(error));
        }
        let (source, pinned) = (origin.source, self.book().pinned());
        tracing::info!(adapter = %name, base = %version.base, generation = %version.generation, rank = version.rank,
            source = source.as_str(), "adapter registered");
        self.book().point(&name, origin, version, previous);
        self.order_pins(&pinned);
        self.book().listing(&name, &|base| self.widths(base)).ok_or(RegisterError::Crashed)
    }

    /// Makes sure that a generation's bytes are at their place. Nothing is deleted while the ledger is held.
    fn place(&self, bytes: Bytes, generation: Generation) -> Result<(), RegisterError> {
        match bytes {
            Bytes::Fresh(file) => self.store.settle(file, generation).map_err(RegisterError::Storage),
            Bytes::Kept(_) if self.book().shelf().lease(generation).is_some() => Ok(()),
            // It was found damaged between the check and now.
            Bytes::Kept(_) => Err(RegisterError::Storage(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// Takes back what [`place`](Inner::place) did, unless it is needed otherwise.
    fn displace(&self, generation: Generation) {
        if self.book().shelf().lease(generation).is_none() {
            // What cannot be removed now is removed at the next start.
            let _ = self.store.remove(generation);
        }
    }

    /// Removes a name, durably first.
    pub(super) fn remove(
        &self,
        mut ledger: OwnedMutexGuard<Ledger>,
        name: &Name,
        source: Source,
    ) -> Result<(), RegisterError> {
        match self.book().owner(name) {
            None => return Err(BookError::Unknown.into()),
            Some(by) if by != source => return Err(BookError::Owned { by }.into()),
            Some(_) => {}
        }
        ledger.remove(name).map_err(RegisterError::Storage)?;
        let pinned = self.book().pinned();
        self.book().remove(name, source)?;
        self.order_pins(&pinned);
        tracing::info!(adapter = %name, source = source.as_str(), "adapter removed");
        Ok(())
    }

    /// Tells workers how the pins differ from what they were.
    pub(super) fn order_pins(&self, before: &BTreeSet<(Name, Generation)>) {
        let now = self.book().pinned();
        for (base, generation) in now.difference(before) {
            self.order(base, AdapterOrder::Pin(*generation));
        }
        for (base, generation) in before.difference(&now) {
            self.order(base, AdapterOrder::Unpin(*generation));
        }
    }

    /// Deletes what nothing needs any more.
    pub(super) fn sweep(&self, _ledger: OwnedMutexGuard<Ledger>, now: Instant) {
        let retired = self.book().sweep(now);
        for retired in retired {
            if let Err(error) = self.store.remove(retired.generation) {
                tracing::warn!(%error, generation = %retired.generation, "a replaced adapter could not be deleted");
            }
            for base in &retired.bases {
                self.order(base, AdapterOrder::Forget(retired.generation));
            }
        }
    }

    /// Lets go of a generation whose bytes are not what they should be; returns its names.
    pub(super) fn verify(&self, _ledger: OwnedMutexGuard<Ledger>, generation: Generation) -> Vec<Name> {
        let is_kept = self.book().shelf().lease(generation).is_some();
        if !is_kept || self.store.verify(generation).is_ok_and(|whole| whole) {
            return Vec::new();
        }
        let lost = self.book().lost(generation, "its stored copy is damaged; register it again");
        tracing::error!(%generation, names = ?lost.iter().map(Name::as_str).collect::<Vec<_>>(), "a stored adapter is damaged");
        // It is of no use, and what cannot be removed is overwritten when the adapter comes again.
        let _ = self.store.remove(generation);
        lost
    }
}
