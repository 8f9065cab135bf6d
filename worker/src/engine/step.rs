//! One step, in the order of its plan: copy, compute, score, draw, say. A step at which the backend fails is computed once
//! more, group by group, so that the one that it fails at ends alone.

use std::time::Duration;

use shoal_common::ambient;
use shoal_common::telemetry::Chain;
use shoal_common::wire::message::GroupFailure;

use super::turn::{Engine, Life, Turn};
use crate::backend::{BackendError, LogitsOf, Slice};
use crate::metrics;
use crate::scheduler::{Draw, Drawn, GroupId, Phase, Row, SequenceId, StepPlan};

/// Groups of a failed step that may fail alone before the backend is taken for broken.
const CULPRITS: usize = 2;

/// Memory of a step, used again from step to step.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) plan: StepPlan,
    slices: Vec<Slice<'static>>,
    /// Where each slice's rows begin.
    first_rows: Vec<usize>,
    drawn: Vec<(SequenceId, Drawn)>,
    finished: Vec<GroupId>,
}

impl Engine {
    /// Plans a step and carries it out.
    pub(super) fn step(&mut self) -> Turn {
        let mut scratch = std::mem::take(&mut self.scratch);
        let turn = self.step_with(&mut scratch);
        self.scratch = scratch;
        turn
    }

    fn step_with(&mut self, scratch: &mut Scratch) -> Turn {
        let Scratch { plan, slices, first_rows, drawn, finished } = scratch;
        let totals = self.policy.totals();
        self.policy.plan(&self.pace, plan);
        metrics::scheduler(totals, self.policy.totals());
        let began = ambient::now();
        drawn.clear();
        let computed = self.compute(plan, slices);
        self.owed = if plan.slices.is_empty() { Duration::ZERO } else { self.backend.plays_for() };
        match &computed {
            Ok(()) => self.speak(plan, first_rows, drawn),
            Err(error) => {
                tracing::error!(error = %Chain(error), "a step failed");
                // Where it failed because the pool's life has ended, all that were of that life end with it.
                if self.heed_epoch() == Life::GoesOn {
                    self.step_by_group(plan, (slices, first_rows), drawn);
                }
            }
        }
        self.say_drawn(drawn);
        finished.clear();
        self.policy.complete(plan, drawn, finished);
        finished.drain(..).for_each(|id| self.end(id));
        if plan.is_empty() {
            return Turn::Idle;
        }
        let took = ambient::since(began) + self.owed;
        if computed.is_ok() {
            self.pace.observe(plan.tokens_of(Phase::Decode), plan.prefills(), took.as_secs_f64());
        }
        self.rate.observe(plan.tokens().max(drawn.len()), took);
        metrics::step(plan, took);
        Turn::Busy
    }

    fn compute(&mut self, plan: &StepPlan, memory: &mut Vec<Slice<'static>>) -> Result<(), BackendError> {
        plan.copies.iter().try_for_each(|copy| self.backend.copy_block(copy.from, copy.to))?;
        if plan.slices.is_empty() {
            return Ok(());
        }
        let mut slices = recycled(std::mem::take(memory));
        slices.extend(plan.slices.iter().map(|planned| {
            let group = self.groups.get(&planned.sequence.group).expect("the policy plans groups that are here");
            Slice {
                start: planned.start,
                tokens: group.tokens(planned),
                blocks: self.policy.table(planned.sequence),
                adapter: group.adapter(),
                logits: planned.logits,
            }
        }));
        let computed = self.backend.forward(&slices, &mut self.logits);
        *memory = recycled(slices);
        computed
    }

    /// Scores prompts and draws tokens from the logits of the step.
    fn speak(&mut self, plan: &StepPlan, first_rows: &mut Vec<usize>, drawn: &mut Vec<(SequenceId, Drawn)>) {
        let mut next = 0;
        first_rows.clear();
        for slice in &plan.slices {
            first_rows.push(next);
            next += slice.rows();
            let Some(group) = self.groups.get_mut(&slice.sequence.group) else { continue };
            let first = next - slice.rows();
            if slice.logits == LogitsOf::All
                && let Some(frame) = group.prompt_scores(slice, first, &self.logits, &mut self.sampler)
            {
                self.outbox.say(&group.sink, frame);
            }
            if slice.logits != LogitsOf::None {
                group.keep_prompt_row(slice, self.logits.row(next - 1));
            }
        }
        for Draw { sequence, row } in &plan.draws {
            let Some(group) = self.groups.get_mut(&sequence.group) else { continue };
            let row = match row {
                Row::Prompt => None,
                Row::Slice(at) => Some(self.logits.row(first_rows[*at] + plan.slices[*at].rows() - 1)),
            };
            drawn.push((*sequence, group.draw(sequence.branch, row, &mut self.sampler)));
        }
    }

    /// Says what was drawn: one frame a group. Draws of a group follow each other.
    fn say_drawn(&mut self, drawn: &[(SequenceId, Drawn)]) {
        for of_group in drawn.chunk_by(|(a, _), (b, _)| a.group == b.group) {
            let Some(group) = self.groups.get_mut(&of_group[0].0.group) else { continue };
            if let Some(frame) = group.take_frame() {
                self.outbox.say(&group.sink, frame);
            }
        }
    }

    /// Computes a step that failed group by group: nobody reads in a step what another group writes in it. A backend that
    /// fails at several of them is broken, and the rest end too, to go on at another worker.
    fn step_by_group(&mut self, plan: &StepPlan, (slices, rows): Memory<'_>, drawn: &mut Vec<(SequenceId, Drawn)>) {
        let groups = plan.groups();
        let copied = plan.copies.iter().try_for_each(|copy| self.backend.copy_block(copy.from, copy.to));
        let mut failures = if copied.is_err() || groups.len() == 1 { CULPRITS } else { 0 };
        for id in groups {
            let part = plan.part_of(id);
            if failures < CULPRITS && self.compute(&part, slices).is_ok() {
                self.speak(&part, rows, drawn);
            } else if !part.slices.is_empty() {
                failures += 1;
                self.fail(id, GroupFailure::Engine);
            }
        }
    }
}

/// Memory of slices and of where their rows begin.
type Memory<'a> = (&'a mut Vec<Slice<'static>>, &'a mut Vec<usize>);

/// The memory of slices of an earlier step: a vector of nothing fits any lifetime.
fn recycled<'a>(mut slices: Vec<Slice<'_>>) -> Vec<Slice<'a>> {
    slices.clear();
    slices.into_iter().map(|_| unreachable!("it was emptied")).collect()
}
