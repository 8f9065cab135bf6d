//! Why the reference backend cannot load a model or refuses a step.

use crate::backend::{BackendError, SequenceId};
use crate::weights::WeightsError;

/// Why the reference backend cannot load a model or refuses a step.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A weight cannot be read.
    #[error("a weight cannot be read")]
    Weights(#[from] WeightsError),
    /// The compute threads cannot be started.
    #[error("the compute threads cannot be started")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// candle refused an operation.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// No such sequence.
    #[error("sequence {} is unknown", .0.0)]
    Unknown(SequenceId),
    /// A fork to a sequence that exists.
    #[error("sequence {} exists already", .0.0)]
    Exists(SequenceId),
    /// Two slices of one sequence.
    #[error("sequence {} is in the step twice", .0.0)]
    Twice(SequenceId),
    /// A slice without tokens.
    #[error("the slice of sequence {} has no tokens", .0.0)]
    Empty(SequenceId),
    /// A slice that does not continue its sequence.
    #[error("the slice of sequence {} starts at {start}, it holds {held} tokens", .sequence.0)]
    WrongStart {
        /// Whose slice.
        sequence: SequenceId,
        /// Where it starts.
        start: usize,
        /// Where it should start.
        held: usize,
    },
    /// A token that the embedding has no row for.
    #[error("a token of sequence {} is outside the vocabulary", .0.0)]
    OutsideVocabulary(SequenceId),
    /// A sequence longer than the model's context.
    #[error("sequence {} would be longer than the context", .0.0)]
    TooLong(SequenceId),
    /// A fork of more than there is.
    #[error("a fork of {length} tokens was asked of sequence {}, it holds {held}", .sequence.0)]
    ForkTooLong {
        /// Whose prefix.
        sequence: SequenceId,
        /// How long a prefix.
        length: usize,
        /// What it holds.
        held: usize,
    },
}

impl From<ReferenceError> for BackendError {
    fn from(source: ReferenceError) -> Self {
        Self { backend: "reference", source: Box::new(source) }
    }
}
