//! The groups that come to a simulated cluster: Poisson arrivals, Zipf over adapters. All drawn ahead from one seed, so that
//! every policy meets the same ones.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::scenario::{Scenario, Turn};
use super::worker::PEAK;

/// Tokens that every prompt of an adapter begins with.
pub(super) const SHARED_PROMPT: u32 = 64;
/// Tokens of a prompt of its own, and of an answer: from and to.
const OWN_PROMPT: (u32, u32) = (16, 256);
const ANSWER: (u32, u32) = (8, 128);
/// `max_tokens` of every group: what a router must count with.
pub(super) const MAX_TOKENS: u32 = 256;

/// A group on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) at: Duration,
    /// Rank of the adapter, the most wanted first.
    pub(super) adapter: usize,
    pub(super) prompt: u32,
    pub(super) answer: u32,
}

/// What a group costs a worker, in answer tokens: prompt tokens go four at the price of one.
pub(super) fn cost(prompt: u32, answer: u32) -> f64 {
    f64::from(prompt) / 4.0 + f64::from(answer)
}

/// The groups of `scenario`, by time.
pub(super) fn arrivals(scenario: &Scenario, seed: u64) -> Vec<Arrival> {
    let mut rng = StdRng::seed_from_u64(seed);
    let capacity = PEAK * scenario.workers as f64 / mean_cost();
    let zipf = Zipf::new(scenario.adapters, scenario.zipf);
    let whole = (Duration::ZERO, scenario.time);
    let mut all = stream(capacity * scenario.load, whole, &mut rng, |rng| zipf.draw(rng));
    if let Turn::Hot { share } = scenario.turn {
        let hot = hot_adapter(scenario);
        all.extend(stream(capacity * share, scenario.middle(), &mut rng, |_| hot));
    }
    all.sort_by_key(|arrival| arrival.at);
    all
}

/// The adapter that becomes hot: one that some groups come for at other times too.
pub(super) fn hot_adapter(scenario: &Scenario) -> usize {
    scenario.adapters / 20
}

fn mean_cost() -> f64 {
    let mean = |(from, to): (u32, u32)| (from + to) / 2;
    cost(SHARED_PROMPT + mean(OWN_PROMPT), mean(ANSWER))
}

/// Groups at `rate` a second from one time to another.
fn stream(
    rate: f64,
    (from, to): (Duration, Duration),
    rng: &mut StdRng,
    adapter: impl Fn(&mut StdRng) -> usize,
) -> Vec<Arrival> {
    let mut at = from;
    let mut groups = Vec::new();
    loop {
        let pause = -(1.0 - rng.random::<f64>()).ln() / rate;
        at += Duration::from_secs_f64(pause);
        if at >= to {
            return groups;
        }
        groups.push(Arrival {
            at,
            adapter: adapter(rng),
            prompt: SHARED_PROMPT + rng.random_range(OWN_PROMPT.0..=OWN_PROMPT.1),
            answer: rng.random_range(ANSWER.0..=ANSWER.1),
        });
    }
}

/// Draws ranks with weights 1/(rank+1)^exponent.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut add = |rank: usize| {
            sum += (rank as f64 + 1.0).powf(-exponent);
            sum
        };
        Self((0..count).map(&mut add).collect())
    }

    fn draw(&self, rng: &mut StdRng) -> usize {
        let at = rng.random::<f64>() * self.0.last().copied().unwrap_or(0.0);
        self.0.partition_point(|sum| *sum <= at).min(self.0.len() - 1)
    }
}
