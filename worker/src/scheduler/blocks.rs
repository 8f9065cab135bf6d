//! The pool's books: which blocks are referenced and how often, which are free, and which hold a text's KV that may be
//! needed again. A block is always one of
//!
//! - **free**: nobody's, its KV means nothing;
//! - **referenced** by one or more tables; once it is full it is *registered* under its hash and no more written to;
//! - **idle**: registered and referenced by nobody. It is found again by its hash, or evicted, least recently used first.
//!
//! Used by the policy alone. Every operation takes constant time; memory is bounded by the pool.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;

use shoal_common::block_hash::BlockHash;

use super::lru::Lru;
use crate::backend::BlockId;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Tables that name the block.
    references: u32,
    /// Under which it is registered.
    hash: Option<BlockHash>,
}

/// All blocks of a pool.
#[derive(Debug)]
pub(super) struct Blocks {
    entries: Vec<Entry>,
    /// Freed last, taken first: its memory is warm.
    free: Vec<BlockId>,
    registered: HashMap<BlockHash, BlockId>,
    idle: Lru,
}

impl Blocks {
    /// A pool of `count` free blocks.
    pub(super) fn new(count: usize) -> Self {
        let ids = 0..u32::try_from(count).expect("a pool of 2^36 tokens fits no machine");
        Self {
            entries: vec![Entry::default(); count],
            free: ids.rev().map(BlockId).collect(),
            registered: HashMap::new(),
            idle: Lru::new(count),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Blocks that can be taken: free and idle ones.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that tables name.
    pub(super) fn referenced(&self) -> usize {
        self.count() - self.available()
    }

    /// Tables that name the block.
    pub(super) fn references(&self, block: BlockId) -> u32 {
        self.entries[block.index()].references
    }

    /// The block, which one table names, is to be written to: it is not found any more.
    pub(super) fn forget(&mut self, block: BlockId) {
        if let Some(hash) = self.entries[block.index()].hash.take() {
            self.registered.remove(&hash);
        }
    }

    /// A block for one table to write to: a free one, else the least recently used idle one.
    pub(super) fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop().or_else(|| self.evict())?;
        self.entries[block.index()].references = 1;
        Some(block)
    }

    fn evict(&mut self) -> Option<BlockId> {
        let block = self.idle.pop()?;
        self.forget(block);
        Some(block)
    }

    /// One more table names a referenced or idle block.
    pub(super) fn share(&mut self, block: BlockId) {
        let entry = &mut self.entries[block.index()];
        if entry.references == 0 {
            self.idle.remove(block);
        }
        entry.references += 1;
    }

    /// One table fewer names the block.
    pub(super) fn release(&mut self, block: BlockId) {
        let entry = &mut self.entries[block.index()];
        entry.references -= 1;
        match (entry.references, entry.hash) {
            (0, Some(_)) => self.idle.push(block),
            (0, None) => self.free.push(block),
            _ => {}
        }
    }

    /// The block registered under `hash`.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        self.registered.get(hash).copied()
    }

    /// A table's block is full and its KV is computed. Returns the block that the table is to name from now on: this one,
    /// or one that was registered under the same hash before, whose KV has the same bits.
    pub(super) fn register(&mut self, block: BlockId, hash: BlockHash) -> BlockId {
        match self.registered.entry(hash) {
            Place::Vacant(place) => {
                place.insert(block);
                self.entries[block.index()].hash = Some(hash);
                block
            }
            Place::Occupied(place) => {
                let first = *place.get();
                if first != block {
                    self.share(first);
                    self.release(block);
                }
                first
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_registered(&self, block: BlockId) -> bool {
        self.entries[block.index()].hash.is_some()
    }
}
