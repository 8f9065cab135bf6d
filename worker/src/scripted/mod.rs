//! The scripted engine: a [`Backend`] without weights, for fast and exact tests of everything around the engine. The logits
//! of a position are a hash of the adapter and of all tokens before it, so every mistake in feeding, forking or resuming a
//! sequence, or in which adapter it runs with, changes the answer. `kv` holds the tokens, `text` says what is answered, `tokenizer` how that is spelled.
//!
//! It checks its caller as strictly as a real backend would, and a refused step changes nothing.

mod kv;
mod text;
mod tokenizer;

#[cfg(test)]
mod tests;

use std::collections::TryReserveError;
use std::time::Duration;

use shoal_common::adapter::Geometry;
use shoal_common::config::{Faults, Script};
use shoal_common::ids::{Digest, TokenId};

use crate::backend::{Backend, BackendError, BadStep, BlockId, LogitsBuffer, Slice, StepCheck};
use kv::Pool;
use text::{State, write_logits};
pub use text::{greedy, logits};
pub use tokenizer::{BOS, EOS, VOCAB, bundle};

/// With [`Faults::On`], a step in which a sequence's text comes to end in this fails.
pub const FAIL_TRIGGER: &str = "!!fail!!";
/// With [`Faults::On`], a step in which a sequence's text comes to end in this takes [`Script::hang`].
pub const HANG_TRIGGER: &str = "!!hang!!";
/// With [`Faults::On`], a step in which a sequence's text comes to end in this ends the process, as a bug in a kernel would.
pub const CRASH_TRIGGER: &str = "!!crash!!";

/// The model that adapters of the scripted engine must fit, as it has no layers of its own: a tiny llama.
pub const GEOMETRY: Geometry = Geometry { layers: 4, hidden: 64, intermediate: 160, queries: 64, keys: 32 };

/// Identity of the answers: what stands for the BLAKE3 of the weights. Step time, context and faults are not part of it.
pub fn digest(script: &Script) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"shoal scripted engine 1");
    hasher.update(&script.salt.to_le_bytes());
    hasher.update(&script.eos_every.map_or(0, |every| every.get()).to_le_bytes());
    Digest(*hasher.finalize().as_bytes())
}

/// Why the pool was not made, or a step or a copy refused.
#[derive(Debug, thiserror::Error)]
enum ScriptedError {
    #[error(transparent)]
    BadStep(#[from] BadStep),
    #[error("slice {0} goes on where another adapter, or none, began")]
    OtherAdapter(usize),
    #[error("no memory for the kv")]
    NoMemory(#[from] TryReserveError),
    #[error("the script says so")]
    Scripted,
}

impl From<ScriptedError> for BackendError {
    fn from(source: ScriptedError) -> Self {
        Self { backend: "scripted", source: Box::new(source) }
    }
}

/// The scripted engine.
#[derive(Debug)]
pub struct Scripted {
    script: Script,
    pool: Pool,
    check: StepCheck,
    /// What the last step is to take.
    lasts: Duration,
}

impl Scripted {
    /// An engine without a pool yet.
    pub fn new(script: &Script) -> Self {
        let check = StepCheck::new(VOCAB, script.context as usize);
        Self { script: *script, pool: Pool::default(), check, lasts: Duration::ZERO }
    }

    /// The fault that this step has to play: a slice completes a trigger.
    fn planned_fault(&self, slices: &[Slice<'_>]) -> Option<Fault> {
        let completes = |slice: &Slice<'_>, trigger: &str| {
            let from = slice.start.saturating_sub(trigger.len() - 1);
            let before = self.pool.read(slice.blocks, from).take(slice.start - from);
            let text: Vec<TokenId> = before.chain(slice.tokens.iter().copied()).collect();
            let spells = |window: &[TokenId]| window.iter().map(|token| token.0).eq(trigger.bytes().map(u32::from));
            text.windows(trigger.len()).any(spells)
        };
        let planned = |(trigger, fault)| slices.iter().any(|slice| completes(slice, trigger)).then_some(fault);
        match self.script.faults {
            Faults::Off => None,
            Faults::On => TRIGGERS.into_iter().find_map(planned),
        }
    }
}

/// What a text in a sequence does.
const TRIGGERS: [(&str, Fault); 3] =
    [(FAIL_TRIGGER, Fault::Fail), (HANG_TRIGGER, Fault::Hang), (CRASH_TRIGGER, Fault::Crash)];

/// What a step of a faulty script does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Returns an error; nothing is written.
    Fail,
    /// Takes [`Script::hang`].
    Hang,
    /// Ends the process at once.
    Crash,
}

impl Backend for Scripted {
    fn kv_bytes_per_token(&self) -> u64 {
        Pool::BYTES_PER_TOKEN
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.pool.reserve(blocks).map_err(ScriptedError::from)?;
        self.check.reserve(blocks);
        Ok(())
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.lasts = Duration::ZERO;
        self.check.check(slices).map_err(ScriptedError::from)?;
        if let Some(at) = slices.iter().position(|slice| !self.pool.fits(slice)) {
            return Err(ScriptedError::OtherAdapter(at).into());
        }
        self.lasts = self.script.step;
        match self.planned_fault(slices) {
            None => {}
            Some(Fault::Fail) => return Err(ScriptedError::Scripted.into()),
            Some(Fault::Hang) => self.lasts += self.script.hang,
            Some(Fault::Crash) => std::process::abort(),
        }
        slices.iter().for_each(|slice| self.pool.write(slice));
        let rows = logits.reset(slices.iter().map(Slice::rows).sum(), VOCAB);
        let mut rows = rows.chunks_exact_mut(VOCAB);
        for slice in slices {
            let first_wanted = slice.end() - slice.rows();
            let mut state = State::begin(&self.script, kv::adapter(slice));
            for (position, token) in self.pool.read(slice.blocks, 0).take(slice.end()).enumerate() {
                state = state.after(token);
                if let Some(row) = (position >= first_wanted).then(|| rows.next()).flatten() {
                    write_logits(row, state, &self.script);
                }
            }
        }
        Ok(())
    }

    fn plays_for(&self) -> Duration {
        self.lasts
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check.check_copy(from, to).map_err(ScriptedError::from)?;
        self.pool.copy(from, to);
        Ok(())
    }
}
