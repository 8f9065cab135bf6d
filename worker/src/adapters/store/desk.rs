//! What the store guards with its lock: the book, the adapters that the book says are in memory, who waits to be told, and the
//! routers that can be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_common::ambient;
use shoal_common::ids::Generation;
use tokio::sync::{Notify, oneshot};

use crate::adapters::Adapter;
use crate::adapters::book::{Asked, Book, File, For, LetGo, Limits, Room, Settled, WaiterId};
use crate::adapters::error::AcquireError;
use crate::adapters::fetch::Source;
use crate::adapters::lease::Lease;
use crate::adapters::loader::Loaded;
use crate::metrics::{self, AdapterFrom, Tier};

/// A router's connection. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceId(u64);

/// What a waiter is told.
pub(super) type Outcome = Result<Lease, AcquireError>;

/// What a group that asks for its adapter gets.
pub(super) enum Answer {
    Ready(Lease),
    Joined(WaiterId, oneshot::Receiver<Outcome>),
    /// The flight is the caller's to begin.
    Begun(WaiterId, oneshot::Receiver<Outcome>),
    Refused(AcquireError),
}

/// Whether an adapter's parting is somebody's task already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    Begins,
    UnderWay,
}

#[derive(Debug)]
pub(super) struct Desk {
    pub(super) book: Book,
    loaded: BTreeMap<Generation, Arc<Adapter>>,
    waiting: BTreeMap<WaiterId, oneshot::Sender<Outcome>>,
    /// Forgotten adapters whose end is waited for.
    parting: BTreeSet<Generation>,
    sources: Vec<(SourceId, Arc<dyn Source>)>,
    next_source: u64,
}

impl Desk {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            book: Book::new(limits),
            loaded: BTreeMap::new(),
            waiting: BTreeMap::new(),
            parting: BTreeSet::new(),
            sources: Vec::new(),
            next_source: 0,
        }
    }

    /// A group wants its adapter.
    pub(super) fn ask(&mut self, generation: Generation, until: Instant, now: Instant, moved: &Arc<Notify>) -> Answer {
        let on_disk = matches!(self.book.file(generation), File::Here(_));
        match self.book.ask(generation, For::Group, until, now) {
            Asked::Refused(error) => Answer::Refused(error),
            Asked::Ready => {
                metrics::adapter_acquired(AdapterFrom::Memory);
                Answer::Ready(self.lease(generation, moved))
            }
            Asked::Joined(waiter) => {
                metrics::adapter_acquired(AdapterFrom::Flight);
                Answer::Joined(waiter, self.wait(waiter))
            }
            Asked::Begun(waiter) => {
                metrics::adapter_acquired(if on_disk { AdapterFrom::Disk } else { AdapterFrom::Router });
                Answer::Begun(waiter, self.wait(waiter))
            }
        }
    }

    fn wait(&mut self, waiter: WaiterId) -> oneshot::Receiver<Outcome> {
        let (tell, outcome) = oneshot::channel();
        self.waiting.insert(waiter, tell);
        outcome
    }

    fn lease(&self, generation: Generation, moved: &Arc<Notify>) -> Lease {
        let adapter = self.loaded.get(&generation).expect("what the book calls loaded is loaded");
        Lease::new(adapter.clone(), moved.clone())
    }

    pub(super) fn leave(&mut self, generation: Generation, waiter: WaiterId) {
        self.waiting.remove(&waiter);
        self.book.leave(generation, waiter);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Asks for room in memory. Returns what was evicted for it.
    pub(super) fn reserve(&mut self, generation: Generation) -> (Room, Vec<Arc<Adapter>>) {
        let room = self.book.reserve(generation, &in_use(&self.loaded));
        let evicted = if let Room::Granted(evicted) = &room { self.evict(evicted) } else { Vec::new() };
        (room, evicted)
    }

    /// Keeps what was loaded, if there is room. Returns what was evicted for it.
    pub(super) fn settle(&mut self, generation: Generation, loaded: Loaded) -> (Settled, Vec<Arc<Adapter>>) {
        let settled = self.book.settle(generation, loaded.bytes, loaded.rank, &in_use(&self.loaded));
        match &settled {
            Settled::NoRoom => (settled, vec![loaded.adapter]),
            Settled::Kept(evicted) => {
                let evicted = self.evict(evicted);
                self.loaded.insert(generation, loaded.adapter);
                (settled, evicted)
            }
        }
    }

    fn evict(&mut self, evicted: &[Generation]) -> Vec<Arc<Adapter>> {
        metrics::adapters_evicted(Tier::Memory, evicted.len());
        evicted.iter().filter_map(|generation| self.loaded.remove(generation)).collect()
    }

    /// A flight is over: tells everybody who waits for it.
    pub(super) fn land(
        &mut self,
        generation: Generation,
        landing: &Result<Duration, AcquireError>,
        moved: &Arc<Notify>,
    ) {
        for waiter in self.book.land(generation, landing, ambient::now()) {
            let Some(tell) = self.waiting.remove(&waiter) else { continue };
            let outcome = landing.as_ref().map(|_took| self.lease(generation, moved)).map_err(Clone::clone);
            // Whoever left in this moment gives its lease back by not taking it.
            let _ = tell.send(outcome);
        }
    }

    pub(super) fn forget(&mut self, generation: Generation) -> Parting {
        self.book.forget(generation);
        if self.parting.insert(generation) { Parting::Begins } else { Parting::UnderWay }
    }

    /// Lets go of a forgotten adapter, if that is possible now. Returns what has left memory.
    pub(super) fn let_go(&mut self, generation: Generation) -> (LetGo, Vec<Arc<Adapter>>) {
        let went = self.book.let_go(generation, &in_use(&self.loaded));
        match went {
            LetGo::Later => return (went, Vec::new()),
            LetGo::Nothing | LetGo::Memory | LetGo::MemoryAndFile => self.parting.remove(&generation),
        };
        let left = if went == LetGo::Nothing { None } else { self.loaded.remove(&generation) };
        (went, left.into_iter().collect())
    }

    pub(super) fn next_source(&mut self) -> SourceId {
        self.next_source += 1;
        SourceId(self.next_source)
    }

    pub(super) fn offer(&mut self, id: SourceId, source: Arc<dyn Source>) {
        self.sources.push((id, source));
    }

    pub(super) fn withdraw(&mut self, id: SourceId) {
        self.sources.retain(|(other, _)| *other != id);
    }

    /// The routers that can be asked, that of `via` first.
    pub(super) fn sources(&self, via: SourceId) -> Vec<Arc<dyn Source>> {
        let (first, others): (Vec<_>, Vec<_>) = self.sources.iter().partition(|(id, _)| *id == via);
        first.into_iter().chain(others).map(|(_, source)| source.clone()).collect()
    }
}

/// Whether anybody but the desk holds an adapter. Leases are made under the desk's lock only, so that an answer of "no" holds
/// while the lock does.
fn in_use(loaded: &BTreeMap<Generation, Arc<Adapter>>) -> impl Fn(Generation) -> bool {
    |generation| loaded.get(&generation).is_some_and(|adapter| Arc::strong_count(adapter) > 1)
}
