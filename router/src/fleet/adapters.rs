//! The adapters of one worker, as it has told: where each is, what they hold of its memory, and how long its loads take. A
//! part of each [`super::Replica`], which is copied at every report, so a copy shares all that did not change. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_common::ids::Generation;
use shoal_common::wire::hello::{AdapterState, AdapterTier, Capacity};

/// Adapters remembered of one worker, at most; beyond that the oldest news is forgotten. A forgotten adapter is taken for
/// one that must be fetched, which costs a good choice and nothing else.
pub const TOLD: usize = 4096;

/// Parts of the map: a change copies one of them, 64 entries at most when generations are spread evenly, as hashes are.
const SHARDS: usize = 64;

/// Weight of a new measurement in the average is one in this many.
const INERTIA: i64 = 4;

/// Longest load that is believed, in milliseconds: what takes longer has failed.
const LONGEST_MS: u32 = 600_000;

/// How an adapter comes into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// From the worker's own disk.
    Read,
    /// From the router, by way of the disk.
    Fetch,
}

/// Why a worker tells of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It introduces itself: the adapter was there before.
    Introduction,
    /// Something has become of it. Changes that follow each other closely may be told as one.
    Change,
}

/// How long loads take on a worker: moving averages of what it measured, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadTimes {
    read_ms: Option<u32>,
    fetch_ms: Option<u32>,
}

impl LoadTimes {
    /// Nothing is measured yet.
    const UNKNOWN: Self = Self { read_ms: None, fetch_ms: None };

    /// Predicted milliseconds. Before the first measurement: a 10 MB adapter from a cold disk, and over a slow link.
    pub fn predict_ms(&self, kind: LoadKind) -> u32 {
        match kind {
            LoadKind::Read => self.read_ms.unwrap_or(100),
            LoadKind::Fetch => self.fetch_ms.unwrap_or(1_000),
        }
    }

    fn observe(&mut self, kind: LoadKind, ms: u32) {
        let average = match kind {
            LoadKind::Read => &mut self.read_ms,
            LoadKind::Fetch => &mut self.fetch_ms,
        };
        let ms = ms.min(LONGEST_MS);
        let moved = |before: u32| (i64::from(before) + (i64::from(ms) - i64::from(before)) / INERTIA) as u32;
        *average = Some(average.map_or(ms, moved));
    }
}

/// What adapters hold of a worker's memory, those that are being loaded included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many there are.
    pub slots: u32,
    /// Their bytes, as far as known.
    pub bytes: u64,
}

impl Held {
    /// Whether one more, of `bytes`, goes in beside these.
    fn has_room_for(&self, bytes: u64, capacity: &Capacity) -> bool {
        self.slots < capacity.adapter_slots && self.bytes.saturating_add(bytes) <= capacity.adapter_bytes
    }

    fn add(&mut self, state: &AdapterState) {
        self.slots += 1;
        self.bytes = self.bytes.saturating_add(state.bytes);
    }

    fn remove(&mut self, state: &AdapterState) {
        self.slots -= 1;
        self.bytes = self.bytes.saturating_sub(state.bytes);
    }
}

/// Whether a worker has room in memory for an adapter: the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// It is there, or a slot is free.
    Free,
    /// Another one that nothing runs with must go.
    Evicts,
    /// All slots are pinned or in use: it waits for a group to end.
    Waits,
    /// Never: what is pinned leaves no room, or the worker takes none so large.
    Never,
}

#[derive(Clone, Debug)]
struct Entry {
    state: AdapterState,
    /// How it came, or is coming, into memory; absent where that was before we were told anything.
    kind: Option<LoadKind>,
    /// Number of the news it is from.
    told: u64,
}

type Shard = BTreeMap<Generation, Entry>;

/// The adapters of one worker. At most [`TOLD`].
#[derive(Clone, Debug)]
pub struct Adapters {
    shards: Arc<Vec<Arc<Shard>>>,
    len: usize,
    news: u64,
    resident: Held,
    pinned: Held,
    times: LoadTimes,
}

impl Default for Adapters {
    fn default() -> Self {
        let shards = Arc::new((0..SHARDS).map(|_| Arc::default()).collect());
        let (resident, pinned) = (Held::default(), Held::default());
        Self { shards, len: 0, news: 0, resident, pinned, times: LoadTimes::UNKNOWN }
    }
}

impl Adapters {
    /// An adapter's state; absent where it is not there.
    pub fn get(&self, generation: Generation) -> Option<&AdapterState> {
        self.entry(generation).map(|entry| &entry.state)
    }

    /// All of them, by generation within each part of the map.
    pub fn iter(&self) -> impl Iterator<Item = &AdapterState> {
        self.shards.iter().flat_map(|shard| shard.values()).map(|entry| &entry.state)
    }

    /// How many there are, on disk and quarantined ones included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What those in memory hold.
    pub fn resident(&self) -> Held {
        self.resident
    }

