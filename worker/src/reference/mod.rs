//! The reference backend: the llama and its relatives in f32 on candle tensors, from weights expanded to f32. The oracle that
//! faster backends are tested against, and what serves until there is one. Loaded by `model::load`, driven by the engine.
//!
//! Its bits are the same on every machine: sums have one order (`kernel`, `attention`; candle's RMS norm ascends),
//! multiply-adds are fused by definition and not at the compiler's leave, and exponentials and sines never come from the
//! platform's C library. It never looks at a sequence's neighbours in a step.

mod adapters;
mod attention;
mod error;
mod exp;
mod kernel;
mod kv;
mod linear;
mod llama;
mod rope;
mod swiglu;

#[cfg(test)]
mod tests;

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::ThreadPool;

use self::adapters::Adapters;
pub use self::error::ReferenceError;
use self::kernel::Machine;
use self::kv::KvPool;
use self::llama::{Llama, Place, StepKv};
use crate::backend::{Backend, BackendError, BlockId, LogitsBuffer, LogitsOf, Slice, StepCheck};
use crate::weights::ModelFile;

/// The arithmetic's name in the fingerprint.
pub const NUMERICS_CLASS: &str = "reference-f32";

/// The reference backend with one model.
#[derive(Debug)]
pub struct Reference {
    model: Llama,
    threads: ThreadPool,
    kv: KvPool,
    check: StepCheck,
}

impl Reference {
    /// Expands the model's weights and starts `threads` compute threads.
    pub fn load(file: &ModelFile, threads: usize) -> Result<Self, ReferenceError> {
        Self::load_stage(file, 0..file.config.layers, threads)
    }

    /// The stage of the model that hosts `layers`.
    pub fn load_stage(file: &ModelFile, layers: Range<usize>, threads: usize) -> Result<Self, ReferenceError> {
        Self::load_part(file, layers, threads, Machine::detect())
    }

    fn load_part(
        file: &ModelFile,
        layers: Range<usize>,
        threads: usize,
        machine: Machine,
    ) -> Result<Self, ReferenceError> {
        let name = |index| format!("compute-{index}");
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build()?;
        let model = threads.install(|| Llama::load(file, layers, machine))?;
        let check = StepCheck::new(model.vocab, model.context);
        Ok(Self { kv: model.pool(), model, threads, check })
    }
}

/// The rows of a step, and the indices of those whose logits are wanted.
fn lay_out(slices: &[Slice<'_>]) -> (Vec<Place>, Vec<u32>) {
    let (mut places, mut wanted) = (Vec::new(), Vec::new());
    for (at, slice) in slices.iter().enumerate() {
        let begin = places.len() as u32;
        let place = |(offset, &token)| Place { slice: at, position: slice.start + offset, token };
        places.extend(slice.tokens.iter().enumerate().map(place));
        let end = places.len() as u32;
        match slice.logits {
            LogitsOf::None => {}
            LogitsOf::Last => wanted.push(end - 1),
            LogitsOf::All => wanted.extend(begin..end),
        }
    }
    (places, wanted)
}

impl Reference {
    /// The hosted layers' output from what `begin` gives them.
    fn run(
        &mut self,
        slices: &[Slice<'_>],
        places: &[Place],
        begin: impl FnOnce(&Llama) -> Result<Tensor, ReferenceError> + Send,
    ) -> Result<Tensor, ReferenceError> {
        let mut kv = StepKv { pool: &mut self.kv, tables: slices.iter().map(|slice| slice.blocks).collect() };
        let (model, adapters) = (&self.model, Adapters::new(slices));
        self.threads.install(|| Ok(model.run(begin(model)?, (places, &adapters), &mut kv)?))
    }

    fn tell(&self, slices: &[Slice<'_>], x: &Tensor, logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let (_, wanted) = lay_out(slices);
        let logits = logits.reset(wanted.len(), self.model.vocab);
        Ok(self.threads.install(|| self.model.logits(x, &wanted, logits))?)
    }

    /// `rows` as the output of the layers before.
    fn take(&self, places: &[Place], rows: &[f32]) -> Result<Tensor, ReferenceError> {
        Ok(Tensor::from_slice(rows, (places.len(), self.model.hidden), &Device::Cpu)?)
    }
}

fn give(x: &Tensor, rows: &mut [f32]) -> Result<(), BackendError> {
    let values = x.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(ReferenceError::from)?;
    if values.len() != rows.len() {
        return Err(ReferenceError::NotItsRows { got: rows.len() }.into());
    }
    rows.copy_from_slice(&values);
    Ok(())
}

impl Backend for Reference {
    fn width(&self) -> usize {
        self.model.hidden
    }

    fn kv_bytes_per_token(&self) -> u64 {
        self.model.kv_bytes()
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.kv.reserve(blocks).map_err(ReferenceError::from)?;
        self.check.reserve(blocks);
        Ok(())
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.check.check(slices).map_err(ReferenceError::from)?;
        let (places, _) = lay_out(slices);
        let x = self.run(slices, &places, |model| model.embed(&places))?;
        self.tell(slices, &x, logits)
    }

    fn begin(&mut self, slices: &[Slice<'_>], rows: &mut [f32]) -> Result<(), BackendError> {
        self.check.check(slices).map_err(ReferenceError::from)?;
        let (places, _) = lay_out(slices);
        let x = self.run(slices, &places, |model| model.embed(&places))?;
        give(&x, rows)
    }

    fn carry(&mut self, slices: &[Slice<'_>], rows: &mut [f32]) -> Result<(), BackendError> {
        self.check.check(slices).map_err(ReferenceError::from)?;
        let (places, _) = lay_out(slices);
        let x = self.take(&places, rows)?;
        let x = self.run(slices, &places, |_| Ok(x))?;
        give(&x, rows)
    }

    fn finish(&mut self, slices: &[Slice<'_>], rows: &[f32], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let (places, _) = lay_out(slices);
        let x = self.take(&places, rows)?;
        self.tell(slices, &x, logits)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check.check_copy(from, to).map_err(ReferenceError::from)?;
        self.kv.copy(from, to);
        Ok(())
    }
}
