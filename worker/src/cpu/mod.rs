//! The `cpu` backend: models of the llama family on our own kernels, quantised weights times int8 activations. The default.
//! Loaded by `model::load`, driven by the engine; tested against `reference`.
//!
//! Its bits are the same on every CPU, for any number of threads, in any batch and however a prefill is cut: the kernels
//! promise it row by row ([`shoal_kernels`]), and nothing here mixes rows.

mod adapters;
mod blocks;
mod footprint;
mod model;
mod pack;

#[cfg(test)]
mod tests;

use std::num::NonZero;

use shoal_common::config::Quant;
use shoal_kernels::{Isa, KvPool, OutOfMemory, Pool};

pub use self::footprint::Footprint;
use self::model::{Model, Work};
use crate::backend::{Backend, BackendError, BadStep, BlockId, LogitsBuffer, LogitsOf, Slice, StepCheck};
use crate::weights::{ModelFile, WeightsError};

/// The arithmetic's name in the fingerprint. With weights that were quantised at load, how is added.
pub const NUMERICS_CLASS: &str = "int8";

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A tensor cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No compute threads.
    #[error("the compute threads cannot be started")]
    Threads(#[from] std::io::Error),
}

/// Everything about the arithmetic that can move a bit: how weights that are floats in the file were quantised, too.
pub fn numerics_class(file: &ModelFile, quant: Quant) -> String {
    if file.has_float_weights() { format!("{NUMERICS_CLASS}-{quant}") } else { NUMERICS_CLASS.to_owned() }
}

/// Why a step or a reservation was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    #[error(transparent)]
    Step(#[from] BadStep),
    #[error("no kv was reserved")]
    NoKv,
}

impl From<Refused> for BackendError {
    fn from(source: Refused) -> Self {
        Self { backend: "cpu", source: Box::new(source) }
    }
}

/// The `cpu` backend with one model.
#[derive(Debug)]
pub struct Cpu {
    model: Model,
    pool: Pool,
    kv: Option<KvPool>,
    check: StepCheck,
    work: Work,
    /// Rows of the step whose logits are wanted.
    wanted: Vec<usize>,
}

impl Cpu {
    /// Packs the model's weights and starts `threads` compute threads, of which the caller of a step is one. `quant` is what
    /// weights become that are not quantised in the file.
    pub fn load(file: &ModelFile, threads: NonZero<usize>, quant: Quant) -> Result<Self, CpuError> {
        Self::load_on(file, threads, quant, Isa::best())
    }

    fn load_on(file: &ModelFile, threads: NonZero<usize>, quant: Quant, isa: Isa) -> Result<Self, CpuError> {
        let mut pool = Pool::new(threads, isa)?;
        let model = Model::load(file, &mut pool, quant)?;
        let check = StepCheck::new(model.shape.vocab, model.shape.context);
        let work = model.work();
        Ok(Self { model, pool, kv: None, check, work, wanted: Vec::new() })
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.model.bytes()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.pool.isa()
    }
}

impl Backend for Cpu {
    fn kv_bytes_per_token(&self) -> u64 {
        self.model.kv_shape().bytes_per_position() as u64
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.check.reserve(blocks);
        self.kv = Some(KvPool::new(self.model.kv_shape(), blocks).map_err(Refused::from)?);
        Ok(())
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.check.check(slices).map_err(Refused::from)?;
        let kv = self.kv.as_mut().ok_or(Refused::NoKv)?;
        lay_out(slices, &mut self.work, &mut self.wanted);
        let logits = logits.reset(self.wanted.len(), self.model.shape.vocab);
        self.model.embed(slices.iter().flat_map(|slice| slice.tokens), &mut self.work);
        self.model.run(&mut self.pool, kv, slices, &mut self.work);
        if !self.wanted.is_empty() {
            self.model.logits(&mut self.pool, &mut self.work, &self.wanted, logits);
        }
        Ok(())
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check.check_copy(from, to).map_err(Refused::from)?;
        self.kv.as_mut().ok_or(Refused::NoKv)?.copy_block(from.0, to.0);
        Ok(())
    }
}

/// The rows of a step and their block tables, and which of them yield logits.
fn lay_out(slices: &[Slice<'_>], work: &mut Work, wanted: &mut Vec<usize>) {
    work.adapters.plan(slices);
    work.spans.clear();
    wanted.clear();
    for slice in slices {
        let begin = work.spans.rows();
        work.spans.push(slice.tokens.len(), slice.start, slice.blocks.iter().map(|block| block.0));
        let end = work.spans.rows();
        match slice.logits {
            LogitsOf::None => {}
            LogitsOf::Last => wanted.push(end - 1),
            LogitsOf::All => wanted.extend(begin..end),
        }
    }
}
