//! The adapters of a simulated worker: a few in memory, the least recently used of them evicted, all that were ever fetched
//! on disk. It tells what happens as a real worker does, and never holds more than its slots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_common::wire::hello::{AdapterState, AdapterTier};

use super::cast::generation;
use super::scenario::ADAPTER_BYTES;
use crate::fleet::adapters::LoadKind;

/// An adapter that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is in memory.
    There,
    /// Somebody has it loaded already.
    Coming,
    /// Its load begins now.
    Begins(LoadKind),
    /// Groups run with everything in memory.
    NoSlot,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    groups: u32,
    used: Duration,
}

/// The adapters of one worker, by rank.
#[derive(Debug)]
pub(super) struct Store {
    slots: usize,
    memory: BTreeMap<usize, Held>,
    loading: BTreeMap<usize, Duration>,
    disk: BTreeSet<usize>,
    /// What the router has not been told yet.
    news: Vec<AdapterState>,
}

impl Store {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            slots: slots as usize,
            memory: BTreeMap::new(),
            loading: BTreeMap::new(),
            disk: BTreeSet::new(),
            news: Vec::new(),
        }
    }

    /// Has the adapter loaded, unless it is there.
    pub(super) fn ask(&mut self, adapter: usize, now: Duration) -> Asked {
        if self.has(adapter) {
            return Asked::There;
        }
        if self.loading.contains_key(&adapter) {
            return Asked::Coming;
        }
        if self.memory.len() + self.loading.len() == self.slots && !self.evict() {
            return Asked::NoSlot;
        }
        let kind = if self.disk.insert(adapter) { LoadKind::Fetch } else { LoadKind::Read };
        self.loading.insert(adapter, now);
        self.tell(adapter, AdapterTier::Loading, None);
        assert!(self.memory.len() + self.loading.len() <= self.slots, "more adapters than slots");
        Asked::Begins(kind)
    }

    /// Whether the adapter is in memory.
    pub(super) fn has(&self, adapter: usize) -> bool {
        self.memory.contains_key(&adapter)
    }

    /// The load has ended.
    pub(super) fn loaded(&mut self, adapter: usize, now: Duration) {
        let began = self.loading.remove(&adapter).unwrap_or(now);
        self.memory.insert(adapter, Held { groups: 0, used: now });
        self.tell(adapter, AdapterTier::Memory, Some(now - began));
    }

    /// A group runs with it, which is in memory.
    pub(super) fn enter(&mut self, adapter: usize, now: Duration) {
        if let Some(held) = self.memory.get_mut(&adapter) {
            *held = Held { groups: held.groups + 1, used: now };
        }
    }

    /// A group has ended.
    pub(super) fn leave(&mut self, adapter: usize) {
        if let Some(held) = self.memory.get_mut(&adapter) {
            held.groups -= 1;
        }
    }

    /// The process ends: only the disk is left.
    pub(super) fn restart(&mut self) {
        self.memory.clear();
        self.loading.clear();
        self.news.clear();
    }

    /// Tells of everything that is there.
    pub(super) fn introduce(&mut self) {
        self.disk.clone().into_iter().for_each(|adapter| self.tell(adapter, AdapterTier::Disk, None));
    }

    /// What has happened since it was last asked for.
    pub(super) fn news(&mut self) -> Vec<AdapterState> {
        std::mem::take(&mut self.news)
    }

    fn evict(&mut self) -> bool {
        let idle = self.memory.iter().filter(|(_, held)| held.groups == 0);
        let Some(oldest) = idle.min_by_key(|(_, held)| held.used).map(|(adapter, _)| *adapter) else { return false };
        self.memory.remove(&oldest);
        self.tell(oldest, AdapterTier::Disk, None);
        true
    }

    fn tell(&mut self, adapter: usize, tier: AdapterTier, load: Option<Duration>) {
        self.news.push(AdapterState {
            generation: generation(adapter),
            tier,
            bytes: ADAPTER_BYTES,
            rank: 8,
            load_ms: load.map(|load| load.as_millis() as u32),
            idle_ms: None,
            pinned: false,
            reason: None,
        });
    }
}
