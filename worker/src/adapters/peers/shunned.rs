//! Peers that failed, and until when they are left alone. Pure: time is an argument. Bound: the peers of the configuration.

use std::collections::BTreeMap;
use std::time::Instant;

use shoal_common::ids::Name;

use crate::adapters::FetchError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shunned(BTreeMap<Name, Instant>);

impl Shunned {
    /// Leaves `name` alone until then.
    pub(super) fn add(&mut self, name: &Name, until: Instant) {
        self.0.insert(name.clone(), until);
    }

    /// Whether `name` is left alone now.
    pub(super) fn holds(&mut self, name: &Name, now: Instant) -> bool {
        match self.0.get(name) {
            Some(until) if now < *until => true,
            Some(_over) => {
                self.0.remove(name);
                false
            }
            None => false,
        }
    }
}

/// Whether a failure is a peer's fault. One that does not have the adapter any more or has enough to do is a good peer, and what
/// this machine's disk does is no fault of anybody else.
pub(super) fn is_its_fault(error: &FetchError) -> bool {
    match error {
        FetchError::NotFound | FetchError::Busy => false,
        FetchError::Room(_) | FetchError::DiskFull(_) | FetchError::Disk(_) | FetchError::Panicked(_) => false,
        FetchError::Unresolved(_) | FetchError::Undialled(_) | FetchError::Lost(_) | FetchError::Stream(_) => true,
        FetchError::Content(_) | FetchError::Silent | FetchError::Slow | FetchError::Corrupt => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::adapters::Unavailable;

    #[test]
    fn a_peer_is_left_alone_until_its_time_is_over_and_no_other_is() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let [a, b] = ["a", "b"].map(|name| Name::new(name).unwrap());
        let mut shunned = Shunned::default();
        assert!(!shunned.holds(&a, now));
        shunned.add(&a, now + second);
        assert!(shunned.holds(&a, now) && !shunned.holds(&b, now));
        assert!(!shunned.holds(&a, now + second));
        assert!(shunned.0.is_empty(), "what is over is forgotten");
        shunned.add(&a, now + second);
        shunned.add(&a, now + 3 * second);
        assert!(shunned.holds(&a, now + 2 * second), "the last failure counts");
    }

    #[test]
    fn what_is_no_fault_of_the_peer_is_not_held_against_it() {
        for innocent in [FetchError::NotFound, FetchError::Busy, FetchError::Room(Unavailable::NoRoom)] {
            assert!(!is_its_fault(&innocent), "{innocent}");
        }
        for guilty in [FetchError::Corrupt, FetchError::Slow] {
            assert!(is_its_fault(&guilty), "{guilty}");
        }
    }
}
