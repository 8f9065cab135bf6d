//! One adapter as the book knows it: where it is, whether it is being loaded and for whom, and what was learnt of it.

use std::collections::BTreeSet;
use std::time::Instant;

use shoal_common::ids::Generation;
use shoal_common::wire::hello::{AdapterState, AdapterTier};

use super::{For, WaiterId};

/// Its place in memory. Bytes are those of the adapter, not of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    Absent,
    /// A slot and as many bytes are kept for a load under way.
    Reserved(u64),
    Loaded(u64),
}

impl Memory {
    /// Bytes of the slot that it takes, if it takes one.
    pub(super) fn held(self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Reserved(bytes) | Self::Loaded(bytes) => Some(bytes),
        }
    }
}

/// Its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapters) enum File {
    Absent,
    /// Being written; room is kept for it.
    Coming(u64),
    Here(u64),
    /// Being deleted, and no longer counted. Whoever made it so says when it is gone.
    Leaving,
}

impl File {
    /// Bytes of room that it takes, if it takes any.
    pub(super) fn held(self) -> Option<u64> {
        match self {
            Self::Absent | Self::Leaving => None,
            Self::Coming(bytes) | Self::Here(bytes) => Some(bytes),
        }
    }
}

/// What the router wants of it beyond the groups' needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// As long as there is room.
    AsRoomAllows,
    /// Whatever else is asked for.
    Pinned,
    /// Until nothing runs with it.
    Forgotten,
}

/// The one load under way.
#[derive(Debug)]
pub(super) struct Flight {
    /// Groups to be told how it ends.
    pub(super) waiters: BTreeSet<WaiterId>,
    /// It waits for room in memory no longer: the latest that any waiter, even one that has left, was ready to wait.
    pub(super) until: Instant,
}

impl Flight {
    pub(super) fn new(until: Instant) -> Self {
        Self { waiters: BTreeSet::new(), until }
    }

    pub(super) fn join(&mut self, waiter: WaiterId, purpose: For, until: Instant) {
        self.until = self.until.max(until);
        if purpose == For::Group {
            self.waiters.insert(waiter);
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) memory: Memory,
    pub(super) file: File,
    pub(super) keep: Keep,
    pub(super) flight: Option<Flight>,
    /// Bytes in memory, known from its first load on.
    pub(super) needs: Option<u64>,
    pub(super) rank: u32,
    pub(super) load_ms: Option<u32>,
    /// Grows with each use of any adapter: the smallest is the least recently used.
    pub(super) last_use: u64,
    /// When a group last began with it.
    pub(super) began: Option<Instant>,
    /// The book's count of changes at the last one that a router should know of.
    pub(super) change: u64,
}

impl Entry {
    pub(super) fn new() -> Self {
        Self {
            memory: Memory::Absent,
            file: File::Absent,
            keep: Keep::AsRoomAllows,
            flight: None,
            needs: None,
            rank: 0,
            load_ms: None,
            last_use: 0,
            began: None,
            change: 0,
        }
    }

    pub(super) fn tier(&self) -> AdapterTier {
        match (self.memory, &self.flight, self.file) {
            (Memory::Loaded(_), ..) => AdapterTier::Memory,
            (_, Some(_), _) => AdapterTier::Loading,
            (_, None, File::Here(_)) => AdapterTier::Disk,
            (_, None, _) => AdapterTier::Gone,
        }
    }

    /// Whether there is nothing left to know of it.
    pub(super) fn is_empty(&self) -> bool {
        self.memory == Memory::Absent && self.file == File::Absent && self.flight.is_none()
    }

    /// Whether it may have to give its place, in memory or on disk, to another one.
    pub(super) fn is_evictable(&self) -> bool {
        self.keep != Keep::Pinned && self.flight.is_none()
    }

    /// What a router is told of it.
    pub(super) fn state(&self, generation: Generation, now: Instant) -> AdapterState {
        let millis = |from: Instant| u32::try_from(now.duration_since(from).as_millis()).unwrap_or(u32::MAX);
        let bytes = match (self.memory, self.file) {
            (Memory::Loaded(bytes), _) | (_, File::Here(bytes)) => bytes,
            _ => 0,
        };
        AdapterState {
            generation,
            tier: self.tier(),
            bytes,
            rank: self.rank,
            load_ms: self.load_ms,
            idle_ms: self.began.map(millis),
            pinned: self.keep == Keep::Pinned,
            reason: None,
        }
    }
}
