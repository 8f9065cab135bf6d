//! A model in stages within one process, for tests: what the stages of several machines give, without the machines.

use super::{Backend, BackendError, BlockId, LogitsBuffer, Slice};

/// Stages in order; the first has the ends.
pub(crate) struct Split {
    stages: Vec<Box<dyn Backend>>,
    rows: Vec<f32>,
}

impl Split {
    pub(crate) fn new(stages: Vec<Box<dyn Backend>>) -> Self {
        Self { stages, rows: Vec::new() }
    }
}

impl Backend for Split {
    fn kv_bytes_per_token(&self) -> u64 {
        self.stages.iter().map(|stage| stage.kv_bytes_per_token()).sum()
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.stages.iter_mut().try_for_each(|stage| stage.reserve(blocks))
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let [first, rest @ ..] = &mut self.stages[..] else { panic!("there is a stage") };
        let tokens: usize = slices.iter().map(|slice| slice.tokens.len()).sum();
        self.rows.resize(tokens * first.width(), f32::NAN);
        first.begin(slices, &mut self.rows)?;
        rest.iter_mut().try_for_each(|stage| stage.carry(slices, &mut self.rows))?;
        first.finish(slices, &self.rows, logits)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.stages.iter_mut().try_for_each(|stage| stage.copy_block(from, to))
    }
}
