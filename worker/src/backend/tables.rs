//! Block tables for tests that drive a backend directly: named sequences, the blocks they hold, forks that share full
//! blocks. The simplest bookkeeping that keeps the rules of [`Slice`]; freed blocks are handed out again at once, so that a
//! backend that leans on what a block held before is found out.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_common::ids::TokenId;

use super::{BLOCK_TOKENS, Backend, BackendError, BlockId, LogitsOf, Slice};
use crate::adapters::Adapter;

/// A sequence of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(u64);

/// Who holds which blocks of a pool.
#[derive(Debug)]
pub(crate) struct Tables {
    tables: BTreeMap<Name, Vec<BlockId>>,
    /// Of the sequences that have one.
    adapters: BTreeMap<Name, Arc<Adapter>>,
    /// Tables that name each block of the pool.
    references: Vec<usize>,
    /// Freed last, handed out first.
    free: Vec<BlockId>,
    named: u64,
}

impl Tables {
    /// Makes a pool of `blocks` in `backend`.
    pub(crate) fn reserve(backend: &mut dyn Backend, blocks: usize) -> Self {
        backend.reserve(blocks).unwrap();
        let free = (0..blocks as u32).rev().map(BlockId).collect();
        Self { tables: BTreeMap::new(), adapters: BTreeMap::new(), references: vec![0; blocks], free, named: 0 }
    }

    /// A new sequence without blocks.
    pub(crate) fn name(&mut self) -> Name {
        self.named += 1;
        let name = Name(self.named);
        self.tables.insert(name, Vec::new());
        name
    }

    /// A new sequence without blocks, all of whose slices have this adapter.
    pub(crate) fn name_with(&mut self, adapter: Option<&Arc<Adapter>>) -> Name {
        let name = self.name();
        self.adapters.extend(adapter.map(|adapter| (name, adapter.clone())));
        name
    }

    /// Lets the sequence hold at least `positions`.
    pub(crate) fn grow(&mut self, name: Name, positions: usize) {
        while self.tables[&name].len() < positions.div_ceil(BLOCK_TOKENS) {
            let block = self.take();
            self.tables.get_mut(&name).unwrap().push(block);
        }
    }

    /// The slice that computes `tokens` from `start` on. [`Tables::grow`] has made room.
    pub(crate) fn slice<'a>(&'a self, name: Name, start: usize, tokens: &'a [TokenId], logits: LogitsOf) -> Slice<'a> {
        let adapter = self.adapters.get(&name).map(Arc::as_ref);
        Slice { start, tokens, blocks: &self.tables[&name], adapter, logits }
    }

    /// A new sequence with the first `length` positions of `from`, and its adapter: full blocks are shared, a last one that
    /// is not full is copied.
    pub(crate) fn fork(&mut self, backend: &mut dyn Backend, from: Name, length: usize) -> Result<Name, BackendError> {
        let mut table = self.tables[&from][..length / BLOCK_TOKENS].to_vec();
        table.iter().for_each(|block| self.references[block.index()] += 1);
        if !length.is_multiple_of(BLOCK_TOKENS) {
            let (partial, copy) = (self.tables[&from][length / BLOCK_TOKENS], self.take());
            backend.copy_block(partial, copy)?;
            table.push(copy);
        }
        let name = self.name_with(self.adapters.get(&from).cloned().as_ref());
        self.tables.insert(name, table);
        Ok(name)
    }

    /// Forgets the sequence.
    pub(crate) fn release(&mut self, name: Name) {
        self.adapters.remove(&name);
        for block in self.tables.remove(&name).unwrap() {
            self.references[block.index()] -= 1;
            if self.references[block.index()] == 0 {
                self.free.push(block);
            }
        }
    }

    fn take(&mut self) -> BlockId {
        let block = self.free.pop().expect("the test's pool is large enough");
        self.references[block.index()] += 1;
        block
    }
}
