//! What one seed plays: the shape of the cluster, what is asked of it and what befalls it. Pure: the same seed gives the
//! same scenario.

use std::num::NonZeroU32;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shoal_common::config::{Faults, Script, Timers};

use crate::faults::{self, Planned};
use crate::requests::{self, Request};

/// Everything that a run depends on.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where it comes from.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// What is asked, by time.
    pub requests: Vec<Request>,
    /// What befalls it, by time.
    pub faults: Vec<Planned>,
}

/// How much the workers can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// All that is asked, on one worker.
    Ample,
    /// Less: requests may be told that all workers are full.
    Tight,
}

/// A cluster.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How many routers; workers dial all of them.
    pub routers: usize,
    /// How many workers, all of one model.
    pub workers: usize,
    /// What the model says.
    pub script: Script,
    /// Whether workers may be full.
    pub room: Room,
    /// Sequences of a worker that run at once.
    pub slots: u32,
    /// Groups of a worker.
    pub groups: u32,
    /// KV of a worker in tokens.
    pub kv_tokens: u64,
    /// Tokens of a step.
    pub step_tokens: u32,
    /// Of the links.
    pub timers: Timers,
    /// Of a request; absent: none.
    pub deadline: Option<Duration>,
    /// After which a client that takes nothing is cut off.
    pub slow_reader: Duration,
    /// Longest way of a datagram.
    pub latency: Duration,
}

impl Scenario {
    /// The scenario of `seed`.
    pub fn draw(seed: u64) -> Self {
        let mut numbers = StdRng::seed_from_u64(seed);
        let shape = Shape::draw(&mut numbers);
        let requests = requests::draw(&shape, &mut numbers);
        let faults = faults::draw(&shape, &mut numbers);
        Self { seed, shape, requests, faults }
    }
}

impl Shape {
    fn draw(numbers: &mut StdRng) -> Self {
        let one_of = |values: &[u64], numbers: &mut StdRng| *values.choose(numbers).expect("there are some");
        let room = if numbers.random_bool(0.8) { Room::Ample } else { Room::Tight };
        let (groups, kv_tokens) = match room {
            Room::Ample => (256, one_of(&[1 << 10, 4 << 10, 64 << 10], numbers)),
            Room::Tight => (one_of(&[1, 2, 4], numbers), 1 << 10),
        };
        Self {
            routers: if numbers.random_bool(0.2) { 2 } else { 1 },
            workers: one_of(&[1, 2, 2, 3, 3, 4], numbers) as usize,
            script: Script {
                step: Duration::from_millis(one_of(&[2, 5, 10, 20, 50], numbers)),
                salt: numbers.random(),
                context: requests::CONTEXT,
                eos_every: NonZeroU32::new(one_of(&[0, 30, 100], numbers) as u32),
                faults: Faults::On,
                hang: Script::default().hang,
            },
            room,
            slots: one_of(&[2, 4, 16], numbers) as u32,
            groups: groups as u32,
            kv_tokens,
            step_tokens: one_of(&[16, 64, 256], numbers) as u32,
            timers: Timers { drain: Duration::from_secs(one_of(&[1, 4, 15], numbers)), ..Timers::default() },
            deadline: numbers.random_bool(0.1).then(|| Duration::from_millis(one_of(&[500, 2_000, 6_000], numbers))),
            slow_reader: Duration::from_secs(one_of(&[2, 10], numbers)),
            latency: Duration::from_millis(one_of(&[1, 3, 10, 30], numbers)),
        }
    }
}
