//! A store without disk, network or threads: the test carries out each flight's steps as it likes, holds the leases, and checks
//! after everything that the book keeps its promises.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_common::ids::{Digest, Generation};
use shoal_common::wire::hello::{AdapterState, AdapterTier};

use crate::adapters::book::{Asked, Book, File, For, LetGo, Limits, Room, Settled, Told, WaiterId};
use crate::adapters::error::{AcquireError, Reason, Unavailable};

/// How patient everybody is.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn adapter(number: u8) -> Generation {
    Generation(Digest::of(&[number]))
}

/// How a step of a flight goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Good,
    /// What was fetched or read is not what it should be.
    Damaged,
    /// The adapter does not fit the model.
    Bad,
}

/// The next step of a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    File,
    Fetching,
    Room,
    Loading,
}

/// Bytes of an adapter's file, and in memory.
pub(super) type Sizes = (u64, u64);

pub(super) struct World {
    pub(super) book: Book,
    pub(super) now: Instant,
    limits: Limits,
    sizes: BTreeMap<Generation, Sizes>,
    flights: BTreeMap<Generation, Stage>,
    /// Deletions under way.
    deletions: BTreeSet<Generation>,
    /// Who has not been told, and of what.
    waiting: BTreeMap<WaiterId, Generation>,
    /// Groups that run.
    pub(super) leases: Vec<Generation>,
    /// What is in memory or has a file, least recently used first; kept apart from the book.
    order: Vec<Generation>,
    pub(super) pinned: BTreeSet<Generation>,
    pub(super) quarantined: BTreeSet<Generation>,
    /// Outcomes of flights.
    pub(super) landed: Vec<(Generation, Result<(), AcquireError>)>,
    pub(super) evicted: Vec<Generation>,
    told: Told,
    /// What the router believes.
    pub(super) mirror: BTreeMap<Generation, AdapterState>,
}

