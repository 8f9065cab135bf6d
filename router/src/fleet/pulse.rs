//! Whether a worker's engine moves. A worker whose machine, network and runtime are well tells its status all the time, also
//! while its engine hangs in a step: then its progress stands still. The [`super::roster`] feeds a [`Pulse`] with each status;
//! groups hear the verdict by way of a [`Vital`]. Pure: time is an argument.
//!
//! Only silence that the worker itself has vouched for counts: the time between two statuses that tell the same progress, and
//! of that no more than statuses are apart. A worker or a router that was stopped as a whole proves nothing that way; the
//! link's idle timeout sees to that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shoal_common::watch;
use shoal_common::wire::hello::{STATUS_EVERY_MS, Status};

/// Steps that a step may take before the engine is taken for stuck.
const STEPS: u32 = 20;
/// A step that was shorter than those before it counts as one in this many.
const INERTIA: u32 = 8;
/// Of the time between two statuses, at most this counts: twice what it may be.
const COUNTED: Duration = Duration::from_millis(2 * STATUS_EVERY_MS);
/// A step computes no more tokens of prompts than this many, with the default of `step_tokens` four times over.
const PROMPT_TOKENS: u64 = 1024;
/// A prompt's token takes no longer than this on a machine that is of use.
const SLOWEST_TOKEN: Duration = Duration::from_millis(100);
/// For the first step of a worker's life, of whose speed nothing is known: its weights may come from a disk.
const FIRST_STEP: Duration = Duration::from_secs(10);

/// Turns and time in which an engine that something kills at once would not have gone on. Time alone says nothing of an engine
/// whose steps are long, and turns are told a moment late.
const LONG: (u64, Duration) = (64, Duration::from_secs(1));

/// What a worker's statuses say of its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It turns, or has not stood still for long.
    Moving,
    /// It stands still for longer than any step should take.
    Stuck,
}

/// What was last seen of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    /// As of the last status.
    pub health: Health,
    /// Its turns so far.
    pub progress: u64,
    /// When they were last seen to grow.
    pub moved: Instant,
}

impl Beat {
    /// Whether the engine has turned for long since `before` and `since`: what would have killed it at once has not.
    pub fn has_gone_on(&self, before: &Self, since: Instant) -> bool {
        let turns = self.progress.saturating_sub(before.progress);
        turns >= LONG.0 && self.moved.saturating_duration_since(since) >= LONG.1
    }
}

/// The last beat of one worker, told to all groups on it, and whether its process is known to have ended.
#[derive(Debug)]
pub struct Vital {
    beat: watch::Sender<Beat>,
    is_over: AtomicBool,
}

impl Vital {
    /// Of a worker that has just joined.
    pub(super) fn new(now: Instant) -> Self {
        let beat = watch::Sender::new(Beat { health: Health::Moving, progress: 0, moved: now });
        Self { beat, is_over: AtomicBool::new(false) }
    }

    /// As of the last status.
    pub fn last(&self) -> Beat {
        *self.beat.borrow()
    }

    /// Resolves once the engine is stuck. Cancel-safe.
    pub async fn stuck(&self) {
        self.is(Health::Stuck).await;
    }

    /// Resolves once the engine is not, or no longer, stuck. Cancel-safe.
    pub async fn moves(&self) {
        self.is(Health::Moving).await;
    }

    async fn is(&self, health: Health) {
        // Its sender lives as long as this.
        let _ = self.beat.subscribe().wait_for(|beat| beat.health == health).await;
    }

    /// Notes what the last status said; whether the health is news.
    pub(super) fn note(&self, beat: Beat) -> bool {
        self.beat.send_replace(beat).health != beat.health
    }

    /// Its process has ended: it will not be back in this life.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Whether its process is known to have ended.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

/// How a worker's progress went so far.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    /// Silence after which an engine is stuck, at least.
    patience: Duration,
    progress: Option<u64>,
    heard: Instant,
    moved: Instant,
    /// Whether sequences ran when it was heard of last: idle turns say nothing of steps.
    ran: bool,
    /// How long a step takes: follows slow steps at once and fast ones slowly.
    step: Duration,
    still: Duration,
}

impl Pulse {
    /// Of a worker that has just joined.
    pub fn new(patience: Duration, now: Instant) -> Self {
        let (step, still) = (Duration::ZERO, Duration::ZERO);
        Self { patience, progress: None, heard: now, moved: now, ran: false, step, still }
    }

    /// When the progress was last seen to change.
    pub fn moved(&self) -> Instant {
        self.moved
    }

    /// A status came; `prompts` are the tokens of prompts that this router has sent and that have not shown a token yet.
    pub fn hear(&mut self, status: &Status, prompts: u64, now: Instant) -> Beat {
        let since = now.saturating_duration_since(self.heard).min(COUNTED);
        self.heard = now;
        match self.progress.replace(status.progress) {
            Some(before) if before == status.progress => self.still += since,
            before => {
                let turns = before.map_or(0, |before| status.progress.saturating_sub(before));
                if self.ran && status.running > 0 {
                    self.learn(turns, prompts, status, now);
                }
                self.still = Duration::ZERO;
                self.moved = now;
            }
        }
        self.ran = status.running > 0;
        let health = if self.still > self.allowed(status, prompts) { Health::Stuck } else { Health::Moving };
        Beat { health, progress: status.progress, moved: self.moved }
    }

