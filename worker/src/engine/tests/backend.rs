//! A backend whose logits are a hash of all tokens before them, so that any mistake in feeding, forking or resuming shows
//! in the answer; with faults on order, and a window on what it holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use shoal_common::ids::TokenId;

use crate::backend::{Backend, BackendError, LogitsBuffer, LogitsOf, SequenceId, Slice};

pub(crate) const VOCAB: u32 = 40;
/// A step that is fed this token fails.
pub(crate) const FAILS: TokenId = TokenId(38);
/// A step that is fed this token panics.
pub(crate) const PANICS: TokenId = TokenId(39);

/// Tokens of each sequence the backend holds.
pub(crate) type Held = Arc<Mutex<BTreeMap<SequenceId, Vec<TokenId>>>>;

#[derive(Debug, thiserror::Error)]
#[error("on order")]
struct OnOrder;

pub(crate) struct HashBackend(pub(crate) Held);

fn logits_after(tokens: &[TokenId], row: &mut [f32]) {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.0.to_le_bytes()).collect();
    let mut random = blake3::Hasher::new().update(&bytes).finalize_xof();
    for logit in row.iter_mut() {
        let mut value = [0; 2];
        random.fill(&mut value);
        *logit = f32::from(u16::from_le_bytes(value)) / 8192.0;
    }
    // Too unlikely to be drawn by accident.
    row[FAILS.index()] = -100.0;
    row[PANICS.index()] = -100.0;
}

impl Backend for HashBackend {
    fn kv_bytes_per_token(&self) -> u64 {
        1
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let fed = |token| slices.iter().any(|slice| slice.tokens.contains(&token));
        assert!(!fed(PANICS), "on order");
        if fed(FAILS) {
            return Err(BackendError { backend: "hash", source: Box::new(OnOrder) });
        }
        let mut held = self.0.lock().unwrap();
        let rows = slices.iter().map(Slice::rows).sum();
        let mut out = logits.reset(rows, VOCAB as usize).chunks_mut(VOCAB as usize);
        for slice in slices {
            let sequence = held.entry(slice.sequence).or_default();
            assert_eq!(sequence.len(), slice.start);
            for (at, token) in slice.tokens.iter().enumerate() {
                sequence.push(*token);
                let wanted = match slice.logits {
                    LogitsOf::None => false,
                    LogitsOf::Last => at + 1 == slice.tokens.len(),
                    LogitsOf::All => true,
                };
                if wanted {
                    logits_after(sequence, out.next().unwrap());
                }
            }
        }
        Ok(())
    }

    fn fork(&mut self, from: SequenceId, to: SequenceId, length: usize) -> Result<(), BackendError> {
        let mut held = self.0.lock().unwrap();
        let copy = held[&from][..length].to_vec();
        assert!(held.insert(to, copy).is_none());
        Ok(())
    }

    fn release(&mut self, sequence: SequenceId) {
        self.0.lock().unwrap().remove(&sequence);
    }
}
