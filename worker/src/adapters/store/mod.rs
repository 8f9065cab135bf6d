//! Who is where, and how it gets there: the worker's one store of adapters. Sessions ask it for a group's adapter, pass the
//! router's orders on to it and tell the router its news; what it decides is decided by the `book`.
//!
//! Each load is one `flight`, however many wait for it: from a router to disk (`fetch`), from disk into
//! memory on a blocking thread. Nothing here ever runs on the engine's thread.

mod desk;
mod flight;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use shoal_common::ambient;
use shoal_common::ids::Generation;
use shoal_common::telemetry::Chain;
use shoal_common::wire::hello::{AdapterOrder, AdapterState};
use tokio::sync::{Notify, Semaphore, watch};

use self::desk::{Answer, Desk, SourceId};
use super::book::{For, LetGo, Limits, Told, WaiterId};
use super::disk::{Disk, Quota};
use super::elsewhere::{Elsewhere, Hold};
use super::error::{AcquireError, Unavailable};
use super::fetch::Source;
use super::lease::Lease;
use super::loader::Loader;
use super::{Adapter, book};

/// How long a group waits for its adapter at most, its own deadline aside; an order is carried out as patiently.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Bundles read, checked and packed at once. Each takes a core and the memory of its bundle beside the limits.
const LOADING: usize = 2;

/// What a store is made of.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// What it may hold.
    pub limits: Limits,
    /// Where its files are, made when the first one comes. No other worker may use it.
    pub directory: PathBuf,
}

/// The handle. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdapterStore(Arc<Inner>);

/// What flights and handles share. Bounds: the book's; waiters are bounded by the groups of the sessions.
#[derive(Debug)]
struct Inner {
    desk: Mutex<Desk>,
    disk: Disk,
    loader: Arc<dyn Loader>,
    loading: Semaphore,
    /// Who else must have an adapter.
    elsewhere: OnceLock<Arc<dyn Elsewhere>>,
    /// Something was given back or decided: who waits for room looks again.
    moved: Arc<Notify>,
    /// The book's count of changes.
    changes: watch::Sender<u64>,
}

impl AdapterStore {
    /// A store with what is on disk from an earlier life. A directory that cannot be read is as good as empty: its worker
    /// serves the base model all the same.
    pub async fn open(settings: StoreSettings, loader: Arc<dyn Loader>) -> Self {
        let disk = Disk::new(settings.directory, Quota::default());
        Self::over(settings.limits, disk, loader).await
    }

    async fn over(limits: Limits, disk: Disk, loader: Arc<dyn Loader>) -> Self {
        let inner = Inner {
            desk: Mutex::new(Desk::new(limits)),
            disk,
            loader,
            loading: Semaphore::new(LOADING),
            elsewhere: OnceLock::new(),
            moved: Arc::default(),
            changes: watch::Sender::new(0),
        };
        let store = Self(Arc::new(inner));
        let inner = store.0.clone();
        match ambient::off_runtime(move || inner.find_files()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "the adapters on disk cannot be listed"),
            Err(panic) => tracing::error!(error = %Chain(&panic), "the adapters on disk cannot be listed"),
        }
        store
    }

    /// The way in for the session whose router is `source`.
    pub fn via(&self, source: Arc<dyn Source>) -> Via {
        Via { store: self.clone(), id: self.0.with(Desk::next_source), source }
    }

    /// From now on an adapter is ready only where these have it too. Said once, before anything is asked for.
    pub fn require(&self, elsewhere: Arc<dyn Elsewhere>) {
        if self.0.elsewhere.set(elsewhere).is_err() {
            tracing::error!("adapters are required elsewhere twice; the first stays");
        }
    }

    /// The file of an adapter and its length, for somebody else who lacks it. Blocks for as long as it takes to open it.
    pub fn file(&self, generation: Generation) -> Option<(u64, File)> {
        let book::File::Here(bytes) = self.0.with(|desk| desk.book.file(generation)) else { return None };
        match self.0.disk.open(generation, bytes) {
            Ok(file) => Some((bytes, file)),
            Err(error) => {
                tracing::warn!(adapter = %generation.0.short(), error = %Chain(&error), "an adapter file cannot be sent");
                None
            }
        }
    }

    /// Groups that wait for their adapter.
    pub fn waiting(&self) -> u32 {
        u32::try_from(self.0.with(|desk| desk.waiting())).unwrap_or(u32::MAX)
    }

    /// What a router that was told nothing yet is to be told.
    pub fn news(&self) -> News {
        let mut changes = self.0.changes.subscribe();
        changes.mark_changed();
        News { store: self.clone(), told: Told::default(), changes }
    }
}

