//! How long to wait before a router is dialled again. Pure: the jitter is an argument.

use std::time::Duration;

/// First wait at most: a router that restarts is back within some hundred milliseconds.
const FIRST: Duration = Duration::from_millis(100);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(5);

/// Doubles with each failure in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: between half of the step and all of it, by `jitter` in [0, 1), so that workers that lost a router
    /// together do not come back together.
    pub(crate) fn next(&mut self, jitter: f64) -> Duration {
        let step = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(0.5 + jitter / 2.0)
    }

    /// It went well: the next failure is a first one.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after a refusal, which time alone does not cure.
    pub(crate) fn after_refusal(&self) -> Duration {
        LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.next(0.0).as_millis(), 2500);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
        (0..100).for_each(|_| assert!(backoff.next(0.5) <= LONGEST));
    }
}
