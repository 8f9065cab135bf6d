//! Steps of a backend that is several machines: one alone would leave all of them idle but one. Several are under way at
//! once, each for other sequences, and end in the order in which they began. The engine never waits for one: the backend
//! wakes it.

use std::collections::VecDeque;
use std::num::NonZero;
use std::time::Instant;

use super::step::{Run, Scratch};
use super::turn::{Engine, Turn};
use crate::metrics;
use crate::scheduler::{Phase, StepPlan};

/// Steps under way at once, at most: a group may say something in each of them after it should have said nothing more.
pub(super) const MOST: usize = 8;

/// The steps under way. Bound: [`MOST`].
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// Oldest first.
    away: VecDeque<Flight>,
    /// Plans of steps that are over, memory used again.
    spare: Vec<StepPlan>,
    /// When the last one ended.
    landed: Option<Instant>,
}

#[derive(Debug)]
struct Flight {
    plan: StepPlan,
    began: Instant,
}

impl Flights {
    /// Whether none is under way.
    pub(super) fn are_landed(&self) -> bool {
        self.away.is_empty()
    }

    /// What they compute is lost, and so is everybody it is for.
    pub(super) fn clear(&mut self) {
        self.spare.extend(self.away.drain(..).map(|flight| flight.plan));
    }
}

impl Engine {
    /// Begins steps until `depth` of them are under way, and ends the oldest if it is back.
    pub(super) fn overlap(&mut self, depth: NonZero<usize>, scratch: &mut Scratch) -> Turn {
        let (begun, ended) = (self.begin_steps(depth, scratch), self.end_step(scratch));
        if (begun, ended) == (Turn::Idle, Turn::Idle) { Turn::Idle } else { Turn::Busy }
    }

    fn begin_steps(&mut self, depth: NonZero<usize>, scratch: &mut Scratch) -> Turn {
        let mut turn = Turn::Idle;
        while self.flights.away.len() < depth.get() {
            let mut plan = self.flights.spare.pop().unwrap_or_default();
            self.plan(&mut plan);
            let began = Instant::now();
            let launched = self.compute(&plan, &mut scratch.slices, Run::UnderWay);
            if launched.is_err() || plan.is_empty() {
                turn = if plan.is_empty() { turn } else { Turn::Busy };
                self.conclude(&plan, &launched, &mut scratch.words);
                self.flights.spare.push(plan);
                break;
            }
            self.flights.away.push_back(Flight { plan, began });
            turn = Turn::Busy;
        }
        turn
    }

    /// Ends the oldest step, if it is back. One that computes nothing only draws from what those before it have computed.
    fn end_step(&mut self, scratch: &mut Scratch) -> Turn {
        let Some(oldest) = self.flights.away.front() else { return Turn::Idle };
        let collected = if oldest.plan.slices.is_empty() {
            Ok(None)
        } else {
            let Some(collected) = self.backend.collect(&mut self.logits) else { return Turn::Idle };
            collected.map(Some)
        };
        let Some(Flight { plan, began }) = self.flights.away.pop_front() else { return Turn::Idle };
        if let Ok(Some(took)) = &collected {
            self.pace.observe(plan.tokens_of(Phase::Decode), plan.prefills(), took.as_secs_f64());
        }
        self.conclude(&plan, &collected.map(drop), &mut scratch.words);
        let now = Instant::now();
        // They overlap: what one adds to the time is what has passed since the one before.
        let since = self.flights.landed.map_or(began, |landed| landed.max(began));
        self.rate.observe(scratch.words.amount(&plan), now - since);
        metrics::step(&plan, now - began);
        self.flights.landed = Some(now);
        self.flights.spare.push(plan);
        Turn::Busy
    }
}
