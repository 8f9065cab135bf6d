//! The book of adapters: which are here and where, the one load that may be under way for each, who waits for it, what must
//! go for it, what is not tried. Pure: the store ([`super::store`]) reads files, listens to routers and holds the adapters
//! themselves; it asks here what to do and says what came of it. Time is an argument, and so is which adapters groups run
//! with.
//!
//! `entry`: one adapter. `room`: who gets a slot or a file's bytes, and who gives them. `blame`: what is not tried. `news`: what
//! routers have yet to be told.
//!
//! **In memory there are never more adapters or bytes than allowed**, those that are being loaded included. An adapter that is
//! pinned or in use never gives way, so a load may have to wait.

mod blame;
mod entry;
mod news;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use shoal_common::ids::Generation;

use self::blame::Blame;
pub(super) use self::entry::File;
use self::entry::{Entry, Flight, Keep, Memory};
pub(super) use self::news::Told;
pub(super) use self::room::{Room, Settled};
use super::error::{AcquireError, Unavailable};

/// Loads under way at once; more are refused. Each is a task and, at most, an open stream.
const MAX_FLIGHTS: usize = 1024;
/// Files at once: what is searched for the least recently used stays small, however tiny the adapters are.
const MAX_FILES: usize = 4096;

/// How much may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Adapters in memory at once.
    pub slots: usize,
    /// Bytes of adapters in memory at once.
    pub bytes: u64,
    /// Bytes of files at once.
    pub disk_bytes: u64,
}

/// Somebody who waits for a load. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WaiterId(u64);

/// For what an adapter is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A group that runs with it.
    Group,
    /// To have it ready.
    Order,
}

/// Whether an adapter is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is in memory.
    Ready,
    /// It is being loaded.
    Joined(WaiterId),
    /// It must be loaded: the flight is the caller's to carry out, and to [`Book::land`].
    Begun(WaiterId),
    /// It cannot be had.
    Refused(AcquireError),
}

/// What there was to let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LetGo {
    /// Nothing, or it is wanted again.
    Nothing,
    /// Something runs with it or waits for it: later.
    Later,
    /// It has left memory. It had no file.
    Memory,
    /// It has left memory, and its file is to be deleted.
    MemoryAndFile,
}

/// The book. Bounds: [`Limits`], [`MAX_FLIGHTS`], [`MAX_FILES`], and what `blame` keeps.
#[derive(Debug)]
pub(super) struct Book {
    limits: Limits,
    entries: BTreeMap<Generation, Entry>,
    blame: Blame,
    /// Flights that wait for room in memory, first come first.
    line: VecDeque<Generation>,
    flights: usize,
    next_waiter: u64,
    uses: u64,
    changes: u64,
}