    /// How long the engine may stand still.
    fn allowed(&self, status: &Status, prompts: u64) -> Duration {
        let speed = status.tokens_per_second;
        let token = if speed == 0 { SLOWEST_TOKEN } else { (Duration::from_secs(2) / speed).min(SLOWEST_TOKEN) };
        // Where sequences give way to each other, any of them may be computed again from its beginning.
        let prompts = if status.preemptions > 0 { PROMPT_TOKENS } else { prompts.min(PROMPT_TOKENS) };
        let first = if speed == 0 { FIRST_STEP } else { Duration::ZERO };
        (self.step * STEPS).max(self.patience) + token * prompts as u32 + first
    }

    /// `turns` were made since it last moved. One that was taken for stuck was perhaps only slow: it doubles what is allowed,
    /// and no more.
    fn learn(&mut self, turns: u64, prompts: u64, status: &Status, now: Instant) {
        let Ok(turns) = u32::try_from(turns.max(1)) else { return };
        let took = now.saturating_duration_since(self.moved) / turns;
        let took = took.min(self.allowed(status, prompts) * 2 / STEPS);
        self.step = if took > self.step { took } else { self.step - (self.step - took) / INERTIA };
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::wire::hello::WorkerState;

    use super::*;
    use crate::fleet::tests;

    /// A worker that tells its status four times a second; time passes as it tells.
    struct Told {
        pulse: Pulse,
        status: Status,
        now: Instant,
    }

    impl Told {
        fn new(running: u32, tokens_per_second: u32) -> Self {
            let now = Instant::now();
            let status = Status { running, tokens_per_second, ..tests::status(0, WorkerState::Ready) };
            Self { pulse: Pulse::new(Duration::from_secs(1), now), status, now }
        }

        fn after(&mut self, ms: u64, turns: u64, prompts: u64) -> Health {
            self.now += Duration::from_millis(ms);
            self.status.progress += turns;
            self.pulse.hear(&self.status, prompts, self.now).health
        }

        /// Milliseconds for which the engine stands still before it is taken for stuck.
        fn stands_still(&mut self, prompts: u64) -> u64 {
            (0..10_000).find(|_| self.after(250, 0, prompts) == Health::Stuck).map_or(u64::MAX, |times| times * 250)
        }
    }

    #[test]
    fn an_engine_that_stands_still_for_a_second_is_stuck_and_moves_again_with_its_progress() {
        let mut told = Told::new(3, 1000);
        (0..8).for_each(|_| assert_eq!(told.after(250, 25, 0), Health::Moving));
        assert_eq!(told.stands_still(0), 1000);
        assert_eq!(told.after(250, 1, 0), Health::Moving);
    }

    #[test]
    fn a_slow_engine_has_twenty_of_its_steps_and_idle_turns_are_none() {
        let mut told = Told::new(1, 1000);
        (0..8).for_each(|_| assert_eq!(told.after(500, 1, 0), Health::Moving));
        assert_eq!(told.stands_still(0), 10_000);
        let mut idle = Told::new(0, 1000);
        (0..8).for_each(|_| assert_eq!(idle.after(250, 1, 0), Health::Moving));
        assert_eq!(idle.stands_still(0), 1000);
    }

    #[test]
    fn a_prompt_has_the_time_that_its_tokens_take() {
        let mut told = Told::new(1, 100);
        told.after(10, 1, 0);
        assert_eq!(told.stands_still(200), 1000 + 200 * 20);
        // However long it is, a step computes a part of it.
        told.after(10, 1, 0);
        assert!(told.stands_still(1_000_000) < 30_000);
    }

    #[test]
    fn the_first_step_of_a_worker_s_life_may_take_long() {
        let mut told = Told::new(1, 0);
        told.after(250, 1, 0);
        assert_eq!(told.stands_still(10), 1000 + 10_000 + 10 * 100);
    }

    #[test]
    fn a_pause_of_the_whole_worker_or_of_the_router_proves_nothing() {
        let mut told = Told::new(1, 1000);
        told.after(10, 1, 0);
        assert_eq!(told.after(60_000, 0, 0), Health::Moving, "one status after a minute");
        assert_eq!(told.after(10, 1, 0), Health::Moving);
        // The router was stopped, and now reads what has queued.
        told.now += Duration::from_secs(60);
        (0..100).for_each(|_| assert_eq!(told.after(0, 0, 0), Health::Moving));
    }

    #[test]
    fn a_step_that_was_only_slow_is_not_taken_for_stuck_again_and_again() {
        let mut told = Told::new(1, 1000);
        told.after(10, 1, 0);
        let mut alarms = 0;
        for _ in 0..20 {
            let stuck = (0..12).map(|_| told.after(250, 0, 0)).filter(|health| *health == Health::Stuck).count();
            alarms += usize::from(stuck > 0);
            told.after(250, 1, 0);
        }
        assert!(alarms <= 2, "steps of three seconds were taken for stuck {alarms} times of 20");
    }

    #[test]
    fn an_engine_has_gone_on_after_a_second_and_many_turns_and_not_before() {
        let since = Instant::now();
        let beat = |progress, ms| Beat { health: Health::Moving, progress, moved: since + Duration::from_millis(ms) };
        let before = beat(100, 0);
        assert!(beat(164, 1000).has_gone_on(&before, since));
        assert!(!beat(163, 60_000).has_gone_on(&before, since), "few and long steps");
        assert!(!beat(10_000, 999).has_gone_on(&before, since), "the turns may be from before");
    }
}
