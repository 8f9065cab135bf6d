//! How many workers an adapter's traffic is worth: grows at once with the sequences that run with it, shrinks slowly. One
//! per router, fed at dispatch. Pure: time is an argument.
//!
//! Demand is the number of sequences in flight, not a rate of requests: it needs no guess at how long an answer gets, and a
//! worker that falls behind shows in it at once. Its **level** follows every rise and falls by half in [`HALF_LIFE`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shoal_common::ids::Generation;

/// Time in which the level falls half-way to what is in flight: a pause between two bursts of a client passes, and copies
/// that nobody has needed for minutes are left to their workers' eviction.
pub const HALF_LIFE: Duration = Duration::from_secs(30);

/// An adapter leaves a worker only when its level has fallen to this part of what the remaining ones are worth, so that a
/// level near a border does not flap.
const SHRINKS_BELOW: f64 = 0.75;

/// Adapters whose demand is known, at most. Beyond that the quietest is forgotten: it is worth one worker.
pub const KNOWN: usize = 4096;

/// Workers that an adapter is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Width(pub usize);

impl Width {
    /// What an adapter without much traffic is worth.
    pub const ONE: Self = Self(1);
}

/// Whether more workers than before should have an adapter ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// No more than before.
    Steady,
    /// This group has made it worth more of them.
    Grew,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    in_flight: u32,
    level: f64,
    at: Instant,
    width: Width,
}

impl Level {
    fn new(now: Instant) -> Self {
        Self { in_flight: 0, level: 0.0, at: now, width: Width::ONE }
    }

    /// Lets the level fall to `now`.
    fn settle(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        let floor = f64::from(self.in_flight);
        self.level = floor + (self.level - floor).max(0.0) * 0.5_f64.powf(passed);
        self.at = self.at.max(now);
    }

    /// The width for the level, `share` sequences to a worker.
    fn fit(&mut self, share: u32) {
        let workers = |per_worker: f64| (self.level / per_worker).ceil().max(1.0) as usize;
        let share = f64::from(share.max(1));
        self.width = Width(self.width.0.clamp(workers(share), workers(share * SHRINKS_BELOW)));
    }
}

/// Demand by adapter. At most [`KNOWN`].
#[derive(Debug, Default)]
pub struct Demand {
    levels: HashMap<Generation, Level>,
}

impl Demand {
    /// `sequences` more are in flight; a worker is worth `share` of them.
    pub fn begin(&mut self, generation: Generation, sequences: u32, share: u32, now: Instant) -> (Width, Growth) {
        if self.levels.len() >= KNOWN && !self.levels.contains_key(&generation) {
            self.forget_quietest(now);
        }
        let level = self.levels.entry(generation).or_insert_with(|| Level::new(now));
        level.settle(now);
        level.in_flight = level.in_flight.saturating_add(sequences);
        level.level = level.level.max(f64::from(level.in_flight));
        let before = level.width;
        level.fit(share);
        (level.width, if level.width > before { Growth::Grew } else { Growth::Steady })
    }

    /// `sequences` are in flight no more.
    pub fn end(&mut self, generation: Generation, sequences: u32, now: Instant) {
        if let Some(level) = self.levels.get_mut(&generation) {
            level.settle(now);
            level.in_flight = level.in_flight.saturating_sub(sequences);
        }
    }

    /// What an adapter is worth now.
    pub fn width(&mut self, generation: Generation, share: u32, now: Instant) -> Width {
        let Some(level) = self.levels.get_mut(&generation) else { return Width::ONE };
        level.settle(now);
        level.fit(share);
        level.width
    }

    /// Adapters known.
    pub fn known(&self) -> usize {
        self.levels.len()
    }

