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
use std::ops::Range;

use shoal_common::config::Quant;
use shoal_kernels::{Isa, KvPool, OutOfMemory, Pool, Precision};

pub use self::footprint::{Footprint, costs};
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
    #[error("this stage has neither the embedding nor the output head")]
    InnerStage,
    #[error("{got} values are no rows of this step")]
    NotItsRows { got: usize },
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
        Self::load_stage(file, 0..file.config.layers, threads, quant)
    }

    /// The stage of the model that hosts `layers`.
    pub fn load_stage(
        file: &ModelFile,
        layers: Range<usize>,
        threads: NonZero<usize>,
        quant: Quant,
    ) -> Result<Self, CpuError> {
        Self::load_part(file, layers, Pool::new(threads, Isa::best())?, quant)
    }

    fn load_part(file: &ModelFile, layers: Range<usize>, mut pool: Pool, quant: Quant) -> Result<Self, CpuError> {
        let model = Model::load(file, layers, &mut pool, quant)?;
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

    /// The hosted layers' output of a step that was checked, in `work.x`.
    fn embed_and_run(&mut self, slices: &[Slice<'_>]) -> Result<(), Refused> {
        let kv = self.kv.as_mut().ok_or(Refused::NoKv)?;
        let ends = self.model.ends.as_ref().ok_or(Refused::InnerStage)?;
        lay_out(slices, &mut self.work, &mut self.wanted);
        ends.embed(slices.iter().flat_map(|slice| slice.tokens), &mut self.work);
        self.model.run(&mut self.pool, kv, slices, &mut self.work);
        Ok(())
    }

    /// The logits of the step's wanted rows, from `work.x`.
    fn tell(&mut self, logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let ends = self.model.ends.as_ref().ok_or(Refused::InnerStage)?;
        let logits = logits.reset(self.wanted.len(), self.model.shape.vocab);
        if !self.wanted.is_empty() {
            ends.logits(&mut self.pool, &mut self.work, &self.wanted, logits);
        }
        Ok(())
    }
}

impl Backend for Cpu {
    fn kv_bytes_per_token(&self) -> u64 {
        self.model.kv_shape().bytes_per_position() as u64
    }

    /// Weights and activations have fewer bits than that.
    fn adapter_precision(&self) -> Precision {
        Precision::Fixed16
    }

    fn width(&self) -> usize {
        self.model.shape.hidden
    }

    fn rows_together(&self) -> NonZero<usize> {
        self.pool.isa().rows_together()
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.check.reserve(blocks);
        self.kv = Some(KvPool::new(self.model.kv_shape(), blocks).map_err(Refused::from)?);
        Ok(())
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.check.check(slices).map_err(Refused::from)?;
        self.embed_and_run(slices)?;
        self.tell(logits)
    }

    fn begin(&mut self, slices: &[Slice<'_>], rows: &mut [f32]) -> Result<(), BackendError> {
        self.check.check(slices).map_err(Refused::from)?;
        self.embed_and_run(slices)?;
        Ok(self.work.give(rows)?)
    }

    fn carry(&mut self, slices: &[Slice<'_>], rows: &mut [f32]) -> Result<(), BackendError> {
        self.check.check(slices).map_err(Refused::from)?;
        let kv = self.kv.as_mut().ok_or(Refused::NoKv)?;
        lay_out(slices, &mut self.work, &mut self.wanted);
        self.work.take(rows)?;
        self.model.run(&mut self.pool, kv, slices, &mut self.work);
        Ok(self.work.give(rows)?)
    }

    fn finish(&mut self, slices: &[Slice<'_>], rows: &[f32], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        lay_out(slices, &mut self.work, &mut self.wanted);
        self.work.take(rows)?;
        self.tell(logits)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check.check_copy(from, to).map_err(Refused::from)?;
        self.kv.as_mut().ok_or(Refused::NoKv)?.copy_block(from.0, to.0);
        Ok(())
    }
}

impl Work {
    /// Takes `rows`, `[rows of the step, hidden]`, for the output of the layers before.
    fn take(&mut self, rows: &[f32]) -> Result<(), Refused> {
        let width = self.begin_rows(rows.len())?;
        rows.chunks_exact(width).enumerate().for_each(|(at, row)| self.x.row_mut(at).copy_from_slice(row));
        Ok(())
    }

    /// Gives the output of the layers to `rows`, of the same shape.
    fn give(&mut self, rows: &mut [f32]) -> Result<(), Refused> {
        let width = self.begin_rows(rows.len())?;
        rows.chunks_exact_mut(width).enumerate().for_each(|(at, row)| row.copy_from_slice(self.x.row(at)));
        Ok(())
    }

    /// The width of a row, if `values` are as many as the step has.
    fn begin_rows(&mut self, values: usize) -> Result<usize, Refused> {
        let (rows, width) = (self.spans.rows(), self.x.width());
        if rows * width != values {
            return Err(Refused::NotItsRows { got: values });
        }
        self.x.resize(rows);
        Ok(width)
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
