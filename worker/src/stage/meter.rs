//! Which part of the time something computes: a share that forgets with time. Fed by whoever hears of a step, read whenever.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time after which a share's past counts a third.
const WINDOW: Duration = Duration::from_secs(10);

/// The share, as a pure value.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// Since when there is something to say, and the last change.
    times: Option<(Instant, Instant)>,
    /// Busy time as a part of all, weighted towards now.
    busy: f64,
}

/// What is left of a weight after a time.
fn kept(time: Duration) -> f64 {
    (-time.as_secs_f64() / WINDOW.as_secs_f64()).exp()
}

impl Share {
    /// A step is done that took `took`; it did not overlap with the one before.
    fn add(&mut self, took: Duration, now: Instant) {
        let (begin, last) = self.times.unwrap_or((now - took, now - took));
        self.busy = self.busy * kept(now.saturating_duration_since(last)) + 1.0 - kept(took);
        self.times = Some((begin, now));
    }

    /// The part of the time that was idle; absent before the first step.
    fn idle(&self, now: Instant) -> Option<f32> {
        let (begin, last) = self.times?;
        let busy = self.busy * kept(now.saturating_duration_since(last));
        let weight = 1.0 - kept(now.saturating_duration_since(begin));
        Some((1.0 - busy / weight.max(f64::EPSILON)).clamp(0.0, 1.0) as f32)
    }
}

/// A share that several threads see.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Share>);

impl Meter {
    /// A step is done that took `took`.
    pub(super) fn add(&self, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(took, Instant::now());
    }

    /// The part of the last seconds that was idle; absent before the first step.
    pub(super) fn idle(&self) -> Option<f32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).idle(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Steps of `took` every `every` for a while; the idle share then.
    fn after(share: &mut Share, mut now: Instant, took: Duration, every: Duration, steps: u32) -> (f32, Instant) {
        for _ in 0..steps {
            now += every;
            share.add(took, now);
        }
        (share.idle(now).unwrap(), now)
    }

    #[test]
    fn the_idle_share_is_what_steps_leave_from_the_first_one_on() {
        for (took, every, idle) in [(10, 10, 0.0), (10, 40, 0.75), (1, 100, 0.99)] {
            for steps in [3, 5000] {
                let mut share = Share::default();
                assert_eq!(share.idle(Instant::now()), None);
                let (got, _) = after(&mut share, Instant::now(), took * MS, every * MS, steps);
                assert!((got - idle).abs() < 0.34 / steps as f32 + 0.01, "{took} of {every}, {steps}: {got}");
            }
        }
    }

    #[test]
    fn what_was_long_ago_counts_no_more() {
        let mut share = Share::default();
        let (busy, now) = after(&mut share, Instant::now(), 10 * MS, 10 * MS, 10_000);
        assert!(busy < 0.01, "{busy}");
        assert!(share.idle(now + 10 * WINDOW).unwrap() > 0.99);
        let (again, _) = after(&mut share, now + 10 * WINDOW, 10 * MS, 20 * MS, 3_000);
        assert!((again - 0.5).abs() < 0.03, "{again}");
    }
}
