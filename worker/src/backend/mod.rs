//! The seam between the engine and whatever computes logits: the candle reference, the CPU kernels, the scripted test
//! engine. A backend is weights and a pool of KV blocks, and nothing else: which block belongs to whom, what is shared and
//! what is free is the policy's ([`crate::scheduler`]), and tokens are drawn by the engine. `check` is what every backend
//! asks of a step before it computes.
//!
//! **Numerics contract.** The logits of a position depend only on the weights and the tokens before it: not on the other
//! slices of the step, not on where a prefill was cut, not on which blocks of the pool hold its KV or what they held
//! before. Every implementation is tested for equal bits.

#[cfg(test)]
pub(crate) mod bench;
mod check;
#[cfg(test)]
pub(crate) mod contract;
#[cfg(test)]
pub(crate) mod split;
#[cfg(test)]
pub(crate) mod tables;
#[cfg(test)]
mod tests;

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

pub use shoal_common::block_hash::BLOCK_TOKENS;
use shoal_common::ids::TokenId;
use shoal_kernels::Precision;

pub use check::{BadStep, StepCheck};

use crate::adapters::Adapter;

/// A block of KV in the backend's pool: keys and values of [`BLOCK_TOKENS`] consecutive positions in every layer. Below the
/// number of blocks that were reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The block as an index into the pool.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// For which tokens of a slice logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsOf {
    /// None: an inner chunk of a prefill.
    None,
    /// The last token: one row.
    Last,
    /// Every token: as many rows as tokens.
    All,
}

/// Consecutive tokens of one sequence, computed in one step: a prefill chunk or a single decode. The KV of the positions
/// before `start` is in the blocks already; that of `start..start + tokens.len()` is written by the step.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// Position of the first token in its sequence.
    pub start: usize,
    /// At least one token, each below the vocabulary size.
    pub tokens: &'a [TokenId],
    /// The sequence's block table: `blocks[i]` holds the positions `BLOCK_TOKENS * i..BLOCK_TOKENS * (i + 1)`. Covers at
    /// least `0..start + tokens.len()`; what comes after that is not looked at. No other slice of the step names a block
    /// that this one writes to; blocks that are only read may be shared.
    pub blocks: &'a [BlockId],
    /// What is added to the model's linear layers; absent: nothing. All of a sequence's slices have the same, for its KV
    /// depends on it too.
    pub adapter: Option<&'a Adapter>,
    /// Which rows to produce.
    pub logits: LogitsOf,
}

impl Slice<'_> {
    /// Rows of logits this slice asks for.
    pub fn rows(&self) -> usize {
        match self.logits {
            LogitsOf::None => 0,
            LogitsOf::Last => 1,
            LogitsOf::All => self.tokens.len(),
        }
    }

    /// One past the last position, `start + tokens.len()`.
    pub fn end(&self) -> usize {
        self.start + self.tokens.len()
    }
}

/// Logits of one step: rows in the order of the slices, each `[vocab]` f32, raw (before bias, penalties, temperature).
/// Reused from step to step; grows to the largest step so far and then allocates no more.
#[derive(Debug, Default)]
pub struct LogitsBuffer {
    vocab: usize,
    rows: usize,
    values: Vec<f32>,
}

impl LogitsBuffer {
    /// Makes room for `rows` rows of `vocab` values and returns them, `[rows, vocab]`, to be overwritten: all of them, for
    /// what they hold are the values of earlier steps.
    pub fn reset(&mut self, rows: usize, vocab: usize) -> &mut [f32] {
        (self.rows, self.vocab) = (rows, vocab);
        if self.values.len() < rows * vocab {
            self.values.resize(rows * vocab, 0.0);
        }
        &mut self.values[..rows * vocab]
    }

    /// Row `index`, `[vocab]`, below the rows of the last reset.
    pub fn row(&self, index: usize) -> &[f32] {
        assert!(index < self.rows, "row {index} of {} rows", self.rows);
        &self.values[index * self.vocab..(index + 1) * self.vocab]
    }
}

