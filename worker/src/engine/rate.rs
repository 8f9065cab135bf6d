//! How fast the engine is: a moving average over busy time, and the wait it lets a refused router expect. Pure.

use std::time::Duration;

/// Time over which a step's weight in the average falls to a third: a few seconds, as the status promises.
const HORIZON: Duration = Duration::from_secs(3);
/// Told while the speed is unknown.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);
/// Shorter waits are not worth a retry's cost; longer ones are guesses.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// Tokens a second, prefill and decode together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate(Option<f64>);

impl Rate {
    /// A step of `tokens` took `took`.
    pub(super) fn observe(&mut self, tokens: usize, took: Duration) {
        let seconds = took.as_secs_f64().max(1e-6);
        let now = tokens as f64 / seconds;
        let keep = (-seconds / HORIZON.as_secs_f64()).exp();
        self.0 = Some(self.0.map_or(now, |before| before * keep + now * (1.0 - keep)));
    }

    /// 0 while unknown.
    pub(super) fn tokens_per_second(self) -> u32 {
        self.0.map_or(0, |rate| rate as u32)
    }

    /// When `queued_tokens` may be done.
    pub(super) fn expected_wait(self, queued_tokens: u64) -> Duration {
        let Some(rate) = self.0.filter(|rate| *rate > 0.0) else { return UNKNOWN_WAIT };
        Duration::try_from_secs_f64(queued_tokens as f64 / rate).unwrap_or(WAIT.1).clamp(WAIT.0, WAIT.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_wait_follows_queue_and_speed() {
        let mut rate = Rate::default();
        assert_eq!(rate.expected_wait(1_000_000), UNKNOWN_WAIT);
        (0..100).for_each(|_| rate.observe(100, Duration::from_millis(100)));
        assert_eq!(rate.tokens_per_second(), 1000);
        assert_eq!(rate.expected_wait(5_000).as_millis(), 5_000);
        assert_eq!(rate.expected_wait(u64::MAX), WAIT.1);
        assert_eq!(rate.expected_wait(0), WAIT.0);
    }
}
