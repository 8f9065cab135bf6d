//! What a simulated cluster is and what happens to it.

use std::time::Duration;

/// Sequences that a worker runs at once.
pub(super) const SEQUENCES: u32 = 32;

/// Tokens of KV of a worker.
pub(super) const KV_TOKENS: u64 = 64 << 10;

/// Bytes of every adapter, and of a worker's memory for one.
pub(super) const ADAPTER_BYTES: u64 = 8 << 20;

/// What happens to a cluster, beside the traffic that it always has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Turn {
    /// Nothing.
    Calm,
    /// One adapter takes this share of the cluster in the middle third of the time, on top of the rest.
    Hot {
        /// Of what all workers can compute.
        share: f64,
    },
    /// The first worker is gone in the middle third of the time.
    Leave,
}

/// A cluster and its traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// Its name, for tables and plots.
    pub(crate) name: &'static str,
    /// How many workers there are.
    pub(crate) workers: usize,
    /// How many adapters there are.
    pub(crate) adapters: usize,
    /// Adapters that a worker holds in memory.
    pub(crate) slots: u32,
    /// Exponent of the traffic's skew: the n-th adapter has 1/n^zipf of it.
    pub(crate) zipf: f64,
    /// Share of what all workers can compute that is asked for.
    pub(crate) load: f64,
    /// For how long groups come.
    pub(crate) time: Duration,
    /// What else happens.
    pub(crate) turn: Turn,
}

impl Scenario {
    /// Many more adapters than slots.
    pub(crate) const MANY: Self = Self {
        name: "1,000 adapters over 2 workers of 32 slots",
        workers: 2,
        adapters: 1000,
        slots: 32,
        zipf: 1.1,
        load: 0.6,
        time: Duration::from_secs(240),
        turn: Turn::Calm,
    };

    /// As many slots as adapters, over many workers.
    pub(crate) const WIDE: Self =
        Self { name: "200 adapters over 8 workers of 32 slots", workers: 8, adapters: 200, ..Self::MANY };

    /// An adapter that is suddenly wanted by everybody.
    pub(crate) const HOT: Self = Self {
        name: "a hot adapter among 200 over 8 workers",
        load: 0.25,
        turn: Turn::Hot { share: 0.4 },
        ..Self::WIDE
    };

    /// A worker that leaves and comes back.
    pub(crate) const LEAVE: Self =
        Self { name: "a worker of 8 leaves and comes back, 200 adapters", load: 0.3, turn: Turn::Leave, ..Self::WIDE };

    /// The middle third of the time.
    pub(crate) fn middle(&self) -> (Duration, Duration) {
        (self.time / 3, self.time * 2 / 3)
    }
}