/// A backend that cannot go on with a step. The engine fails every group of the step; nothing that the step wrote is read
/// again before it is written anew.
#[derive(Debug, thiserror::Error)]
#[error("the {backend} backend failed")]
pub struct BackendError {
    /// Which backend.
    pub backend: &'static str,
    /// What happened.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A life of the pool's content, see [`Backend::pin_epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvEpoch(pub u64);

/// Called from any thread when [`Backend::collect`] may have something that it had not before.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The backend hosts whole models only.
#[derive(Debug, thiserror::Error)]
#[error("it cannot host a part of a model")]
struct NotSplit;

fn not_split() -> BackendError {
    BackendError { backend: "whole", source: Box::new(NotSplit) }
}

/// Computes logits over a pool of KV blocks: a whole model, or the stage of one. The first stage has the embedding, the output
/// head and the first layers; the others have layers only. A step of a whole model is [`Backend::forward`]; of one that is
/// split, [`Backend::begin`] on the first stage, [`Backend::carry`] on each of the others in turn, and
/// [`Backend::finish`] on the first again, to the same bits.
pub trait Backend: Send {
    /// Bytes of KV that one token of a sequence takes in the hosted layers.
    fn kv_bytes_per_token(&self) -> u64;

    /// Values of a row between the layers; 0 where the backend hosts whole models only.
    fn width(&self) -> usize {
        0
    }

    /// What may be lost of the numbers of the adapters that it is to compute with. What it says is part of its numerics class.
    fn adapter_precision(&self) -> Precision {
        Precision::Exact
    }

    /// Makes the pool; called once, before the first step. `blocks` times [`BLOCK_TOKENS`] times
    /// [`Backend::kv_bytes_per_token`] bytes, at once or as blocks are first written to. Fails when that much cannot be
    /// had.
    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError>;

    /// Which life the pool's content has now; `None` while nothing can be computed. Steps and copies are of the life that was
    /// pinned last, and one that comes after that life's end fails: what was computed before another life can never be read.
    /// Asked before each step is planned. A backend on one machine has one life.
    fn pin_epoch(&mut self) -> Option<KvEpoch> {
        Some(KvEpoch(0))
    }

    /// Runs one step. `logits` is [`LogitsBuffer::reset`] by the backend to the sum of [`Slice::rows`] rows. A step that
    /// [`StepCheck`] refuses is an error and changes nothing; after any other error the KV of the positions that the step
    /// was to write is undefined, and that of all others is what it was.
    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError>;

    /// How much longer than its computing the last step is to take: what a backend that plays a slower machine says. Whoever
    /// runs the engine waits for it, in the time it runs in, before anything of the step is told.
    fn plays_for(&self) -> Duration {
        Duration::ZERO
    }

    /// Steps that are worth being under way at once. With 1 they are run by [`Backend::forward`], one after the other; with
    /// more, by [`Backend::launch`] and [`Backend::collect`], for the backend is several machines.
    fn depth(&self) -> usize {
        1
    }

    /// Rows of a step that cost about as much together as one of them. Asked once, before the first step.
    fn rows_together(&self) -> NonZero<usize> {
        NonZero::<usize>::MIN
    }

    /// Whom to wake when a launched step is back. Told once, before the first one.
    fn wake_with(&mut self, _wake: Wake) {}

    /// Begins a step, and returns while it is under way. Steps and copies have their effects in the order in which they were
    /// begun, as if each had ended before the next began: what a later one reads, an earlier one has written.
    fn launch(&mut self, _slices: &[Slice<'_>]) -> Result<(), BackendError> {
        Err(not_split())
    }

    /// Ends the oldest step that was launched, if it is back, and as [`Backend::forward`] does; tells what it took where it took
    /// longest. An epoch's end is the end of all steps that are under way: none of them is told.
    fn collect(&mut self, _logits: &mut LogitsBuffer) -> Option<Result<Duration, BackendError>> {
        None
    }

    /// Begins a step on the first stage: its layers' output goes to `rows`, `[tokens of all slices, width]`.
    fn begin(&mut self, _slices: &[Slice<'_>], _rows: &mut [f32]) -> Result<(), BackendError> {
        Err(not_split())
    }

    /// Carries `rows`, as [`Backend::begin`] leaves them, through the hosted layers. The slices' tokens are not looked at, but
    /// counted.
    fn carry(&mut self, _slices: &[Slice<'_>], _rows: &mut [f32]) -> Result<(), BackendError> {
        Err(not_split())
    }

    /// Ends a step on the first stage: logits of the rows that came from the last one, as [`Backend::forward`] gives them.
    fn finish(&mut self, _slices: &[Slice<'_>], _rows: &[f32], _logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        Err(not_split())
    }

    /// Copies a whole block's KV in the hosted layers: the last block of a fork's prompt, when it is not full. Positions that `from` never held
    /// are undefined in `to` as well.
    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError>;
}