    /// Predicted milliseconds until an adapter that is not there now is in memory, by way of `kind`.
    pub fn predict_ms(&self, kind: LoadKind) -> u32 {
        self.times.predict_ms(kind)
    }

    /// Predicted milliseconds until an adapter is in memory. One that is being loaded is, on average, half-way.
    pub fn ready_in_ms(&self, generation: Generation) -> u32 {
        let Some(entry) = self.entry(generation) else { return self.predict_ms(LoadKind::Fetch) };
        match entry.state.tier {
            AdapterTier::Memory => 0,
            AdapterTier::Loading => self.predict_ms(entry.kind.unwrap_or(LoadKind::Fetch)) / 2,
            AdapterTier::Disk => self.predict_ms(LoadKind::Read),
            AdapterTier::Quarantined | AdapterTier::Gone => self.predict_ms(LoadKind::Fetch),
        }
    }

    /// Whether an adapter of `bytes` (0 while unknown) has room beside those `in_use` on a worker of this `capacity`.
    pub fn room_for(&self, generation: Generation, bytes: u64, in_use: &[Generation], capacity: &Capacity) -> Room {
        if self.get(generation).is_some_and(is_resident) {
            return Room::Free;
        }
        if !self.pinned.has_room_for(bytes, capacity) {
            return Room::Never;
        }
        // What is in use and not told of is on its way there.
        let mut held = self.resident;
        let mut kept = self.pinned;
        for used in in_use {
            match self.get(*used) {
                Some(state) if is_resident(state) && state.pinned => {}
                Some(state) if is_resident(state) => kept.add(state),
                _ => {
                    held.slots += 1;
                    kept.slots += 1;
                }
            }
        }
        if held.has_room_for(bytes, capacity) {
            Room::Free
        } else if kept.has_room_for(bytes, capacity) {
            Room::Evicts
        } else {
            Room::Waits
        }
    }

    /// Takes in what the worker told.
    pub(super) fn note(&mut self, mut state: AdapterState, news: News) {
        // What a worker tells is not believed to be within the bound.
        state.reason.iter_mut().for_each(AdapterState::cut_reason);
        self.news += 1;
        let generation = state.generation;
        let before = self.forget(generation);
        let kind = match news {
            News::Introduction => None,
            News::Change => self.kind_of_load(before.as_ref(), &state),
        };
        if state.tier == AdapterTier::Gone {
            return;
        }
        if is_resident(&state) {
            self.resident.add(&state);
            if state.pinned {
                self.pinned.add(&state);
            }
        }
        let entry = Entry { state, kind, told: self.news };
        self.shard_mut(generation).insert(generation, entry);
        self.len += 1;
        if self.len > TOLD {
            self.forget_oldest();
        }
    }

    /// How the adapter comes into memory; a load that has ended is measured.
    fn kind_of_load(&mut self, before: Option<&Entry>, now: &AdapterState) -> Option<LoadKind> {
        let tier = before.map(|entry| entry.state.tier);
        let kind = match (tier, now.tier) {
            (Some(AdapterTier::Disk), AdapterTier::Loading | AdapterTier::Memory) => Some(LoadKind::Read),
            (None, AdapterTier::Loading | AdapterTier::Memory) => Some(LoadKind::Fetch),
            _ => before.and_then(|entry| entry.kind),
        };
        let has_ended = tier != Some(AdapterTier::Memory) && now.tier == AdapterTier::Memory;
        if let (true, Some(kind), Some(ms)) = (has_ended, kind, now.load_ms) {
            self.times.observe(kind, ms);
        }
        kind
    }

    fn forget(&mut self, generation: Generation) -> Option<Entry> {
        self.entry(generation)?;
        let entry = self.shard_mut(generation).remove(&generation)?;
        self.len -= 1;
        if is_resident(&entry.state) {
            self.resident.remove(&entry.state);
            if entry.state.pinned {
                self.pinned.remove(&entry.state);
            }
        }
        Some(entry)
    }

    /// Forgets the oldest news, of an adapter that is only on disk if there is one.
    fn forget_oldest(&mut self) {
        let age = |entry: &&Entry| (entry.state.tier != AdapterTier::Disk, entry.told);
        let oldest = self.shards.iter().flat_map(|shard| shard.values()).min_by_key(age);
        if let Some(generation) = oldest.map(|entry| entry.state.generation) {
            self.forget(generation);
        }
    }

    fn entry(&self, generation: Generation) -> Option<&Entry> {
        self.shards[shard_of(generation)].get(&generation)
    }

    fn shard_mut(&mut self, generation: Generation) -> &mut Shard {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard_of(generation)])
    }
}

fn shard_of(generation: Generation) -> usize {
    usize::from(generation.0.0[0]) % SHARDS
}

/// Whether it holds memory.
fn is_resident(state: &AdapterState) -> bool {
    matches!(state.tier, AdapterTier::Memory | AdapterTier::Loading)
}
