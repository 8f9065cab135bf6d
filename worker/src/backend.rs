//! The seam between the engine and whatever computes logits: the candle reference, the CPU kernels, the scripted test
//! engine. The engine owns policy and sampling; a backend owns weights and KV and nothing else.
//!
//! **Numerics contract.** The logits of a position depend only on the weights and the tokens before it: not on the other
//! slices of the step, not on where a prefill was cut. Every implementation is tested for equal bits.

use shoal_common::ids::TokenId;

/// A sequence whose KV a backend holds. Drawn by the engine, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

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

/// Consecutive tokens of one sequence, computed in one step: a prefill chunk or a single decode.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// Whose KV is extended. A sequence begins with its first slice at `start` 0, or with [`Backend::fork`].
    pub sequence: SequenceId,
    /// Position of the first token; equal to the tokens the sequence holds so far.
    pub start: usize,
    /// At least one token, each below the vocabulary size.
    pub tokens: &'a [TokenId],
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
}

/// Logits of one step: rows in the order of the slices, each `[vocab]` f32, raw (before bias, penalties, temperature).
/// Reused from step to step.
#[derive(Debug, Default)]
pub struct LogitsBuffer {
    vocab: usize,
    values: Vec<f32>,
}

impl LogitsBuffer {
    /// Makes room for `rows` rows of `vocab` values and returns them to be overwritten; old values are zeroed.
    pub fn reset(&mut self, rows: usize, vocab: usize) -> &mut [f32] {
        self.vocab = vocab;
        self.values.clear();
        self.values.resize(rows * vocab, 0.0);
        &mut self.values
    }

    /// Row `index`, `[vocab]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab..(index + 1) * self.vocab]
    }
}

/// A backend that cannot go on with a step. The engine fails every group of the step and releases its sequences.
#[derive(Debug, thiserror::Error)]
#[error("the {backend} backend failed")]
pub struct BackendError {
    /// Which backend.
    pub backend: &'static str,
    /// What happened.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Computes logits and keeps KV.
pub trait Backend: Send {
    /// Bytes of KV that one token of a sequence takes.
    fn kv_bytes_per_token(&self) -> u64;

    /// Runs one step. `slices` name distinct sequences; `logits` is [`LogitsBuffer::reset`] by the backend to the sum of
    /// [`Slice::rows`] rows.
    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError>;

    /// Makes `to` a new sequence with the first `length` positions of `from`.
    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), BackendError>;

    /// Frees a sequence's KV. Releasing an unknown sequence does nothing.
    fn release(&mut self, sequence: SequenceId);
}