/// The store as one session sees it: adapters come from its router first, and from the others where that fails.
#[derive(Debug)]
pub struct Via {
    store: AdapterStore,
    id: SourceId,
    source: Arc<dyn Source>,
}

impl Via {
    /// The router may be asked from now on, for other routers' groups too, until this is dropped.
    pub fn offer(&self) {
        self.store.0.with(|desk| desk.offer(self.id, self.source.clone()));
    }

    /// The adapter, as soon as it is in memory, and everywhere else where it must be: at once, or when the one load that is under
    /// way is over. A caller that goes away leaves nothing behind, and the load goes on.
    ///
    /// # Errors
    /// It cannot be used, or it cannot be had within [`PATIENCE`] and within `deadline`.
    pub async fn acquire(&self, generation: Generation, deadline: Option<Duration>) -> Result<Lease, AcquireError> {
        let now = ambient::now();
        let until = now + deadline.unwrap_or(PATIENCE).min(PATIENCE);
        let lease = self.acquire_here(generation, until, now).await?;
        let held = self.store.0.hold_elsewhere(generation, until.saturating_duration_since(ambient::now())).await?;
        Ok(match held {
            None => lease,
            Some(held) => lease.with(held),
        })
    }

    async fn acquire_here(&self, generation: Generation, until: Instant, now: Instant) -> Result<Lease, AcquireError> {
        let inner = &self.store.0;
        let (waiter, outcome) = match inner.with(|desk| desk.ask(generation, until, now, &inner.moved)) {
            Answer::Ready(lease) => return Ok(lease),
            Answer::Refused(error) => return Err(error),
            Answer::Joined(waiter, outcome) => (waiter, outcome),
            Answer::Begun(waiter, outcome) => {
                flight::begin(inner.clone(), generation, self.id);
                (waiter, outcome)
            }
        };
        let _place = Place { inner, generation, waiter };
        match tokio::time::timeout_at(until.into(), outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_unanswered)) => Err(Unavailable::Aborted.into()),
            Err(_elapsed) => Err(Unavailable::Late.into()),
        }
    }

    /// Does what the router orders; what takes time happens later and is told as news.
    pub fn order(&self, order: AdapterOrder) {
        let inner = &self.store.0;
        match order {
            AdapterOrder::Load(generation) => self.have_ready(generation),
            AdapterOrder::Pin(generation) => {
                self.have_ready(generation);
                inner.with(|desk| desk.book.pin(generation));
            }
            AdapterOrder::Unpin(generation) => inner.with(|desk| desk.book.unpin(generation)),
            AdapterOrder::Forget(generation) => {
                if inner.with(|desk| desk.forget(generation)) == desk::Parting::Begins {
                    tokio::spawn(let_go(inner.clone(), generation));
                }
            }
        }
    }

    fn have_ready(&self, generation: Generation) {
        let inner = &self.store.0;
        let now = ambient::now();
        let asked = inner.with(|desk| {
            let asked = desk.book.ask(generation, For::Order, now + PATIENCE, now);
            desk.book.want(generation);
            asked
        });
        match asked {
            book::Asked::Begun(_) => flight::begin(inner.clone(), generation, self.id),
            book::Asked::Refused(error) => {
                tracing::info!(adapter = %generation.0.short(), reason = %error, "an adapter is not loaded as ordered");
            }
            book::Asked::Ready | book::Asked::Joined(_) => {}
        }
    }

    /// The store behind it.
    pub fn store(&self) -> &AdapterStore {
        &self.store
    }
}

