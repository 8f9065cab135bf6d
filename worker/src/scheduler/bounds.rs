//! What the worker may hold and compute at once. Made by the supervisor from the configuration and the memory.

use crate::backend::BLOCK_TOKENS;

/// What the worker may hold and compute at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Sequences that run at once; at least 1.
    pub slots: usize,
    /// Blocks of KV over all sequences; at least 1.
    pub blocks: usize,
    /// Groups admitted at once, running and waiting.
    pub groups: usize,
    /// Tokens to compute over all admitted groups, at most, beyond which no group is admitted. The first one always is.
    pub queued_tokens: u64,
    /// Tokens computed in one step; at least 1.
    pub step_tokens: usize,
}

impl Bounds {
    /// Tokens that the blocks hold.
    pub fn kv_tokens(&self) -> u64 {
        (self.blocks * BLOCK_TOKENS) as u64
    }
}