    /// Forgets everything that is as good as nothing, or else the lowest level.
    fn forget_quietest(&mut self, now: Instant) {
        self.levels.values_mut().for_each(|level| level.settle(now));
        self.levels.retain(|_, level| level.in_flight > 0 || level.level >= 0.5);
        if self.levels.len() < KNOWN {
            return;
        }
        // Generations are hashes: as a tie-break they are as good as any, and the same everywhere.
        let order = |(a, of_a): &(&Generation, &Level), (b, of_b): &(&Generation, &Level)| {
            of_a.level.total_cmp(&of_b.level).then_with(|| a.cmp(b))
        };
        if let Some(quietest) = self.levels.iter().min_by(order).map(|(generation, _)| *generation) {
            self.levels.remove(&quietest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_common::ids::Digest;

    use super::*;

    const SHARE: u32 = 16;

    fn generation(of: usize) -> Generation {
        Generation(Digest::of(&of.to_le_bytes()))
    }

    fn after(seconds: u64) -> Instant {
        // One origin for all: `Instant` has no other.
        static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *ORIGIN.get_or_init(Instant::now) + Duration::from_secs(seconds)
    }

    #[test]
    fn an_adapter_grows_at_once_and_shrinks_slowly() {
        let (mut demand, one) = (Demand::default(), generation(1));
        assert_eq!(demand.begin(one, 16, SHARE, after(0)), (Width(1), Growth::Steady));
        assert_eq!(demand.begin(one, 1, SHARE, after(0)), (Width(2), Growth::Grew));
        assert_eq!(demand.begin(one, 47, SHARE, after(0)), (Width(4), Growth::Grew));
        demand.end(one, 64, after(1));
        assert_eq!(demand.width(one, SHARE, after(10)), Width(4), "it shrank within seconds");
        let widths: Vec<_> = (10..200).map(|second| demand.width(one, SHARE, after(second)).0).collect();
        assert!(widths.is_sorted_by(|a, b| a >= b && a - b <= 1), "{widths:?}");
        assert_eq!(widths.last(), Some(&1), "it never shrank");
    }

    #[test]
    fn a_level_near_a_border_does_not_flap() {
        let (mut demand, one) = (Demand::default(), generation(1));
        demand.begin(one, 17, SHARE, after(0));
        for second in 1..600 {
            demand.end(one, 2, after(second));
            let (width, growth) = demand.begin(one, 2, SHARE, after(second));
            assert_eq!((width, growth), (Width(2), Growth::Steady), "at {second} s");
        }
    }

    #[test]
    fn one_client_after_another_is_worth_one_worker_however_fast_it_asks() {
        let (mut demand, one) = (Demand::default(), generation(1));
        for second in 0..1000 {
            assert_eq!(demand.begin(one, 1, SHARE, after(second)).0, Width(1));
            demand.end(one, 1, after(second));
        }
    }

    #[test]
    fn no_more_adapters_are_known_than_the_bound_and_the_busy_ones_stay() {
        let mut demand = Demand::default();
        let busy = generation(usize::MAX);
        demand.begin(busy, 40, SHARE, after(0));
        for of in 0..KNOWN + 100 {
            demand.begin(generation(of), 1, SHARE, after(0));
            assert!(demand.known() <= KNOWN);
        }
        assert_eq!(demand.width(busy, SHARE, after(0)), Width(3), "the busiest was forgotten");
        demand.end(generation(0), 1, after(1));
    }

    proptest! {
        #[test]
        fn the_width_always_bears_what_is_in_flight(steps in prop::collection::vec((0u32..20, 0u64..40), 1..60)) {
            let (mut demand, one) = (Demand::default(), generation(1));
            let (mut in_flight, mut second) = (0u32, 0);
            for (sequences, wait) in steps {
                second += wait;
                if sequences % 2 == 0 {
                    in_flight += sequences;
                    demand.begin(one, sequences, SHARE, after(second));
                } else {
                    let ended = sequences.min(in_flight);
                    in_flight -= ended;
                    demand.end(one, ended, after(second));
                }
                let width = demand.width(one, SHARE, after(second));
                prop_assert!(width.0 >= (in_flight.div_ceil(SHARE) as usize).max(1));
            }
        }
    }
}
