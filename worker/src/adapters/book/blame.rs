//! What is not tried: adapters in quarantine, until they are forgotten, and those whose last load failed in a way that the
//! next one would repeat, for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoal_common::ids::Generation;

use crate::adapters::error::{AcquireError, Reason, Unavailable};

/// Adapters in quarantine, and adapters that pause, at most; the oldest is let off for one too many.
pub(super) const MOST: usize = 1024;
/// The first pause; each failure in a row doubles it.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest: a disk that was full for an hour is tried again within seconds of having room.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why one is in quarantine, and since which change.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) reason: Reason,
    pub(super) change: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    failures: u32,
    until: Instant,
    why: Unavailable,
}

/// Both lists. Bound: [`MOST`] each.
#[derive(Debug, Default)]
pub(super) struct Blame {
    quarantine: BTreeMap<Generation, Verdict>,
    pauses: BTreeMap<Generation, Pause>,
}

impl Blame {
    /// Whether it may be tried at `now`.
    pub(super) fn check(&self, generation: Generation, now: Instant) -> Result<(), AcquireError> {
        if let Some(verdict) = self.quarantine.get(&generation) {
            return Err(AcquireError::Quarantined(verdict.reason.clone()));
        }
        match self.pauses.get(&generation) {
            Some(pause) if now < pause.until => Err(pause.why.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn quarantine(&mut self, generation: Generation, reason: Reason, change: u64) {
        if self.quarantine.len() >= MOST {
            let oldest = self.quarantine.iter().min_by_key(|(_, verdict)| verdict.change).map(|(at, _)| *at);
            oldest.and_then(|at| self.quarantine.remove(&at));
        }
        self.pauses.remove(&generation);
        self.quarantine.insert(generation, Verdict { reason, change });
    }

    pub(super) fn pause(&mut self, generation: Generation, why: Unavailable, now: Instant) {
        if self.pauses.len() >= MOST && !self.pauses.contains_key(&generation) {
            let first = self.pauses.iter().min_by_key(|(_, pause)| pause.until).map(|(at, _)| *at);
            first.and_then(|at| self.pauses.remove(&at));
        }
        let failures = self.pauses.get(&generation).map_or(0, |pause| pause.failures);
        let wait = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
        self.pauses.insert(generation, Pause { failures: failures + 1, until: now + wait, why });
    }

    /// A load went well, or the adapter was removed. Returns the verdict if it was in quarantine.
    pub(super) fn clear(&mut self, generation: Generation) -> Option<Verdict> {
        self.pauses.remove(&generation);
        self.quarantine.remove(&generation)
    }

    pub(super) fn verdict(&self, generation: Generation) -> Option<&Verdict> {
        self.quarantine.get(&generation)
    }

    pub(super) fn verdicts(&self) -> impl Iterator<Item = (&Generation, &Verdict)> {
        self.quarantine.iter()
    }
}
