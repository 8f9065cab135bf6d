//! What every backend asks of a step before it computes: the one check that all of them use, so that none is laxer than
//! another. Knows tables and counts, never KV.

use super::{BLOCK_TOKENS, BlockId, Slice};

/// Why a step or a copy makes no sense. Slices are named by their place in the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStep {
    /// A slice without tokens.
    #[error("slice {slice} has no tokens")]
    Empty {
        /// Which slice.
        slice: usize,
    },
    /// A token that the embedding has no row for.
    #[error("a token of slice {slice} is outside the vocabulary")]
    OutsideVocabulary {
        /// Which slice.
        slice: usize,
    },
    /// Positions past the model's context.
    #[error("slice {slice} goes beyond the context")]
    BeyondContext {
        /// Which slice.
        slice: usize,
    },
    /// A table that does not cover its slice's positions.
    #[error("the table of slice {slice} is too short")]
    TableTooShort {
        /// Which slice.
        slice: usize,
    },
    /// A block that was not reserved.
    #[error("block {} is outside the pool", .0.0)]
    OutsidePool(BlockId),
    /// A block that one slice writes to, and another slice or another place of the same table names too.
    #[error("block {} is written to and named twice", .0.0)]
    Clobbered(BlockId),
    /// A copy of a block onto itself.
    #[error("block {} was to be copied onto itself", .0.0)]
    CopiedOntoItself(BlockId),
}

/// The check, with what it needs to know of the backend. Allocates in [`StepCheck::reserve`] only.
#[derive(Debug)]
pub struct StepCheck {
    vocab: usize,
    context: usize,
    /// Steps checked so far.
    step: u64,
    /// For each block of the pool, the last step that was to write to it: marks need not be wiped.
    written_in: Vec<u64>,
}

impl StepCheck {
    /// For a model with `vocab` tokens and a context of `context` positions; no block is reserved yet.
    pub fn new(vocab: usize, context: usize) -> Self {
        Self { vocab, context, step: 0, written_in: Vec::new() }
    }

    /// The pool has this many blocks.
    pub fn reserve(&mut self, blocks: usize) {
        self.written_in = vec![0; blocks];
    }

    /// Whether a backend can compute `slices`. Time is linear in the tokens and the tables' lengths.
    pub fn check(&mut self, slices: &[Slice<'_>]) -> Result<(), BadStep> {
        self.step += 1;
        slices.iter().enumerate().try_for_each(|(at, slice)| self.check_alone(at, slice))?;
        slices.iter().try_for_each(|slice| self.mark_written(slice))?;
        slices.iter().try_for_each(|slice| self.check_read(slice))
    }

    /// Whether a backend can copy `from` to `to`.
    pub fn check_copy(&self, from: BlockId, to: BlockId) -> Result<(), BadStep> {
        self.check_block(from)?;
        self.check_block(to)?;
        if from == to { Err(BadStep::CopiedOntoItself(to)) } else { Ok(()) }
    }

    fn check_alone(&self, at: usize, slice: &Slice<'_>) -> Result<(), BadStep> {
        if slice.tokens.is_empty() {
            return Err(BadStep::Empty { slice: at });
        }
        if slice.tokens.iter().any(|token| token.index() >= self.vocab) {
            return Err(BadStep::OutsideVocabulary { slice: at });
        }
        if slice.tokens.len() > self.context.saturating_sub(slice.start) {
            return Err(BadStep::BeyondContext { slice: at });
        }
        if slice.blocks.len() < slice.end().div_ceil(BLOCK_TOKENS) {
            return Err(BadStep::TableTooShort { slice: at });
        }
        table(slice).iter().try_for_each(|block| self.check_block(*block))
    }

    fn check_block(&self, block: BlockId) -> Result<(), BadStep> {
        if block.index() < self.written_in.len() { Ok(()) } else { Err(BadStep::OutsidePool(block)) }
    }

    /// No block is written to twice.
    fn mark_written(&mut self, slice: &Slice<'_>) -> Result<(), BadStep> {
        for block in &table(slice)[slice.start / BLOCK_TOKENS..] {
            let last = std::mem::replace(&mut self.written_in[block.index()], self.step);
            if last == self.step {
                return Err(BadStep::Clobbered(*block));
            }
        }
        Ok(())
    }

    /// What a slice only reads is written by nobody, itself included.
    fn check_read(&self, slice: &Slice<'_>) -> Result<(), BadStep> {
        let read = &table(slice)[..slice.start / BLOCK_TOKENS];
        match read.iter().find(|block| self.written_in[block.index()] == self.step) {
            Some(block) => Err(BadStep::Clobbered(*block)),
            None => Ok(()),
        }
    }
}

/// The blocks that the slice looks at.
fn table<'a>(slice: &Slice<'a>) -> &'a [BlockId] {
    &slice.blocks[..slice.end().div_ceil(BLOCK_TOKENS)]
}
