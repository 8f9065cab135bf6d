//! Why the reference backend cannot load a model or refuses a step.

use std::collections::TryReserveError;

use crate::backend::{BackendError, BadStep};
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
    /// The step makes no sense.
    #[error(transparent)]
    BadStep(#[from] BadStep),
    /// This stage has neither the embedding nor the output head.
    #[error("this stage has neither the embedding nor the output head")]
    InnerStage,
    /// Rows of another step, or of another model.
    #[error("{got} values are no rows of this step")]
    NotItsRows {
        /// How many came.
        got: usize,
    },
    /// There is not enough memory for the KV.
    #[error("no memory for the kv")]
    NoMemory(#[from] TryReserveError),
}

impl From<ReferenceError> for BackendError {
    fn from(source: ReferenceError) -> Self {
        Self { backend: "reference", source: Box::new(source) }
    }
}
