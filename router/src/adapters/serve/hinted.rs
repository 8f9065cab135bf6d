//! Adapters of which a worker was told that others are nearer: where it comes for one of them all the same, the hint was in vain.
//! Pure, for one connection.

use std::collections::BTreeSet;

use shoal_common::ids::Digest;

/// Remembered of one worker at most; beyond that all are forgotten, which costs the count and nothing else.
const REMEMBERED: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Hinted(BTreeSet<Digest>);

impl Hinted {
    /// Others were named.
    pub(super) fn note(&mut self, digest: Digest) {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(digest);
    }

    /// The worker comes for it here: whether others were named before, and have failed it.
    pub(super) fn is_in_vain(&mut self, digest: Digest) -> bool {
        self.0.remove(&digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_in_vain_once_and_the_memory_of_hints_is_bounded() {
        let digest = |of: usize| Digest::of(&of.to_le_bytes());
        let mut hinted = Hinted::default();
        assert!(!hinted.is_in_vain(digest(0)));
        hinted.note(digest(0));
        assert!(hinted.is_in_vain(digest(0)) && !hinted.is_in_vain(digest(0)));
        (0..10 * REMEMBERED).for_each(|of| hinted.note(digest(of)));
        assert!(hinted.0.len() <= REMEMBERED && hinted.is_in_vain(digest(10 * REMEMBERED - 1)));
    }
}
