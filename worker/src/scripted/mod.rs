//! The scripted engine: a [`Backend`] without weights, for fast and exact tests of everything around the engine. The logits
//! of a position are a hash of all tokens before it, so every mistake in feeding, forking or resuming a sequence changes
//! the answer. Owns the sequences it was given; `text` says what it answers, `tokenizer` how that is spelled.
//!
//! It checks its caller as strictly as a real backend would: a wrong start, an unknown sequence, a token outside the
//! vocabulary are errors, and a refused step changes nothing.

mod text;
mod tokenizer;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::Duration;

use shoal_common::config::{Faults, Script};
use shoal_common::ids::{Digest, TokenId};

use crate::backend::{Backend, BackendError, LogitsBuffer, LogitsOf, SequenceId, Slice};
use text::{Trace, write_logits};
pub use text::{greedy, logits};
pub use tokenizer::{BOS, EOS, VOCAB, bundle};

/// With [`Faults::On`], a step in which a sequence's text comes to end in this fails.
pub const FAIL_TRIGGER: &str = "!!fail!!";
/// With [`Faults::On`], a step in which a sequence's text comes to end in this takes [`HANG`].
pub const HANG_TRIGGER: &str = "!!hang!!";
/// Longer than every timer of a cluster: who waits for such a step has no timer.
pub const HANG: Duration = Duration::from_secs(60);

/// Identity of the answers: what stands for the BLAKE3 of the weights. Step time, context and faults are not part of it.
pub fn digest(script: &Script) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"shoal scripted engine 1");
    hasher.update(&script.salt.to_le_bytes());
    hasher.update(&script.eos_every.map_or(0, |every| every.get()).to_le_bytes());
    Digest(*hasher.finalize().as_bytes())
}

/// Why a step or a fork was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum ScriptedError {
    #[error("sequence {} is unknown", .0.0)]
    Unknown(SequenceId),
    #[error("sequence {} exists already", .0.0)]
    Exists(SequenceId),
    #[error("sequence {} is in the step twice", .0.0)]
    Twice(SequenceId),
    #[error("the slice of sequence {} has no tokens", .0.0)]
    Empty(SequenceId),
    #[error("the slice of sequence {} starts at {start}, it holds {held} tokens", .sequence.0)]
    WrongStart { sequence: SequenceId, start: usize, held: usize },
    #[error("a token of sequence {} is outside the vocabulary", .0.0)]
    OutsideVocabulary(SequenceId),
    #[error("sequence {} would be longer than the context", .0.0)]
    TooLong(SequenceId),
    #[error("a fork of {length} tokens was asked of sequence {}, it holds {held}", .sequence.0)]
    ForkTooLong { sequence: SequenceId, length: usize, held: usize },
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
    sequences: HashMap<SequenceId, Trace>,
}

impl Scripted {
    /// An engine that holds no sequence yet.
    pub fn new(script: &Script) -> Self {
        Self { script: *script, sequences: HashMap::new() }
    }

    fn check(&self, slices: &[Slice<'_>]) -> Result<(), ScriptedError> {
        let mut seen = HashSet::new();
        for slice in slices {
            if !seen.insert(slice.sequence) {
                return Err(ScriptedError::Twice(slice.sequence));
            }
            self.check_slice(slice)?;
        }
        Ok(())
    }

    fn check_slice(&self, slice: &Slice<'_>) -> Result<(), ScriptedError> {
        let Slice { sequence, start, tokens, .. } = *slice;
        match self.sequences.get(&sequence).map(Trace::len) {
            None if start > 0 => return Err(ScriptedError::Unknown(sequence)),
            Some(held) if start != held => return Err(ScriptedError::WrongStart { sequence, start, held }),
            _ => {}
        }
        if tokens.is_empty() {
            return Err(ScriptedError::Empty(sequence));
        }
        if tokens.iter().any(|token| token.index() >= VOCAB) {
            return Err(ScriptedError::OutsideVocabulary(sequence));
        }
        let room = (self.script.context as usize).saturating_sub(start);
        if tokens.len() > room { Err(ScriptedError::TooLong(sequence)) } else { Ok(()) }
    }

    /// The fault that this step has to play: a slice completes a trigger.
    fn planned_fault(&self, slices: &[Slice<'_>]) -> Option<Fault> {
        let completes = |slice: &Slice<'_>, trigger: &str| {
            let before = self.sequences.get(&slice.sequence).map_or(&[][..], |held| held.tail(trigger.len() - 1));
            let text: Vec<TokenId> = before.iter().chain(slice.tokens).copied().collect();
            let spells = |window: &[TokenId]| window.iter().map(|token| token.0).eq(trigger.bytes().map(u32::from));
            text.windows(trigger.len()).any(spells)
        };
        let planned = |(trigger, fault)| slices.iter().any(|slice| completes(slice, trigger)).then_some(fault);
        match self.script.faults {
            Faults::Off => None,
            Faults::On => [(FAIL_TRIGGER, Fault::Fail), (HANG_TRIGGER, Fault::Hang)].into_iter().find_map(planned),
        }
    }
}

/// What a step of a faulty script does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Returns an error; no sequence changes.
    Fail,
    /// Takes [`HANG`].
    Hang,
}

impl Backend for Scripted {
    fn kv_bytes_per_token(&self) -> u64 {
        Trace::BYTES_PER_TOKEN
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.check(slices)?;
        // The real cost of a step: this is the engine's own thread.
        thread::sleep(self.script.step);
        match self.planned_fault(slices) {
            None => {}
            Some(Fault::Fail) => return Err(ScriptedError::Scripted.into()),
            Some(Fault::Hang) => thread::sleep(HANG),
        }
        let rows = logits.reset(slices.iter().map(Slice::rows).sum(), VOCAB);
        let mut rows = rows.chunks_exact_mut(VOCAB);
        for slice in slices {
            let trace = self.sequences.entry(slice.sequence).or_insert_with(|| Trace::new(&self.script));
            let last = slice.tokens.len() - 1;
            for (index, &token) in slice.tokens.iter().enumerate() {
                let state = trace.push(token);
                let wanted = match slice.logits {
                    LogitsOf::None => false,
                    LogitsOf::Last => index == last,
                    LogitsOf::All => true,
                };
                if let Some(row) = wanted.then(|| rows.next()).flatten() {
                    write_logits(row, state, &self.script);
                }
            }
        }
        Ok(())
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), BackendError> {
        let source = self.sequences.get(&from).ok_or(ScriptedError::Unknown(from))?;
        if self.sequences.contains_key(&to) {
            return Err(ScriptedError::Exists(to).into());
        }
        let held = source.len();
        let fork = source.prefix(length).ok_or(ScriptedError::ForkTooLong { sequence: from, length, held })?;
        self.sequences.insert(to, fork);
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
}
