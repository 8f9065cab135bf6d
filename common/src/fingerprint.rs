//! The hash behind `system_fingerprint`: two answers under one fingerprint and one seed are byte-identical, so everything
//! that can move a byte goes in, and nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Generation};

/// Version of the numerics contract. Any change to the order or precision of any arithmetic on the way from tokens to
/// tokens raises it.
pub const NUMERICS_VERSION: u32 = 2;

/// Identity of an answer's arithmetic: weights, adapter, tokenizer, numerics class and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Digest);

impl Fingerprint {
    /// `numerics_class` names the arithmetic, for example `reference-f32`; `adapter` is absent for the base model.
    pub fn new(weights: Digest, adapter: Option<Generation>, tokenizer: Digest, numerics_class: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("shoal fingerprint v1");
        hasher.update(&weights.0);
        hasher.update(&adapter.map_or([0; 32], |generation| generation.0.0));
        hasher.update(&tokenizer.0);
        hasher.update(&NUMERICS_VERSION.to_le_bytes());
        hasher.update(numerics_class.as_bytes());
        Self(Digest(*hasher.finalize().as_bytes()))
    }

    /// All of it, for a hash that builds on it.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fp_{}", &self.0.to_string()[..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_that_can_move_a_byte_moves_the_fingerprint() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let base = Fingerprint::new(a, None, a, "x");
        let others = [
            Fingerprint::new(b, None, a, "x"),
            Fingerprint::new(a, Some(Generation(b)), a, "x"),
            Fingerprint::new(a, None, b, "x"),
            Fingerprint::new(a, None, a, "y"),
        ];
        assert!(others.iter().all(|other| *other != base));
        assert_eq!(base.to_string().len(), 19);
    }
}