impl Book {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            blame: Blame::default(),
            line: VecDeque::new(),
            flights: 0,
            next_waiter: 0,
            uses: 0,
            changes: 0,
        }
    }

    /// A file of an earlier life, more recently used than those before it. Returns what must be deleted because there is no
    /// room for all of them.
    pub(super) fn found(&mut self, generation: Generation, bytes: u64) -> Vec<Generation> {
        self.entries.entry(generation).or_insert_with(Entry::new);
        self.used(generation);
        match self.expect_file(generation, bytes) {
            Ok(leaving) => {
                self.file_here(generation);
                self.changed(generation);
                leaving
            }
            Err(_no_room) => {
                self.begin_deletion(generation);
                vec![generation]
            }
        }
    }

    /// Somebody wants the adapter in memory and is ready to wait `until` then.
    pub(super) fn ask(&mut self, generation: Generation, purpose: For, until: Instant, now: Instant) -> Asked {
        if let Some(entry) = self.entries.get_mut(&generation)
            && let Memory::Loaded(_) = entry.memory
            && entry.flight.is_none()
        {
            if purpose == For::Group {
                entry.began = Some(now);
            }
            self.used(generation);
            return Asked::Ready;
        }
        if let Err(error) = self.blame.check(generation, now) {
            return Asked::Refused(error);
        }
        if self.limits.slots == 0 {
            return Asked::Refused(Unavailable::TooLarge.into());
        }
        let waiter = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        if let Some(flight) = self.entries.get_mut(&generation).and_then(|entry| entry.flight.as_mut()) {
            flight.join(waiter, purpose, until);
            self.used(generation);
            return Asked::Joined(waiter);
        }
        if self.flights >= MAX_FLIGHTS {
            return Asked::Refused(Unavailable::Crowded.into());
        }
        self.flights += 1;
        let flight = self.entries.entry(generation).or_insert_with(Entry::new).flight.insert(Flight::new(until));
        flight.join(waiter, purpose, until);
        self.used(generation);
        self.changed(generation);
        Asked::Begun(waiter)
    }

    /// The waiter waits no more. The flight goes on.
    pub(super) fn leave(&mut self, generation: Generation, waiter: WaiterId) {
        if let Some(flight) = self.entries.get_mut(&generation).and_then(|entry| entry.flight.as_mut()) {
            flight.waiters.remove(&waiter);
        }
    }

    /// How long the flight may wait for room in memory.
    pub(super) fn patience(&self, generation: Generation) -> Option<Instant> {
        self.entries.get(&generation)?.flight.as_ref().map(|flight| flight.until)
    }

    /// The adapter's file.
    pub(super) fn file(&self, generation: Generation) -> File {
        self.entries.get(&generation).map_or(File::Absent, |entry| entry.file)
    }

    /// The file that was expected is here, whole.
    pub(super) fn file_here(&mut self, generation: Generation) {
        if let Some(entry) = self.entries.get_mut(&generation)
            && let File::Coming(bytes) = entry.file
        {
            entry.file = File::Here(bytes);
        }
    }

    /// The file is not there, whatever was thought of it: it did not come, or it was deleted.
    pub(super) fn file_gone(&mut self, generation: Generation) {
        if let Some(entry) = self.entries.get_mut(&generation) {
            entry.file = File::Absent;
            self.changed(generation);
            self.tidy(generation);
        }
    }

    /// The flight is over: it took a time, or it failed. Returns who must be told. A file that is to blame is gone already.
    pub(super) fn land(
        &mut self,
        generation: Generation,
        landing: &Result<Duration, AcquireError>,
        now: Instant,
    ) -> BTreeSet<WaiterId> {
        let Some(flight) = self.entries.get_mut(&generation).and_then(|entry| entry.flight.take()) else {
            return BTreeSet::new();
        };
        self.flights -= 1;
        self.leave_line(generation);
        self.release(generation);
        // One that did not come after all.
        if let File::Coming(_) = self.file(generation) {
            self.entry(generation).file = File::Absent;
        }
        self.changed(generation);
        match landing {
            Ok(took) => {
                self.blame.clear(generation);
                let entry = self.entry(generation);
                entry.load_ms = Some(u32::try_from(took.as_millis()).unwrap_or(u32::MAX));
                if !flight.waiters.is_empty() {
                    entry.began = Some(now);
                }
                self.used(generation);
            }
            Err(AcquireError::Quarantined(reason)) => self.blame.quarantine(generation, reason.clone(), self.changes),
            Err(AcquireError::Unavailable(why)) if why.is_repeated() => self.blame.pause(generation, *why, now),
            Err(AcquireError::Unavailable(_)) => {}
        }
        self.tidy(generation);
        flight.waiters
    }

    /// Keeps it in memory from now on, once it is there.
    pub(super) fn pin(&mut self, generation: Generation) {
        self.keep(generation, Keep::Pinned);
    }

    /// It may be evicted again.
    pub(super) fn unpin(&mut self, generation: Generation) {
        if self.entries.get(&generation).is_some_and(|entry| entry.keep == Keep::Pinned) {
            self.keep(generation, Keep::AsRoomAllows);
        }
    }

    /// It is wanted again, if it was to be let go of.
    pub(super) fn want(&mut self, generation: Generation) {
        if self.entries.get(&generation).is_some_and(|entry| entry.keep == Keep::Forgotten) {
            self.keep(generation, Keep::AsRoomAllows);
        }
    }

    /// It was removed: to be let go of ([`Book::let_go`]), and what it was blamed for is forgotten.
    pub(super) fn forget(&mut self, generation: Generation) {
        if self.blame.clear(generation).is_some() {
            self.changes += 1;
        }
        self.keep(generation, Keep::Forgotten);
    }

    fn keep(&mut self, generation: Generation, keep: Keep) {
        if let Some(entry) = self.entries.get_mut(&generation)
            && std::mem::replace(&mut entry.keep, keep) != keep
        {
            self.changed(generation);
        }
    }

    /// Lets go of a forgotten adapter, if nothing needs it.
    pub(super) fn let_go(&mut self, generation: Generation, in_use: &impl Fn(Generation) -> bool) -> LetGo {
        let Some(entry) = self.entries.get(&generation).filter(|entry| entry.keep == Keep::Forgotten) else {
            return LetGo::Nothing;
        };
        if entry.flight.is_some() || in_use(generation) {
            return LetGo::Later;
        }
        let had_file = matches!(entry.file, File::Here(_));
        self.keep(generation, Keep::AsRoomAllows);
        if had_file {
            self.begin_deletion(generation);
        }
        self.drop_memory(generation);
        if had_file { LetGo::MemoryAndFile } else { LetGo::Memory }
    }

    /// Grows with everything that a router may have to be told.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    fn entry(&mut self, generation: Generation) -> &mut Entry {
        self.entries.get_mut(&generation).expect("what has a flight, a file or a slot is in the book")
    }

    fn used(&mut self, generation: Generation) {
        self.uses += 1;
        let uses = self.uses;
        self.entry(generation).last_use = uses;
    }

    fn changed(&mut self, generation: Generation) {
        self.changes += 1;
        let changes = self.changes;
        self.entry(generation).change = changes;
    }

    /// Drops what there is nothing left to know of.
    fn tidy(&mut self, generation: Generation) {
        if self.entries.get(&generation).is_some_and(Entry::is_empty) {
            self.entries.remove(&generation);
        }
    }
}
