//! How often a session may fail before its failure is the worker's. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Restarts within [`WINDOW`] at most.
const INTENSITY: usize = 3;
/// Over which failures are counted.
const WINDOW: Duration = Duration::from_secs(30);

/// What a failure leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start it again.
    Restart,
    /// Starting again does not help.
    Escalate,
}

/// The restarts of the last [`WINDOW`]; never more than [`INTENSITY`].
#[derive(Debug, Default)]
pub(super) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Something failed at `now`.
    pub(super) fn record(&mut self, now: Instant) -> Verdict {
        self.0.retain(|at| now.duration_since(*at) < WINDOW);
        if self.0.len() >= INTENSITY {
            return Verdict::Escalate;
        }
        self.0.push_back(now);
        Verdict::Restart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_restarts_in_thirty_seconds_are_allowed_and_a_fourth_is_not() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        let mut at = |seconds| restarts.record(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(10), at(20), at(29)],
            [Verdict::Restart, Verdict::Restart, Verdict::Restart, Verdict::Escalate]
        );
        assert_eq!([at(31), at(32)], [Verdict::Restart, Verdict::Escalate]);
    }
}