impl World {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            book: Book::new(limits),
            now: Instant::now(),
            limits,
            sizes: BTreeMap::new(),
            flights: BTreeMap::new(),
            deletions: BTreeSet::new(),
            waiting: BTreeMap::new(),
            leases: Vec::new(),
            order: Vec::new(),
            pinned: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            landed: Vec::new(),
            evicted: Vec::new(),
            told: Told::default(),
            mirror: BTreeMap::new(),
        }
    }

    pub(super) fn size(&mut self, at: Generation, sizes: Sizes) {
        self.sizes.insert(at, sizes);
    }

    fn sizes_of(&self, at: Generation) -> Sizes {
        self.sizes.get(&at).copied().unwrap_or((10, 10))
    }

    /// A group, or an order, wants it.
    pub(super) fn ask(&mut self, at: Generation, purpose: For) -> Asked {
        let asked = self.book.ask(at, purpose, self.now + PATIENCE, self.now);
        match &asked {
            Asked::Ready => {
                assert_eq!(self.tier(at), AdapterTier::Memory);
                if purpose == For::Group {
                    self.leases.push(at);
                }
            }
            Asked::Joined(waiter) | Asked::Begun(waiter) => {
                if purpose == For::Group {
                    assert_eq!(self.waiting.insert(*waiter, at), None, "a waiter is new");
                }
                let begun = matches!(asked, Asked::Begun(_));
                assert_eq!(begun, !self.flights.contains_key(&at), "a single flight");
                self.flights.entry(at).or_insert(Stage::File);
            }
            Asked::Refused(error) => {
                let is_quarantined = matches!(error, AcquireError::Quarantined(_));
                assert_eq!(is_quarantined, self.quarantined.contains(&at));
            }
        }
        if !matches!(asked, Asked::Refused(_)) {
            self.used(at);
        }
        self.check();
        asked
    }

    /// One that waits leaves.
    pub(super) fn leave(&mut self, index: usize) {
        let count = self.waiting.len().max(1);
        let Some((&waiter, &at)) = self.waiting.iter().nth(index % count) else { return };
        self.waiting.remove(&waiter);
        self.book.leave(at, waiter);
        self.check();
    }

    /// A group ends.
    pub(super) fn give_back(&mut self, index: usize) {
        if !self.leases.is_empty() {
            self.leases.swap_remove(index % self.leases.len());
        }
        self.check();
    }

    /// Takes the next step of a flight, if there is one.
    pub(super) fn step(&mut self, at: Generation, fate: Fate) {
        let Some(&stage) = self.flights.get(&at) else { return };
        match stage {
            Stage::File => self.step_file(at, fate),
            Stage::Fetching if fate == Fate::Good => {
                self.book.file_here(at);
                self.flights.insert(at, Stage::Room);
            }
            Stage::Fetching => {
                self.book.file_gone(at);
                self.land(at, Err(Unavailable::Corrupt.into()));
            }
            Stage::Room => self.step_room(at),
            Stage::Loading => self.step_load(at, fate),
        }
        self.check();
    }

    fn step_file(&mut self, at: Generation, fate: Fate) {
        match self.book.file(at) {
            File::Here(_) => drop(self.flights.insert(at, Stage::Room)),
            File::Leaving => assert!(self.deletions.contains(&at), "somebody deletes it"),
            File::Coming(_) => panic!("only its own flight can expect it"),
            File::Absent if fate == Fate::Bad => self.land(at, Err(Unavailable::NotFound.into())),
            File::Absent => match self.book.expect_file(at, self.sizes_of(at).0) {
                Err(why) => self.land(at, Err(why.into())),
                Ok(leaving) => {
                    self.check_order(&leaving, |world, other| matches!(world.book.file(other), File::Here(_)));
                    self.deletions.extend(leaving);
                    self.flights.insert(at, Stage::Fetching);
                }
            },
        }
    }

    fn step_room(&mut self, at: Generation) {
        let in_use = self.in_use();
        match self.book.reserve(at, &|other| in_use.contains(&other)) {
            Room::Never => self.land(at, Err(Unavailable::TooLarge.into())),
            Room::Granted(evicted) => {
                self.note_evicted(evicted);
                self.flights.insert(at, Stage::Loading);
            }
            Room::Wait if self.book.patience(at).unwrap() <= self.now => self.land(at, Err(Unavailable::Late.into())),
            Room::Wait => {}
        }
    }

    fn step_load(&mut self, at: Generation, fate: Fate) {
        match fate {
            Fate::Good => {
                let in_use = self.in_use();
                match self.book.settle(at, self.sizes_of(at).1, 8, &|other| in_use.contains(&other)) {
                    Settled::NoRoom => drop(self.flights.insert(at, Stage::Room)),
                    Settled::Kept(evicted) => {
                        self.note_evicted(evicted);
                        self.land(at, Ok(()));
                    }
                }
            }
            Fate::Damaged => {
                self.book.release(at);
                self.book.file_gone(at);
                self.flights.insert(at, Stage::File);
            }
            Fate::Bad => {
                self.book.release(at);
                self.book.file_gone(at);
                self.quarantined.insert(at);
                self.land(at, Err(AcquireError::Quarantined(Reason::new("bad"))));
            }
        }
    }

    fn land(&mut self, at: Generation, landing: Result<(), AcquireError>) {
        self.flights.remove(&at);
        let told = self.book.land(at, &landing.clone().map(|()| Duration::from_millis(5)), self.now);
        let waited: BTreeSet<_> =
            self.waiting.iter().filter(|(_, wanted)| **wanted == at).map(|(waiter, _)| *waiter).collect();
        assert_eq!(told, waited, "whoever waits is told, and nobody else");
        self.waiting.retain(|waiter, _| !told.contains(waiter));
        if landing.is_ok() {
            self.used(at);
            self.leases.extend(told.iter().map(|_| at));
        }
        self.landed.push((at, landing));
    }

    fn note_evicted(&mut self, evicted: Vec<Generation>) {
        for at in &evicted {
            assert!(!self.leases.contains(at) && !self.pinned.contains(at), "evicted while it was needed");
        }
        self.check_order(&evicted, |world, other| {
            world.tier(other) == AdapterTier::Memory && !world.leases.contains(&other)
        });
        self.evicted.extend(evicted);
    }

    /// What went was used less recently than whatever could have gone and stayed.
    fn check_order(&self, went: &[Generation], could_go: impl Fn(&Self, Generation) -> bool) {
        let place = |at: &Generation| self.order.iter().position(|other| other == at).expect("it was used");
        let Some(last) = went.iter().map(place).max() else { return };
        for stayed in &self.order[..last] {
            let is_needed = self.pinned.contains(stayed) || self.flights.contains_key(stayed);
            let could_go = could_go(self, *stayed) && !is_needed;
            assert!(went.contains(stayed) || !could_go, "one that was used longer ago stayed");
        }
    }

    fn used(&mut self, at: Generation) {
        self.order.retain(|other| *other != at);
        self.order.push(at);
    }

    /// A deletion is over.
    pub(super) fn delete(&mut self, index: usize) {
        let count = self.deletions.len().max(1);
        if let Some(&at) = self.deletions.iter().nth(index % count) {
            self.deletions.remove(&at);
            self.book.file_gone(at);
        }
        self.check();
    }

    pub(super) fn pin(&mut self, at: Generation) {
        if !matches!(self.ask(at, For::Order), Asked::Refused(_)) {
            self.book.want(at);
            self.book.pin(at);
            self.pinned.insert(at);
        }
        self.check();
    }

    pub(super) fn unpin(&mut self, at: Generation) {
        self.book.unpin(at);
        self.pinned.remove(&at);
        self.check();
    }

    pub(super) fn forget(&mut self, at: Generation) {
        self.book.forget(at);
        self.pinned.remove(&at);
        self.quarantined.remove(&at);
        self.let_go(at);
    }

    /// Tries to part with a forgotten one.
    pub(super) fn let_go(&mut self, at: Generation) {
        let in_use = self.in_use();
        match self.book.let_go(at, &|other| in_use.contains(&other)) {
            LetGo::Nothing => {}
            LetGo::Later => assert!(in_use.contains(&at) || self.flights.contains_key(&at)),
            LetGo::Memory | LetGo::MemoryAndFile if in_use.contains(&at) => panic!("it was in use"),
            LetGo::Memory => {}
            LetGo::MemoryAndFile => drop(self.deletions.insert(at)),
        }
        self.check();
    }

    fn in_use(&self) -> BTreeSet<Generation> {
        self.leases.iter().copied().collect()
    }

    pub(super) fn tier(&self, at: Generation) -> AdapterTier {
        self.book.entries.get(&at).map_or(AdapterTier::Gone, |entry| entry.tier())
    }

    /// The router listens.
    pub(super) fn listen(&mut self) {
        for state in self.book.news(&mut self.told, self.now) {
            match state.tier {
                AdapterTier::Gone => {
                    drop(self.mirror.remove(&state.generation).expect("only what was told can be gone"))
                }
                _ => drop(self.mirror.insert(state.generation, state)),
            }
        }
        assert!(self.book.news(&mut self.told, self.now).is_empty(), "nothing is told twice");
    }

    fn check(&mut self) {
        let ((slots, bytes), (_, on_disk)) = (self.book.in_memory(), self.book.on_disk());
        assert!(slots <= self.limits.slots && bytes <= self.limits.bytes, "{slots} slots, {bytes} bytes in memory");
        assert!(on_disk <= self.limits.disk_bytes, "{on_disk} bytes on disk");
        assert_eq!(self.book.flights, self.flights.len());
        let in_flight = self.book.entries.iter().filter(|(_, entry)| entry.flight.is_some()).map(|(at, _)| *at);
        assert!(in_flight.eq(self.flights.keys().copied()));
        for at in &self.leases {
            assert_eq!(self.tier(*at), AdapterTier::Memory, "what a group runs with is in memory");
        }
        self.pinned.retain(|at| self.book.entries.contains_key(at));
        self.order.retain(|at| self.book.entries.contains_key(at));
    }

    /// Lets everything that is under way end well, and every group end.
    pub(super) fn settle(&mut self) {
        while let Some(&at) = self.flights.keys().next() {
            // In the order of the line: who is not first in it waits.
            let first = self.book.line.front().copied().unwrap_or(at);
            let before = (self.flights.len(), self.flights.get(&first).copied());
            self.step(first, Fate::Good);
            if before == (self.flights.len(), self.flights.get(&first).copied()) {
                self.give_back(0);
                self.delete(0);
                if self.leases.is_empty() && self.deletions.is_empty() {
                    self.now += PATIENCE;
                }
            }
        }
        while !self.deletions.is_empty() {
            self.delete(0);
        }
        self.leases.clear();
        assert!(self.waiting.is_empty(), "nobody is forgotten");
    }
}
