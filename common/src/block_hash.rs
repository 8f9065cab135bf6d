//! Chained hashes of full token blocks. The worker keys its prefix cache with them and the router scores prefix overlap
//! with them, so both must compute the same values from the same tokens.

use crate::ids::{Digest, TokenId};

/// Tokens in one KV block.
pub const BLOCK_TOKENS: usize = 16;

/// Hashes of the full blocks of `tokens`, in order; each covers every token before it too. `root` stands for everything
/// else that must match before KV may be shared: tenant salt, model, adapter generation.
pub fn block_hashes(root: Digest, tokens: &[TokenId]) -> impl Iterator<Item = Digest> + '_ {
    let mut parent = root;
    tokens.chunks_exact(BLOCK_TOKENS).map(move |block| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&parent.0);
        for token in block {
            hasher.update(&token.0.to_le_bytes());
        }
        parent = Digest(*hasher.finalize().as_bytes());
        parent
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_hash_covers_its_prefix_and_its_root() {
        let tokens: Vec<TokenId> = (0..40).map(TokenId).collect();
        let mut other = tokens.clone();
        other[0] = TokenId(99);
        let root = Digest::of(b"root");
        let hashes: Vec<_> = block_hashes(root, &tokens).collect();
        assert_eq!(hashes.len(), 2, "only full blocks count");
        assert_ne!(hashes[1], block_hashes(root, &other).nth(1).unwrap());
        assert_ne!(hashes[0], block_hashes(Digest::of(b"x"), &tokens).next().unwrap());
    }
}
