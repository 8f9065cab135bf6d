//! The scripted engine's KV: the tokens themselves, in the blocks of a pool like any backend's. Answers are computed from
//! them anew at every step, so that a block that was handed to two sequences, or read before it was written, changes what
//! is said.

use std::collections::TryReserveError;

use shoal_common::ids::TokenId;

use crate::backend::{BLOCK_TOKENS, BlockId, Slice};

/// Stands where nothing was written: no token of the vocabulary.
const NOTHING: TokenId = TokenId(u32::MAX);

/// All blocks.
#[derive(Debug, Default)]
pub(super) struct Pool(Vec<[TokenId; BLOCK_TOKENS]>);

impl Pool {
    /// Bytes of a token.
    pub(super) const BYTES_PER_TOKEN: u64 = size_of::<TokenId>() as u64;

    /// Makes `blocks` blocks.
    pub(super) fn reserve(&mut self, blocks: usize) -> Result<(), TryReserveError> {
        self.0.try_reserve_exact(blocks)?;
        self.0.resize(blocks, [NOTHING; BLOCK_TOKENS]);
        Ok(())
    }

    /// Stores the tokens of a slice at their positions.
    pub(super) fn write(&mut self, slice: &Slice<'_>) {
        for (position, token) in (slice.start..).zip(slice.tokens) {
            self.0[slice.blocks[position / BLOCK_TOKENS].index()][position % BLOCK_TOKENS] = *token;
        }
    }

    /// The tokens from position `from` on, as far as the table goes.
    pub(super) fn read(&self, blocks: &[BlockId], from: usize) -> impl Iterator<Item = TokenId> {
        let held = blocks[from / BLOCK_TOKENS..].iter().flat_map(|block| self.0[block.index()]);
        held.skip(from % BLOCK_TOKENS)
    }

    /// Copies a block.
    pub(super) fn copy(&mut self, from: BlockId, to: BlockId) {
        self.0[to.index()] = self.0[from.index()];
    }
}
