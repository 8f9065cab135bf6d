//! A backend whose panics are errors: whatever a backend does, the engine's thread lives. Used by the engine alone.

use std::panic::{AssertUnwindSafe, catch_unwind};

use shoal_common::telemetry::Chain;

use crate::backend::{Backend, BackendError, LogitsBuffer, SequenceId, Slice};

/// The backend panicked; the panic hook has told where.
#[derive(Debug, thiserror::Error)]
#[error("it panicked")]
struct Panicked;

/// The engine's view of its backend.
pub(super) struct Guarded(Box<dyn Backend>);

impl Guarded {
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        Self(backend)
    }

    pub(super) fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        guard(|| self.0.forward(slices, logits))
    }

    pub(super) fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), BackendError> {
        guard(|| self.0.fork(from, to, length))
    }

    pub(super) fn release(&mut self, sequence: SequenceId) {
        let released = guard(|| {
            self.0.release(sequence);
            Ok(())
        });
        if let Err(error) = released {
            tracing::error!(error = %Chain(&error), "a sequence could not be released");
        }
    }
}

/// The groups of the step fail and their sequences are released, so that no half-made state is used again.
fn guard<T>(call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(BackendError { backend: "panicked", source: Box::new(Panicked) }))
}
