//! Who gets room, in memory and on disk, and who gives it: least recently used first, never what is pinned, being loaded or,
//! in memory, in use. Nothing is evicted unless that makes enough room.

use shoal_common::ids::Generation;

use super::entry::{Entry, File, Memory};
use super::{Book, MAX_FILES};
use crate::adapters::error::Unavailable;

/// Whether a load may go on into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::adapters) enum Room {
    /// A slot is reserved; these have been evicted for it.
    Granted(Vec<Generation>),
    /// Not now: it is in line, or what would have to go is in use.
    Wait,
    /// It is larger than all of the room.
    Never,
}

/// Whether a loaded adapter stays, now that its size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::adapters) enum Settled {
    /// It does; these have been evicted for it.
    Kept(Vec<Generation>),
    /// It needs more than was reserved, and more than is to be had now: it must be let go of and wait.
    NoRoom,
}

/// What is held beyond the limits.
struct Excess {
    count: usize,
    bytes: u64,
}

/// What may be evicted, in the order in which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Idle {
    last_use: u64,
    generation: Generation,
    bytes: u64,
}

impl Idle {
    fn new(entry: &Entry, generation: Generation, bytes: u64) -> Self {
        Self { last_use: entry.last_use, generation, bytes }
    }
}

/// The first of `idle` that together make up for `over`; `None` where all of them do not.
fn enough(mut over: Excess, mut idle: Vec<Idle>) -> Option<Vec<Generation>> {
    idle.sort_unstable();
    let mut idle = idle.into_iter();
    let mut chosen = Vec::new();
    while over.count > 0 || over.bytes > 0 {
        let next = idle.next()?;
        over.count = over.count.saturating_sub(1);
        over.bytes = over.bytes.saturating_sub(next.bytes);
        chosen.push(next.generation);
    }
    Some(chosen)
}

impl Book {
    /// Reserves a slot for the flight of `generation`, whose file is here. Flights get room in the order in which they first
    /// asked, so that a large one is not passed by for ever. Until its first load it is taken to need as much as its file.
    pub(in crate::adapters) fn reserve(
        &mut self,
        generation: Generation,
        in_use: &impl Fn(Generation) -> bool,
    ) -> Room {
        let Some(entry) = self.entries.get(&generation) else { return Room::Never };
        let guess = entry.file.held().unwrap_or(0).min(self.limits.bytes);
        let bytes = entry.needs.unwrap_or(guess);
        if bytes > self.limits.bytes {
            self.leave_line(generation);
            return Room::Never;
        }
        if !self.line.contains(&generation) {
            self.line.push_back(generation);
        }
        if self.line.front() != Some(&generation) {
            return Room::Wait;
        }
        let Some(evicted) = self.make_room(bytes, in_use) else { return Room::Wait };
        self.line.pop_front();
        self.entry(generation).memory = Memory::Reserved(bytes);
        Room::Granted(evicted)
    }

    /// The flight's adapter is loaded and takes `bytes`.
    pub(in crate::adapters) fn settle(
        &mut self,
        generation: Generation,
        bytes: u64,
        rank: u32,
        in_use: &impl Fn(Generation) -> bool,
    ) -> Settled {
        let entry = self.entry(generation);
        entry.memory = Memory::Absent;
        entry.needs = Some(bytes);
        entry.rank = rank;
        match self.make_room(bytes, in_use) {
            None => Settled::NoRoom,
            Some(evicted) => {
                self.entry(generation).memory = Memory::Loaded(bytes);
                self.changed(generation);
                Settled::Kept(evicted)
            }
        }
    }

    /// The flight has no use for its slot now.
    pub(in crate::adapters) fn release(&mut self, generation: Generation) {
        if let Some(entry) = self.entries.get_mut(&generation)
            && let Memory::Reserved(_) = entry.memory
        {
            entry.memory = Memory::Absent;
        }
    }

    pub(super) fn leave_line(&mut self, generation: Generation) {
        self.line.retain(|waits| *waits != generation);
    }

    /// Slots and bytes of memory that are taken or reserved.
    pub(in crate::adapters) fn in_memory(&self) -> (usize, u64) {
        let held = self.entries.values().filter_map(|entry| entry.memory.held());
        held.fold((0, 0), |(slots, bytes), more| (slots + 1, bytes + more))
    }

    /// Evicts what must go for one more of `bytes`; `None`, and nobody goes, where that does not suffice.
    fn make_room(&mut self, bytes: u64, in_use: &impl Fn(Generation) -> bool) -> Option<Vec<Generation>> {
        let held = self.in_memory();
        let over = Excess {
            count: (held.0 + 1).saturating_sub(self.limits.slots),
            bytes: held.1.saturating_add(bytes).saturating_sub(self.limits.bytes),
        };
        let idle = self.entries.iter().filter_map(|(&at, entry)| match entry.memory {
            Memory::Loaded(bytes) if entry.is_evictable() && !in_use(at) => Some(Idle::new(entry, at, bytes)),
            _ => None,
        });
        let evicted = enough(over, idle.collect())?;
        evicted.iter().for_each(|&at| self.drop_memory(at));
        Some(evicted)
    }

    pub(super) fn drop_memory(&mut self, generation: Generation) {
        self.entry(generation).memory = Memory::Absent;
        self.changed(generation);
        self.tidy(generation);
    }

    /// The flight's file of `bytes` is coming. Returns what must be deleted before a byte of it is written.
    ///
    /// # Errors
    /// It is larger than all of the room, or all that is here is needed.
    pub(in crate::adapters) fn expect_file(
        &mut self,
        generation: Generation,
        bytes: u64,
    ) -> Result<Vec<Generation>, Unavailable> {
        if bytes > self.limits.disk_bytes {
            return Err(Unavailable::TooLarge);
        }
        let held = self.on_disk();
        let over = Excess {
            count: (held.0 + 1).saturating_sub(MAX_FILES),
            bytes: held.1.saturating_add(bytes).saturating_sub(self.limits.disk_bytes),
        };
        let leaving = self.shed(over).ok_or(Unavailable::NoRoom)?;
        self.entry(generation).file = File::Coming(bytes);
        Ok(leaving)
    }

    /// The device is full before the limit is reached: files of at least `bytes`, or as much as there is, must be deleted, so
    /// that the next attempt finds room.
    pub(in crate::adapters) fn shed_files(&mut self, bytes: u64) -> Vec<Generation> {
        let idle = self.idle_files().iter().map(|idle| idle.bytes).sum::<u64>();
        self.shed(Excess { count: 0, bytes: bytes.min(idle) }).unwrap_or_default()
    }

    /// Files and bytes of disk that are taken or reserved.
    pub(in crate::adapters) fn on_disk(&self) -> (usize, u64) {
        let held = self.entries.values().filter_map(|entry| entry.file.held());
        held.fold((0, 0), |(files, bytes), more| (files + 1, bytes + more))
    }

    fn idle_files(&self) -> Vec<Idle> {
        let idle = self.entries.iter().filter_map(|(&at, entry)| match entry.file {
            File::Here(bytes) if entry.is_evictable() => Some(Idle::new(entry, at, bytes)),
            _ => None,
        });
        idle.collect()
    }

    /// Begins to delete what must go to make up for `over`.
    fn shed(&mut self, over: Excess) -> Option<Vec<Generation>> {
        let leaving = enough(over, self.idle_files())?;
        leaving.iter().for_each(|&at| self.begin_deletion(at));
        Some(leaving)
    }

    pub(super) fn begin_deletion(&mut self, generation: Generation) {
        self.entry(generation).file = File::Leaving;
        self.changed(generation);
    }
}
