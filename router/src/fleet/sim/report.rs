//! What came of a simulated run.

use std::time::Duration;

use crate::fleet::pick::Why;

/// A group, as it was routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Routed {
    /// When.
    pub(crate) at: Duration,
    /// Rank of its adapter.
    pub(crate) adapter: usize,
    /// Workers that the adapter was worth.
    pub(crate) width: usize,
    /// Where it went.
    pub(crate) worker: usize,
    /// Why there.
    pub(crate) why: Why,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Every group, each time that it was routed.
    pub(crate) routed: Vec<Routed>,
    /// From a group's arrival to its first token, ascending.
    pub(crate) waits: Vec<Duration>,
    /// Groups that found their adapter in memory.
    pub(crate) hits: usize,
    /// Loads from disk.
    pub(crate) reads: usize,
    /// Loads from the router.
    pub(crate) fetches: usize,
    /// Loads that were ordered before a group needed them; among the above.
    pub(crate) ahead: usize,
    /// Loads that were ordered on a worker that had no slot for them.
    pub(crate) over_budget: usize,
    /// Groups that no worker could be found for.
    pub(crate) lost: usize,
}

impl Report {
    /// Loads into memory, from wherever.
    pub(crate) fn loads(&self) -> usize {
        self.reads + self.fetches
    }

    /// Share of the groups that found their adapter in memory.
    pub(crate) fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.routed.len().max(1) as f64
    }

    /// The wait that `percent` of the groups had at most.
    pub(crate) fn wait(&self, percent: f64) -> Duration {
        let last = self.waits.len().saturating_sub(1);
        let index = (last as f64 * percent / 100.0).round() as usize;
        self.waits.get(index).copied().unwrap_or_default()
    }
}
