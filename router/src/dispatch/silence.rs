//! How long a group's stream may be silent while its worker's engine moves. Most silence is in order: the group waits for
//! room, or others' prompts are before its own. So this is the last net, under the worker's [`crate::fleet::pulse`]: it holds
//! what was forgotten on a worker that says it has nobody waiting. Pure.

use std::time::Duration;

use shoal_common::wire::hello::Status;

/// Silences as long as those before, twenty of them, are too.
const WAITS: u32 = 20;
/// A silence that was shorter than those before it counts as one in this many.
const INERTIA: u32 = 8;
/// Before the first token, the prompts that this router has sent are computed: so long for each token of them.
const PER_PROMPT_TOKEN: Duration = Duration::from_millis(100);

/// The silences of one attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    /// Silence after a token that is always in order; twice as much is before the first.
    patience: Duration,
    /// How long the next frame is usually waited for; absent before the first token.
    usual: Option<Duration>,
    /// Preemptions that the worker told when the silence was last judged.
    preemptions: Option<u64>,
}

impl Silence {
    /// Nothing was said yet.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, usual: None, preemptions: None }
    }

    /// A frame with tokens has come after `waited`.
    pub(super) fn broken(&mut self, waited: Duration) {
        self.usual = Some(
            self.usual.map_or(waited, |usual| if waited > usual { waited } else { usual - (usual - waited) / INERTIA }),
        );
    }

    /// How long the next frame may take; `prompts` are the tokens of prompts that are still to be computed there.
    pub(super) fn allowed(&self, prompts: u64) -> Duration {
        let prompts = u32::try_from(prompts).unwrap_or(u32::MAX);
        match self.usual {
            Some(usual) => usual.saturating_mul(WAITS).max(self.patience),
            None => 2 * self.patience + PER_PROMPT_TOKEN.saturating_mul(prompts),
        }
    }

    /// The time is over: whether the worker's own words leave no reason for the silence. It is asked again after as long.
    pub(super) fn is_unexplained(&mut self, status: Option<&Status>) -> bool {
        let Some(status) = status else { return false };
        // Who gave its memory to others waits for its turn, and is not counted among those that wait.
        let before = self.preemptions.replace(status.preemptions);
        status.waiting == 0 && before == Some(status.preemptions)
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::wire::hello::WorkerState;

    use super::*;
    use crate::fleet::tests::status;

    #[test]
    fn a_silence_is_judged_by_those_before_it_and_the_first_by_the_prompts() {
        let mut silence = Silence::new(Duration::from_secs(5));
        assert_eq!(silence.allowed(300), Duration::from_secs(40));
        (0..100).for_each(|_| silence.broken(Duration::from_millis(10)));
        assert_eq!(silence.allowed(300), Duration::from_secs(5));
        silence.broken(Duration::from_secs(2));
        assert_eq!(silence.allowed(300), Duration::from_secs(40));
        (0..100).for_each(|_| silence.broken(Duration::from_millis(10)));
        assert_eq!(silence.allowed(300), Duration::from_secs(5));
    }

    #[test]
    fn only_a_worker_that_has_nobody_waiting_owes_a_frame() {
        let quiet = status(100, WorkerState::Ready);
        let mut silence = Silence::new(Duration::from_secs(5));
        assert!(!silence.is_unexplained(None));
        assert!(!silence.is_unexplained(Some(&quiet)), "it was judged once only");
        assert!(!silence.is_unexplained(Some(&Status { waiting: 1, ..quiet })));
        assert!(silence.is_unexplained(Some(&quiet)));
        assert!(!silence.is_unexplained(Some(&Status { preemptions: 9, ..quiet })));
    }
}
