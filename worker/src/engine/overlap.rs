//! Steps of a backend that is several machines: one alone would leave all of them idle but one. Several are under way at
//! once, each for other sequences, and end in the order in which they began. The engine never waits for one: the backend
//! wakes it.
//!
//! Where one fails, those that began after it may have read what it should have written. None of them is heard; when all are
//! back they are computed again, one after the other and group by group, before another one begins.

use std::collections::VecDeque;
use std::num::NonZero;
use std::time::{Duration, Instant};

use shoal_common::ambient;
use shoal_common::telemetry::Chain;

use super::step::{CULPRITS, Run, Scratch};
use super::turn::{Engine, Life, Turn};
use crate::backend::BackendError;
use crate::metrics;
use crate::scheduler::{Phase, StepPlan};

/// Steps under way at once, at most: a group may say something in each of them after it should have said nothing more.
pub(super) const MOST: usize = 8;

/// The steps under way. Bound: [`MOST`].
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// Oldest first.
    away: VecDeque<Flight>,
    /// Back and not heard, because one of them failed. Oldest first.
    again: VecDeque<StepPlan>,
    /// Plans of steps that are over, memory used again.
    spare: Vec<StepPlan>,
    /// When the last one ended.
    landed: Option<Instant>,
}

#[derive(Debug)]
struct Flight {
    plan: StepPlan,
    began: Instant,
    launched: Result<(), BackendError>,
}

impl Flights {
    /// Whether none is under way, and none has to be computed again.
    pub(super) fn are_landed(&self) -> bool {
        self.away.is_empty() && self.again.is_empty()
    }

    /// What they compute is lost, and so is everybody it is for.
    pub(super) fn clear(&mut self) {
        self.spare.extend(self.away.drain(..).map(|flight| flight.plan));
        self.spare.extend(self.again.drain(..));
    }

    /// Whether another one may begin.
    fn may_begin(&self, depth: NonZero<usize>) -> bool {
        let all_well = self.again.is_empty() && self.away.back().is_none_or(|last| last.launched.is_ok());
        all_well && self.away.len() < depth.get()
    }
}

impl Engine {
    /// Begins steps until `depth` of them are under way, and ends the oldest if it is back.
    pub(super) fn overlap(&mut self, depth: NonZero<usize>, scratch: &mut Scratch) -> Turn {
        let turns = [self.begin_steps(depth, scratch), self.end_step(scratch), self.step_again(scratch)];
        if turns == [Turn::Idle; 3] { Turn::Idle } else { Turn::Busy }
    }

    fn begin_steps(&mut self, depth: NonZero<usize>, scratch: &mut Scratch) -> Turn {
        let mut turn = Turn::Idle;
        while self.flights.may_begin(depth) {
            let mut plan = self.flights.spare.pop().unwrap_or_default();
            self.plan(&mut plan);
            if plan.is_empty() {
                self.speak(&plan, &mut scratch.words);
                self.conclude(&plan, &mut scratch.words);
                self.flights.spare.push(plan);
                break;
            }
            let began = ambient::now();
            let launched = self.compute(&plan, &mut scratch.slices, Run::UnderWay);
            self.flights.away.push_back(Flight { plan, began, launched });
            turn = Turn::Busy;
        }
        turn
    }

    /// Ends the oldest step, if it is back. One that computes nothing only draws from what those before it have computed.
    fn end_step(&mut self, scratch: &mut Scratch) -> Turn {
        let Some(oldest) = self.flights.away.front() else { return Turn::Idle };
        let collected = if oldest.launched.is_err() || oldest.plan.slices.is_empty() {
            Ok(None)
        } else {
            let Some(collected) = self.backend.collect(&mut self.logits) else { return Turn::Idle };
            collected.map(Some)
        };
        let Some(Flight { plan, began, launched }) = self.flights.away.pop_front() else { return Turn::Idle };
        match launched.and(collected) {
            Ok(took) if self.flights.again.is_empty() => self.land((plan, began), took, scratch),
            Ok(_) => self.flights.again.push_back(plan),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "a step failed");
                // Where it failed because the pool's life has ended, all that were of that life end with it.
                if self.heed_epoch() == Life::GoesOn {
                    self.flights.again.push_back(plan);
                }
            }
        }
        Turn::Busy
    }

    /// A step has come to a good end; `took` where it took longest.
    fn land(&mut self, (plan, began): (StepPlan, Instant), took: Option<Duration>, scratch: &mut Scratch) {
        if let Some(took) = took {
            self.pace.observe(plan.tokens_of(Phase::Decode), plan.prefills(), took.as_secs_f64());
        }
        self.speak(&plan, &mut scratch.words);
        self.conclude(&plan, &mut scratch.words);
        let now = ambient::now();
        // They overlap: what one adds to the time is what has passed since the one before.
        let since = self.flights.landed.map_or(began, |landed| landed.max(began));
        self.rate.observe(scratch.words.amount(&plan), now - since);
        metrics::step(&plan, now - began);
        self.flights.landed = Some(now);
        self.flights.spare.push(plan);
    }

    /// Computes the oldest of those again that were not heard, once none is under way.
    fn step_again(&mut self, scratch: &mut Scratch) -> Turn {
        if !self.flights.away.is_empty() {
            return Turn::Idle;
        }
        let Some(plan) = self.flights.again.pop_front() else { return Turn::Idle };
        // What it copied may have been copied too early, or be something else by now.
        let failures = if plan.copies.is_empty() { 0 } else { CULPRITS };
        self.step_by_group(&plan, failures, (&mut scratch.slices, &mut scratch.words));
        self.conclude(&plan, &mut scratch.words);
        self.flights.spare.push(plan);
        Turn::Busy
    }
}
