//! The name of a block of KV: a hash of everything that its keys and values depend on. The worker's prefix cache is keyed by
//! it; the router computes the same hashes to know which worker has a prompt's beginning. Pure.
//!
//! The KV of a block depends on the weights, the adapter and all tokens up to the block's end, so the hash is a chain: it
//! begins with the model's fingerprint (which names the adapter's generation too) and a [`CacheSalt`], and each block adds
//! its tokens to the hash of the block before. Equal hashes mean equal KV; with 256 bits of BLAKE3 nobody can make two
//! texts meet, so that a cache hit never answers with another text's KV.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::ids::{Name, TokenId};

/// Tokens of one block of KV. A prefix is shared in whole blocks: shorter blocks share more, longer ones need less
/// bookkeeping; 16 positions are also one panel of the attention kernels.
pub const BLOCK_TOKENS: usize = 16;

/// Whose cached blocks a request may meet: requests of different salts never share one, so that nobody learns from the time
/// of an answer what somebody else has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheSalt(pub u64);

impl CacheSalt {
    /// The salt of everybody who may use the cluster: the same for all of its routers, whenever they were started. When
    /// there are API keys, each tenant gets a salt of its own here.
    pub fn of_cluster(name: &Name) -> Self {
        let hash = blake3::derive_key("shoal cache salt v1", name.as_str().as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = hash;
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// Hash of a full block and of everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// What stands before the first block.
    pub fn begin(salt: CacheSalt, fingerprint: &Fingerprint) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("shoal kv block v1");
        hasher.update(&salt.0.to_le_bytes());
        hasher.update(fingerprint.bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The hash of the next block, of [`BLOCK_TOKENS`] tokens.
    pub fn then(&self, block: &[TokenId]) -> Self {
        debug_assert_eq!(block.len(), BLOCK_TOKENS, "only full blocks have a hash");
        let mut input = [0; 32 + 4 * BLOCK_TOKENS];
        let (before, tokens) = input.split_at_mut(32);
        before.copy_from_slice(&self.0);
        for (bytes, token) in tokens.chunks_exact_mut(4).zip(block) {
            bytes.copy_from_slice(&token.0.to_le_bytes());
        }
        Self(*blake3::hash(&input).as_bytes())
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "BlockHash({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Digest, Generation};

    fn fingerprint(adapter: Option<Generation>) -> Fingerprint {
        let digest = Digest::of(b"a");
        Fingerprint::new(digest, adapter, digest, "x")
    }

    fn block(first: u32) -> Vec<TokenId> {
        (first..first + BLOCK_TOKENS as u32).map(TokenId).collect()
    }

    #[test]
    fn equal_beginnings_have_equal_hashes_and_anything_else_has_not() {
        let begin = BlockHash::begin(CacheSalt(1), &fingerprint(None));
        let salted = BlockHash::begin(CacheSalt(2), &fingerprint(None));
        let adapted = BlockHash::begin(CacheSalt(1), &fingerprint(Some(Generation(Digest::of(b"b")))));
        assert_eq!(begin.then(&block(0)).then(&block(16)), begin.then(&block(0)).then(&block(16)));
        let all = [
            begin.then(&block(0)),
            begin.then(&block(1)),
            begin.then(&block(0)).then(&block(0)),
            begin.then(&block(16)).then(&block(0)),
            salted.then(&block(0)),
            adapted.then(&block(0)),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn clusters_have_different_salts_and_each_always_the_same() {
        let salt = |name| CacheSalt::of_cluster(&Name::new(name).unwrap());
        assert_eq!(salt("shoal"), salt("shoal"));
        assert_ne!(salt("shoal"), salt("other"));
    }

    #[test]
    fn a_hash_is_the_same_on_every_machine_and_in_every_version() {
        let hash = BlockHash::begin(CacheSalt(1), &fingerprint(None)).then(&block(0));
        assert_eq!(format!("{hash:?}"), "BlockHash(7629deb9)");
    }
}
