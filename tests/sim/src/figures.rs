//! What there is to be counted of a run, or of many. Filled in by `play`, added up by the binary.

use std::fmt;

/// Counts of a run, or of many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Virtual time in milliseconds.
    pub time_ms: u64,
    /// Requests that were answered whole.
    pub whole: u64,
    /// Requests that ended in an error, or were cut.
    pub failed: u64,
    /// Requests whose client left.
    pub left: u64,
    /// Faults that came to pass.
    pub faults: u64,
    /// Groups that went on elsewhere.
    pub replays: u64,
}

impl Figures {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        let (ours, theirs) = (self.numbers(), other.numbers());
        Self::from_numbers(std::array::from_fn(|at| ours[at] + theirs[at]))
    }

    /// In the order of the fields.
    pub fn numbers(&self) -> [u64; 6] {
        let Self { time_ms, whole, failed, left, faults, replays } = *self;
        [time_ms, whole, failed, left, faults, replays]
    }

    /// From [`numbers`](Self::numbers).
    pub fn from_numbers([time_ms, whole, failed, left, faults, replays]: [u64; 6]) -> Self {
        Self { time_ms, whole, failed, left, faults, replays }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time_ms, whole, failed, left, faults, replays } = self;
        write!(f, "{} s of virtual time, {whole} answers, {failed} errors, {left} left, ", time_ms / 1000)?;
        write!(f, "{faults} faults, {replays} replays")
    }
}

/// The value of a counter without labels, as `/metrics` would show it.
pub(crate) fn counter(metrics: &str, name: &str) -> u64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}
