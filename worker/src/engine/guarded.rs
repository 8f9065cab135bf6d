//! A backend whose panics are errors: whatever a backend does, the thread that drives it lives.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::backend::{Backend, BackendError, BlockId, KvEpoch, LogitsBuffer, Slice, Wake};

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

    /// A backend that does not know has nothing that could be read.
    pub(super) fn pin_epoch(&mut self) -> Option<KvEpoch> {
        guard(|| Ok(self.0.pin_epoch())).ok().flatten()
    }

    pub(super) fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        guard(|| self.0.forward(slices, logits))
    }

    pub(super) fn plays_for(&self) -> Duration {
        self.0.plays_for()
    }

    pub(super) fn depth(&self) -> usize {
        self.0.depth()
    }

    pub(super) fn wake_with(&mut self, wake: Wake) {
        self.0.wake_with(wake);
    }

    pub(super) fn launch(&mut self, slices: &[Slice<'_>]) -> Result<(), BackendError> {
        guard(|| self.0.launch(slices))
    }

    pub(super) fn collect(&mut self, logits: &mut LogitsBuffer) -> Option<Result<Duration, BackendError>> {
        guard(|| self.0.collect(logits).transpose()).transpose()
    }

    pub(super) fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        guard(|| self.0.copy_block(from, to))
    }
}

/// The groups of the step fail and their blocks are let go, so that no half-made state is read again.
pub(crate) fn guard<T>(call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(BackendError { backend: "panicked", source: Box::new(Panicked) }))
}
