//! How many groups may go on elsewhere, over all requests. A replay computes again what was computed: where workers keep
//! dying, replays would fill those that are left until they die too. One worker's end never meets the limit, for it cannot
//! have more groups on it than there are. Pure: time is an argument.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_common::ambient;

/// Over which replays and successes are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Counts are kept for each part of the window of this length.
const PART: Duration = Duration::from_secs(1);
/// Replays in a window that are always allowed.
const FLOOR: u64 = 64;
/// Beside it: each group that is in flight once, and one for each so many that ended well.
const SUCCESSES_PER_REPLAY: u64 = 5;

/// A part of the window.
#[derive(Clone, Copy, Debug)]
struct Part {
    began: Instant,
    replays: u64,
    successes: u64,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Budget {
    in_flight: u64,
    /// The last parts; [`WINDOW`] / [`PART`] and one at most.
    parts: VecDeque<Part>,
}

impl Budget {
    /// A group goes on elsewhere, if it may.
    fn replay(&mut self, now: Instant) -> bool {
        self.part(now);
        let sum = |of: fn(&Part) -> u64| self.parts.iter().map(of).sum::<u64>();
        let allowed = FLOOR + self.in_flight + sum(|part| part.successes) / SUCCESSES_PER_REPLAY;
        let may = sum(|part| part.replays) < allowed;
        self.part(now).replays += u64::from(may);
        may
    }

    fn part(&mut self, now: Instant) -> &mut Part {
        self.parts.retain(|part| now.saturating_duration_since(part.began) < WINDOW);
        if self.parts.back().is_none_or(|last| now.saturating_duration_since(last.began) >= PART) {
            self.parts.push_back(Part { began: now, replays: 0, successes: 0 });
        }
        self.parts.back_mut().expect("one was just pushed, or is there")
    }
}

/// The budget of a router. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct SharedBudget(Arc<Mutex<Budget>>);

impl SharedBudget {
    /// A group sets out.
    pub(super) fn enter(&self) -> InFlight {
        self.books().in_flight += 1;
        InFlight { budget: self.clone(), end: End::Early }
    }

    /// Whether one more group may go on elsewhere; counts it, if so.
    pub(super) fn allows_replay(&self, now: Instant) -> bool {
        self.books().replay(now)
    }

    fn books(&self) -> MutexGuard<'_, Budget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Early,
    Well,
}

/// Counts a group as in flight until dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    budget: SharedBudget,
    end: End,
}

impl InFlight {
    /// The group has come to its end.
    pub(super) fn ended_well(&mut self) {
        self.end = End::Well;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut books = self.budget.books();
        books.in_flight -= 1;
        if self.end == End::Well {
            books.part(ambient::now()).successes += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replays out of `asked` that are allowed at `now`.
    fn allowed(budget: &mut Budget, asked: usize, now: Instant) -> usize {
        (0..asked).filter(|_| budget.replay(now)).count()
    }

    #[test]
    fn all_groups_of_a_router_may_go_on_elsewhere_at_once() {
        let mut budget = Budget { in_flight: 1024, ..Budget::default() };
        assert_eq!(allowed(&mut budget, 1024, Instant::now()), 1024);
    }

    #[test]
    fn a_cluster_that_keeps_dying_is_not_fed_for_ever() {
        let (mut budget, start) = (Budget { in_flight: 100, ..Budget::default() }, Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let replays: usize = (0..10).map(|second| allowed(&mut budget, 100, at(second))).sum();
        assert_eq!(replays, 164);
        assert_eq!(allowed(&mut budget, 100, at(30)), 100, "it is allowed again later");
        assert!(budget.parts.len() <= 11);
    }

    #[test]
    fn groups_that_end_well_allow_others_to_be_replayed() {
        let shared = SharedBudget::default();
        (0..500).for_each(|_| shared.enter().ended_well());
        (0..500).for_each(|_| drop(shared.enter()));
        assert_eq!(allowed(&mut shared.books(), 1000, Instant::now()), 164);
        assert_eq!(shared.books().in_flight, 0);
    }
}
