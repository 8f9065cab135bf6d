//! A backend whose logits are a hash of the adapter and all tokens before them, so that any mistake in feeding, forking or
//! resuming shows in the answer; with faults on order. Its KV is the tokens, read anew for every row.

use shoal_common::ids::{Generation, TokenId};

use crate::adapters::Adapter;
use crate::backend::{BLOCK_TOKENS, Backend, BackendError, BlockId, LogitsBuffer, Slice, StepCheck};
use crate::engine::tests::bench::CONTEXT;

pub(crate) const VOCAB: u32 = 40;
/// A step that is fed this token fails.
pub(crate) const FAILS: TokenId = TokenId(38);
/// A step that is fed this token panics.
pub(crate) const PANICS: TokenId = TokenId(39);

#[derive(Debug, thiserror::Error)]
#[error("on order")]
struct OnOrder;

pub(crate) struct HashBackend {
    pool: Vec<[TokenId; BLOCK_TOKENS]>,
    check: StepCheck,
}

impl Default for HashBackend {
    fn default() -> Self {
        Self { pool: Vec::new(), check: StepCheck::new(VOCAB as usize, CONTEXT as usize) }
    }
}

fn logits_after(adapter: Option<Generation>, tokens: &[TokenId], row: &mut [f32]) {
    let adapter = adapter.into_iter().flat_map(|generation| generation.0.0);
    let bytes: Vec<u8> = adapter.chain(tokens.iter().flat_map(|token| token.0.to_le_bytes())).collect();
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

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.pool = vec![[TokenId(u32::MAX); BLOCK_TOKENS]; blocks];
        self.check.reserve(blocks);
        Ok(())
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let fed = |token| slices.iter().any(|slice| slice.tokens.contains(&token));
        assert!(!fed(PANICS), "on order");
        if fed(FAILS) {
            return Err(BackendError { backend: "hash", source: Box::new(OnOrder) });
        }
        self.check.check(slices).unwrap();
        for slice in slices {
            for (position, token) in (slice.start..).zip(slice.tokens) {
                self.pool[slice.blocks[position / BLOCK_TOKENS].index()][position % BLOCK_TOKENS] = *token;
            }
        }
        let rows = slices.iter().map(Slice::rows).sum();
        let mut out = logits.reset(rows, VOCAB as usize).chunks_mut(VOCAB as usize);
        for slice in slices {
            let held: Vec<_> = slice.blocks.iter().flat_map(|block| self.pool[block.index()]).collect();
            for end in slice.end() - slice.rows()..slice.end() {
                let adapter = slice.adapter.map(Adapter::generation);
                logits_after(adapter, &held[..=end], out.next().unwrap());
            }
        }
        Ok(())
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.check.check_copy(from, to).unwrap();
        self.pool[to.index()] = self.pool[from.index()];
        Ok(())
    }
}
