//! One step, in the order of its plan: release, compute, fork, score, draw, say. A backend that fails takes the groups of
//! its step with it and nobody else.

use std::collections::BTreeSet;
use std::time::Instant;

use shoal_common::ids::BranchIndex;
use shoal_common::telemetry::Chain;
use shoal_common::wire::message::GroupFailure;

use super::turn::{Engine, Turn};
use crate::backend::{BackendError, LogitsOf, Slice};
use crate::metrics;
use crate::scheduler::{Drawn, Feed, Fork, GroupId, PlannedSlice, Row, StepPlan};

impl Engine {
    /// Plans a step and carries it out.
    pub(super) fn step(&mut self) -> Turn {
        let plan = self.policy.plan();
        for sequence in &plan.releases {
            self.tables.release(*sequence);
        }
        let began = Instant::now();
        let drawn = match self.compute(&plan) {
            Ok(()) => self.speak(&plan),
            Err(error) => {
                self.fail_step(&plan, &error);
                Vec::new()
            }
        };
        self.finish(&plan, &drawn);
        if plan.is_empty() {
            return Turn::Idle;
        }
        self.rate.observe(plan.tokens().max(drawn.len()), began.elapsed());
        metrics::step(&plan, began.elapsed());
        Turn::Busy
    }

    fn compute(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        plan.slices.iter().for_each(|slice| self.tables.grow(slice.sequence, slice.start + slice.count));
        let slice = |planned: &PlannedSlice| {
            let group = self.groups.get(&planned.group).expect("the policy plans groups that are here");
            Slice {
                start: planned.start,
                tokens: group.tokens(planned),
                blocks: self.tables.of(planned.sequence),
                logits: planned.logits,
            }
        };
        let slices: Vec<_> = plan.slices.iter().map(slice).collect();
        if !slices.is_empty() {
            self.backend.forward(&slices, &mut self.logits)?;
        }
        plan.forks.iter().try_for_each(|fork| self.fork(fork))
    }

    fn fork(&mut self, fork: &Fork) -> Result<(), BackendError> {
        self.tables.grow(fork.to, fork.length);
        let blocks = self.tables.of(fork.from).iter().zip(self.tables.of(fork.to));
        blocks.into_iter().try_for_each(|(from, to)| self.backend.copy_block(*from, *to))
    }

    /// Scores prompts and draws tokens from the logits of the step.
    fn speak(&mut self, plan: &StepPlan) -> Vec<(GroupId, BranchIndex, Drawn)> {
        let first_rows = first_rows(&plan.slices);
        let last_row = |at: usize| first_rows[at] + rows(&plan.slices[at]) - 1;
        for (at, slice) in plan.slices.iter().enumerate() {
            let Some(group) = self.groups.get_mut(&slice.group).filter(|_| slice.feed == Feed::Prompt) else {
                continue;
            };
            if slice.logits == LogitsOf::All
                && let Some(frame) = group.prompt_scores(slice, first_rows[at], &self.logits, &mut self.sampler)
            {
                self.outbox.say(&group.sink, frame);
            }
            if slice.logits != LogitsOf::None {
                group.keep_prompt_row(slice, self.logits.row(last_row(at)));
            }
        }
        let mut drawn = Vec::with_capacity(plan.draws.len());
        for draw in &plan.draws {
            let Some(group) = self.groups.get_mut(&draw.group) else { continue };
            let row = match draw.row {
                Row::Prompt => None,
                Row::Slice(at) => Some(self.logits.row(last_row(at))),
            };
            drawn.push((draw.group, draw.branch, group.draw(draw.branch, row, &mut self.sampler)));
        }
        drawn
    }

    /// Says what was drawn, then frees what has ended.
    fn finish(&mut self, plan: &StepPlan, drawn: &[(GroupId, BranchIndex, Drawn)]) {
        let drew: BTreeSet<_> = drawn.iter().map(|(id, ..)| *id).collect();
        for id in drew {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if let Some(frame) = group.take_frame() {
                self.outbox.say(&group.sink, frame);
            }
        }
        let freed = self.policy.complete(plan, drawn);
        self.free(freed);
    }

    fn fail_step(&mut self, plan: &StepPlan, error: &BackendError) {
        tracing::error!(error = %Chain(error), "a step failed");
        let of_slices = plan.slices.iter().map(|slice| slice.group);
        let groups: BTreeSet<_> = of_slices.chain(plan.forks.iter().map(|fork| fork.group)).collect();
        for id in groups {
            self.fail(id, GroupFailure::Engine);
        }
    }
}

/// Rows of logits a planned slice yields.
fn rows(slice: &PlannedSlice) -> usize {
    match slice.logits {
        LogitsOf::None => 0,
        LogitsOf::Last => 1,
        LogitsOf::All => slice.count,
    }
}

/// Where each slice's rows begin.
fn first_rows(slices: &[PlannedSlice]) -> Vec<usize> {
    slices
        .iter()
        .scan(0, |next, slice| {
            let first = *next;
            *next += rows(slice);
            Some(first)
        })
        .collect()
}
