//! The block table of each sequence that the policy has started. Used by the engine's step alone. A fork copies every block
//! of its source: nothing is shared.

use std::collections::BTreeMap;

use crate::backend::{BLOCK_TOKENS, BlockId};
use crate::scheduler::SequenceId;

/// Bounded by the pool: the policy reserves room for whole sequences, each of which wastes less than a block.
#[derive(Debug)]
pub(super) struct Tables {
    tables: BTreeMap<SequenceId, Vec<BlockId>>,
    free: Vec<BlockId>,
}

impl Tables {
    pub(super) fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("a pool of more than 2^36 tokens fits no machine");
        Self { tables: BTreeMap::new(), free: (0..count).rev().map(BlockId).collect() }
    }

    /// Lets the sequence hold at least `positions`.
    pub(super) fn grow(&mut self, sequence: SequenceId, positions: usize) {
        let table = self.tables.entry(sequence).or_default();
        while table.len() < positions.div_ceil(BLOCK_TOKENS) {
            table.push(self.free.pop().expect("the policy reserves room for what it plans"));
        }
    }

    pub(super) fn of(&self, sequence: SequenceId) -> &[BlockId] {
        self.tables.get(&sequence).map_or(&[], Vec::as_slice)
    }

    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.free.extend(self.tables.remove(&sequence).unwrap_or_default());
    }
}
