//! Which replica has a prompt's beginning in its cache: what this router remembers of the prompts that it sent, by the same
//! block hashes that the workers' caches are keyed by. A hint: a worker that has lost a block computes it. Pure.
//!
//! Two bounds keep the memory honest. Of one replica, only as many blocks are believed as its cache holds: each of its
//! blocks has a number, and one that as many newer ones have followed is taken for evicted. Over all, blocks are kept in
//! two halves; when the young one is full it becomes the old one, which is dropped: what was not met again is gone.

use std::collections::HashMap;
use std::sync::Arc;

use shoal_common::block_hash::{BLOCK_TOKENS, BlockHash};

use super::{Replica, Seat};

/// Blocks in each half: together a million tokens, in 8 MB.
const HALF: usize = 32_768;

/// Replicas remembered of one block. With more, the oldest is forgotten: the others have it as well.
const SEATS: usize = 4;

/// Blocks of one prompt that are looked at, at most: 32,768 tokens, 0.3 ms of hashing.
pub const LOOKED_AT: usize = 2048;

/// Tokens of a prompt that replicas are believed to have computed. Those that are not named have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlaps(Vec<(Seat, u64)>);

impl Overlaps {
    /// Overlaps that are known.
    pub fn new(known: Vec<(Seat, u64)>) -> Self {
        Self(known)
    }

    /// Tokens that `seat` has.
    pub fn tokens(&self, seat: Seat) -> u64 {
        self.0.iter().find(|(known, _)| *known == seat).map_or(0, |(_, tokens)| *tokens)
    }
}

/// Who has a block, each with the block's number among its own; the newest last.
#[derive(Clone, Debug, Default)]
struct Holders(Vec<(Seat, u64)>);

impl Holders {
    fn add(&mut self, seat: Seat, number: u64) {
        self.0.retain(|(known, _)| *known != seat);
        if self.0.len() == SEATS {
            self.0.remove(0);
        }
        self.0.push((seat, number));
    }

    fn has(&self, replica: &Replica) -> bool {
        let held = replica.capacity.kv_tokens / BLOCK_TOKENS as u64;
        let is_there = |number: u64| replica.outstanding.blocks().saturating_sub(number) < held;
        self.0.iter().any(|(seat, number)| *seat == replica.seat && is_there(*number))
    }
}

/// Blocks by replica. At most 65,536, in two halves.
#[derive(Debug, Default)]
pub struct Prefixes {
    young: HashMap<BlockHash, Holders>,
    old: HashMap<BlockHash, Holders>,
}

impl Prefixes {
    /// A prompt with these blocks was sent to `replica`.
    pub fn sent(&mut self, blocks: &[BlockHash], replica: &Replica) {
        let is_new = |block: &&BlockHash| !self.holders(block).is_some_and(|holders| holders.has(replica));
        let new = blocks.iter().filter(is_new).count() as u64;
        let number = replica.outstanding.add_blocks(new);
        for block in blocks {
            let mut holders = self.young.remove(block).or_else(|| self.old.remove(block)).unwrap_or_default();
            holders.add(replica.seat, number);
            if self.young.len() == HALF {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(*block, holders);
        }
    }

    /// Tokens from the prompt's beginning that each of `replicas` is believed to have.
    pub fn overlaps(&self, blocks: &[BlockHash], replicas: &[Arc<Replica>]) -> Overlaps {
        let mut having: Vec<&Arc<Replica>> = replicas.iter().collect();
        let mut known = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let tokens = (index * BLOCK_TOKENS) as u64;
            let holders = self.holders(block);
            having.retain(|replica| {
                let has = holders.is_some_and(|holders| holders.has(replica));
                if !has && tokens > 0 {
                    known.push((replica.seat, tokens));
                }
                has
            });
            if having.is_empty() {
                break;
            }
        }
        let all = (blocks.len() * BLOCK_TOKENS) as u64;
        known.extend(having.iter().filter(|_| all > 0).map(|replica| (replica.seat, all)));
        Overlaps(known)
    }

    /// Blocks remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether no block is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn holders(&self, block: &BlockHash) -> Option<&Holders> {
        self.young.get(block).or_else(|| self.old.get(block))
    }
}
