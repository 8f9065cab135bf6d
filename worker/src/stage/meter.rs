//! How much a stage has computed, as its head knows it: written by whoever has a step's answer, read by
//! [`Board`](super::Board). Counts only grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Of one stage, in this life of its head. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    steps: AtomicU64,
    computing_us: AtomicU64,
}

/// What a [`Meter`] shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Computed {
    pub(super) steps: u64,
    pub(super) computing_us: u64,
}

impl Meter {
    /// A step took so long there, without the way.
    pub(super) fn add(&self, took: Duration) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        self.0.computing_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Computed {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Computed { steps: read(&self.0.steps), computing_us: read(&self.0.computing_us) }
    }
}
