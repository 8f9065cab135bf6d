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
        Self::load_on(file, threads, Machine::detect())
    }

    fn load_on(file: &ModelFile, threads: usize, machine: Machine) -> Result<Self, ReferenceError> {
        let name = |index| format!("compute-{index}");
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build()?;
        let model = threads.install(|| Llama::load(file, machine))?;
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

impl Backend for Reference {
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
        let (places, wanted) = lay_out(slices);
        let logits = logits.reset(wanted.len(), self.model.vocab);
        let mut kv = StepKv { pool: &mut self.kv, tables: slices.iter().map(|slice| slice.blocks).collect() };
        let adapters = Adapters::new(slices);
        let done = self.threads.install(|| self.model.forward((&places, &adapters), &wanted, &mut kv, logits));
        Ok(done.map_err(ReferenceError::from)?)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check.check_copy(from, to).map_err(ReferenceError::from)?;
        self.kv.copy(from, to);
        Ok(())
    }
}
