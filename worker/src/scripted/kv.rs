//! The scripted engine's KV: the tokens themselves, in the blocks of a pool like any backend's, and the adapter that each block
//! was computed with. Answers are computed from them anew at every step, so that a block that was handed to two sequences, or
//! read before it was written, changes what is said.

use std::collections::TryReserveError;

use shoal_common::ids::{Generation, TokenId};

use crate::backend::{BLOCK_TOKENS, BlockId, Slice};

/// Stands where nothing was written: no token of the vocabulary.
const NOTHING: TokenId = TokenId(u32::MAX);

/// A sequence's tokens, and what it runs with.
#[derive(Clone, Copy, Debug)]
struct Block {
    tokens: [TokenId; BLOCK_TOKENS],
    adapter: Option<Generation>,
}

/// All blocks.
#[derive(Debug, Default)]
pub(super) struct Pool(Vec<Block>);

impl Pool {
    /// Bytes of a token.
    pub(super) const BYTES_PER_TOKEN: u64 = size_of::<TokenId>() as u64;

    /// Makes `blocks` blocks.
    pub(super) fn reserve(&mut self, blocks: usize) -> Result<(), TryReserveError> {
        self.0.try_reserve_exact(blocks)?;
        self.0.resize(blocks, Block { tokens: [NOTHING; BLOCK_TOKENS], adapter: None });
        Ok(())
    }

    /// Whether all that the slice builds on was computed with its adapter.
    pub(super) fn fits(&self, slice: &Slice<'_>) -> bool {
        let before = &slice.blocks[..slice.start.div_ceil(BLOCK_TOKENS)];
        before.iter().all(|block| self.0[block.index()].adapter == adapter(slice))
    }

    /// Stores the tokens of a slice at their positions.
    pub(super) fn write(&mut self, slice: &Slice<'_>) {
        for (position, token) in (slice.start..).zip(slice.tokens) {
            let block = &mut self.0[slice.blocks[position / BLOCK_TOKENS].index()];
            block.tokens[position % BLOCK_TOKENS] = *token;
            block.adapter = adapter(slice);
        }
    }

    /// The tokens from position `from` on, as far as the table goes.
    pub(super) fn read(&self, blocks: &[BlockId], from: usize) -> impl Iterator<Item = TokenId> {
        let held = blocks[from / BLOCK_TOKENS..].iter().flat_map(|block| self.0[block.index()].tokens);
        held.skip(from % BLOCK_TOKENS)
    }

    /// Copies a block.
    pub(super) fn copy(&mut self, from: BlockId, to: BlockId) {
        self.0[to.index()] = self.0[from.index()];
    }
}

/// What a slice is computed with.
pub(super) fn adapter(slice: &Slice<'_>) -> Option<Generation> {
    slice.adapter.map(|adapter| adapter.generation())
}
