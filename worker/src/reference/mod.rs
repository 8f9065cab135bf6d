//! The reference backend: llama-family models in f32 on candle tensors, from weights expanded to f32. The oracle that
//! faster backends are tested against, and what serves until there is one. Loaded by `model::load`, driven by the engine.
//!
//! Its bits are the same on every machine: sums have one order (`kernel`, `attention`; candle's RMS norm ascends),
//! multiply-adds are fused by definition and not at the compiler's leave, and exponentials and sines never come from the
//! platform's C library. It never looks at a sequence's neighbours in a step.

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

use std::collections::{HashMap, HashSet};

use rayon::ThreadPool;

pub use self::error::ReferenceError;
use self::kernel::Machine;
use self::kv::Sequence;
use self::llama::{Llama, Place};
use crate::backend::{Backend, BackendError, LogitsBuffer, LogitsOf, SequenceId, Slice};
use crate::weights::ModelFile;

/// The arithmetic's name in the fingerprint.
pub const NUMERICS_CLASS: &str = "reference-f32";

/// The reference backend with one model.
#[derive(Debug)]
pub struct Reference {
    model: Llama,
    pool: ThreadPool,
    sequences: HashMap<SequenceId, Sequence>,
}

impl Reference {
    /// Expands the model's weights and starts `threads` compute threads.
    pub fn load(file: &ModelFile, threads: usize) -> Result<Self, ReferenceError> {
        Self::load_on(file, threads, Machine::detect())
    }

    fn load_on(file: &ModelFile, threads: usize, machine: Machine) -> Result<Self, ReferenceError> {
        let name = |index| format!("compute-{index}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build()?;
        let model = pool.install(|| Llama::load(file, machine))?;
        Ok(Self { model, pool, sequences: HashMap::new() })
    }

    fn check(&self, slices: &[Slice<'_>]) -> Result<(), ReferenceError> {
        let mut seen = HashSet::new();
        for slice in slices {
            if !seen.insert(slice.sequence) {
                return Err(ReferenceError::Twice(slice.sequence));
            }
            self.check_slice(slice)?;
        }
        Ok(())
    }

    fn check_slice(&self, slice: &Slice<'_>) -> Result<(), ReferenceError> {
        let Slice { sequence, start, tokens, .. } = *slice;
        match self.sequences.get(&sequence).map(|held| held.length) {
            None if start > 0 => return Err(ReferenceError::Unknown(sequence)),
            Some(held) if start != held => return Err(ReferenceError::WrongStart { sequence, start, held }),
            _ => {}
        }
        if tokens.is_empty() {
            return Err(ReferenceError::Empty(sequence));
        }
        if tokens.iter().any(|token| token.index() >= self.model.vocab) {
            return Err(ReferenceError::OutsideVocabulary(sequence));
        }
        let room = self.model.context.saturating_sub(start);
        if tokens.len() > room { Err(ReferenceError::TooLong(sequence)) } else { Ok(()) }
    }
}

/// The rows of a step, and the indices of those whose logits are wanted.
fn lay_out(slices: &[Slice<'_>]) -> (Vec<Place>, Vec<u32>) {
    let (mut places, mut wanted) = (Vec::new(), Vec::new());
    for (sequence, slice) in slices.iter().enumerate() {
        let begin = places.len() as u32;
        let place = |(offset, &token)| Place { sequence, position: slice.start + offset, token };
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

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.check(slices)?;
        let (places, wanted) = lay_out(slices);
        let logits = logits.reset(wanted.len(), self.model.vocab);
        let take = |slice: &Slice<'_>| self.sequences.remove(&slice.sequence).unwrap_or_else(|| self.model.sequence());
        let mut held: Vec<Sequence> = slices.iter().map(take).collect();
        let done = self.pool.install(|| self.model.forward(&places, &wanted, &mut held, logits));
        for (slice, mut sequence) in slices.iter().zip(held) {
            // After a failure the sequence is what it was: positions past its length are overwritten when they come again.
            if done.is_ok() {
                sequence.length += slice.tokens.len();
            }
            self.sequences.insert(slice.sequence, sequence);
        }
        Ok(done.map_err(ReferenceError::from)?)
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), BackendError> {
        let source = self.sequences.get(&from).ok_or(ReferenceError::Unknown(from))?;
        if self.sequences.contains_key(&to) {
            return Err(ReferenceError::Exists(to).into());
        }
        if length > source.length {
            return Err(ReferenceError::ForkTooLong { sequence: from, length, held: source.length }.into());
        }
        let prefix = source.prefix(length);
        self.sequences.insert(to, prefix);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
}