impl Drop for Via {
    fn drop(&mut self) {
        self.store.0.with(|desk| desk.withdraw(self.id));
    }
}

/// A waiter's place, given up on drop.
struct Place<'a> {
    inner: &'a Inner,
    generation: Generation,
    waiter: WaiterId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.inner.with(|desk| desk.leave(self.generation, self.waiter));
    }
}

/// What a router has yet to be told. Bound: one state for each adapter, however long it does not listen.
#[derive(Debug)]
pub struct News {
    store: AdapterStore,
    told: Told,
    changes: watch::Receiver<u64>,
}

impl News {
    /// The states that have changed since the last call; all of them at the first.
    pub fn take(&mut self) -> Vec<AdapterState> {
        if !self.changes.has_changed().unwrap_or(false) {
            return Vec::new();
        }
        self.changes.mark_unchanged();
        self.store.0.with(|desk| desk.book.news(&mut self.told, ambient::now()))
    }
}

impl Inner {
    /// Looks into the books, and wakes who waits for what has changed there. Never held for longer than a few microseconds
    /// for each adapter.
    fn with<T>(&self, look: impl FnOnce(&mut Desk) -> T) -> T {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let result = look(&mut desk);
        let now = desk.book.changes();
        if self.changes.send_if_modified(|before| std::mem::replace(before, now) != now) {
            self.moved.notify_waiters();
        }
        result
    }

    /// Has everybody else hold the adapter who must have it.
    async fn hold_elsewhere(&self, generation: Generation, within: Duration) -> Result<Option<Hold>, AcquireError> {
        match self.elsewhere.get() {
            None => Ok(None),
            Some(elsewhere) => elsewhere.hold(generation, within).await.map(Some),
        }
    }

    fn find_files(&self) -> io::Result<()> {
        let found = self.disk.scan()?;
        let leaving: Vec<_> =
            self.with(|desk| found.iter().flat_map(|file| desk.book.found(file.generation, file.bytes)).collect());
        tracing::debug!(found = found.len(), dropped = leaving.len(), "adapters on disk");
        self.delete_here(&leaving);
        Ok(())
    }

    /// Deletes files that the book has given up.
    async fn delete(self: &Arc<Self>, leaving: Vec<Generation>) {
        if leaving.is_empty() {
            return;
        }
        let inner = self.clone();
        if let Err(panic) = ambient::off_runtime(move || inner.delete_here(&leaving)).await {
            tracing::error!(error = %Chain(&panic), "adapter files cannot be deleted");
        }
    }

    /// On this thread.
    fn delete_here(&self, leaving: &[Generation]) {
        for &generation in leaving {
            // One that stays is found at the next start; until then it is as good as gone.
            if let Err(error) = self.disk.remove(generation) {
                tracing::warn!(adapter = %generation.0.short(), error = %Chain(&error), "an adapter file stays");
            }
            self.with(|desk| desk.book.file_gone(generation));
        }
    }
}

/// Frees what has left memory on a thread that may block: a large adapter is many pages.
fn discard(evicted: Vec<Arc<Adapter>>) {
    if !evicted.is_empty() {
        drop(tokio::task::spawn_blocking(move || drop(evicted)));
    }
}

/// Lets go of a forgotten adapter once nothing runs with it.
async fn let_go(inner: Arc<Inner>, generation: Generation) {
    loop {
        let moved = inner.moved.notified();
        let (went, evicted) = inner.with(|desk| desk.let_go(generation));
        discard(evicted);
        match went {
            LetGo::Later => moved.await,
            LetGo::MemoryAndFile => return inner.delete(vec![generation]).await,
            LetGo::Memory | LetGo::Nothing => return,
        }
    }
}
