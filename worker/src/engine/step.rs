//! One step, in the order of its plan: copy, compute, score, draw, say. Where several are under way at once, `overlap` has
//! them begin and end. A step at which the backend fails is computed once more, group by group, so that the one that it fails
//! at ends alone.

use std::num::NonZero;
use std::time::Duration;

use shoal_common::ambient;
use shoal_common::telemetry::Chain;
use shoal_common::wire::message::GroupFailure;

use super::overlap;
use super::turn::{Engine, Life, Turn};
use crate::backend::{BackendError, LogitsOf, Slice};
use crate::metrics;
use crate::scheduler::{Draw, Drawn, GroupId, Phase, Row, SequenceId, StepPlan};

/// Groups of a failed step that may fail alone before the backend is taken for broken.
pub(super) const CULPRITS: usize = 2;

/// Memory of a step, used again from step to step.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    plan: StepPlan,
    pub(super) slices: Vec<Slice<'static>>,
    pub(super) words: Words,
}

/// Memory of what a step says.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Where each slice's rows begin.
    first_rows: Vec<usize>,
    drawn: Vec<(SequenceId, Drawn)>,
    finished: Vec<GroupId>,
}

impl Words {
    /// How much a step has computed or, where it computed nothing, drawn.
    pub(super) fn amount(&self, plan: &StepPlan) -> usize {
        plan.tokens().max(self.drawn.len())
    }
}

/// How a backend is made to compute a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// To its end.
    ToTheEnd,
    /// It ends when it is collected.
    UnderWay,
}

impl Engine {
    /// Plans a step and carries it out; or several at once, where the backend is several machines.
    pub(super) fn step(&mut self) -> Turn {
        let mut scratch = std::mem::take(&mut self.scratch);
        let depth = NonZero::new(self.backend.depth().min(overlap::MOST)).unwrap_or(NonZero::<usize>::MIN);
        self.policy.spread_over(depth);
        let turn = if depth.get() == 1 && self.flights.are_landed() {
            self.step_with(&mut scratch)
        } else {
            self.overlap(depth, &mut scratch)
        };
        self.scratch = scratch;
        turn
    }

    fn step_with(&mut self, scratch: &mut Scratch) -> Turn {
        let Scratch { plan, slices, words } = scratch;
        self.plan(plan);
        let began = ambient::now();
        self.owed = Duration::ZERO;
        let computed = self.compute(plan, slices, Run::ToTheEnd);
        match &computed {
            Ok(()) => self.speak(plan, words),
            Err(error) => self.fail_step(plan, error, (slices, words)),
        }
        self.conclude(plan, words);
        if plan.is_empty() {
            return Turn::Idle;
        }
        let took = ambient::since(began) + self.owed;
        if computed.is_ok() {
            self.pace.observe(plan.tokens_of(Phase::Decode), plan.prefills(), took.as_secs_f64());
        }
        self.rate.observe(words.amount(plan), took);
        metrics::step(plan, took);
        Turn::Busy
    }

    /// The policy's next step.
    pub(super) fn plan(&mut self, plan: &mut StepPlan) {
        let totals = self.policy.totals();
        self.policy.plan(&self.pace, plan);
        metrics::scheduler(totals, self.policy.totals());
    }

    /// What came of a step is said, and told to the policy.
    pub(super) fn conclude(&mut self, plan: &StepPlan, words: &mut Words) {
        let Words { drawn, finished, .. } = words;
        self.say_drawn(drawn);
        finished.clear();
        self.policy.complete(plan, drawn, finished);
        finished.drain(..).for_each(|id| self.end(id));
    }

    pub(super) fn compute(
        &mut self,
        plan: &StepPlan,
        memory: &mut Vec<Slice<'static>>,
        run: Run,
    ) -> Result<(), BackendError> {
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
        let computed = match run {
            Run::ToTheEnd => self.backend.forward(&slices, &mut self.logits),
            Run::UnderWay => self.backend.launch(&slices),
        };
        if run == Run::ToTheEnd {
            self.owed += self.backend.plays_for();
        }
        *memory = recycled(slices);
        computed
    }

    /// Scores prompts and draws tokens from the logits of the step.
    pub(super) fn speak(&mut self, plan: &StepPlan, words: &mut Words) {
        words.drawn.clear();
        self.speak_more(plan, words);
    }

    fn speak_more(&mut self, plan: &StepPlan, Words { first_rows, drawn, .. }: &mut Words) {
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
            if !group.is_open(sequence.branch) {
                continue;
            }
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

    /// The backend failed at a step that nothing else depends on yet.
    fn fail_step(&mut self, plan: &StepPlan, error: &BackendError, (slices, words): Memory<'_>) {
        tracing::error!(error = %Chain(error), "a step failed");
        words.drawn.clear();
        // Where it failed because the pool's life has ended, all that were of that life end with it.
        if self.heed_epoch() == Life::Changed {
            return;
        }
        let copied = plan.copies.iter().try_for_each(|copy| self.backend.copy_block(copy.from, copy.to));
        let failures = if copied.is_err() || plan.groups().len() == 1 { CULPRITS } else { 0 };
        self.step_by_group(plan, failures, (slices, words));
    }

    /// Computes a step group by group, whose copies were made: nobody reads in a step what another group writes in it. A backend
    /// that fails at several of them is broken, and the rest end too, to go on at another worker; there were `failures` already.
    pub(super) fn step_by_group(&mut self, plan: &StepPlan, mut failures: usize, (slices, words): Memory<'_>) {
        words.drawn.clear();
        for id in plan.groups() {
            let part = plan.part(|sequence| sequence.group == id && self.policy.runs(sequence));
            if failures < CULPRITS && self.compute(&part, slices, Run::ToTheEnd).is_ok() {
                self.speak_more(&part, words);
            } else if !part.slices.is_empty() {
                failures += 1;
                self.fail(id, GroupFailure::Engine);
            }
        }
    }
}

/// Memory of slices and of what a step says.
pub(super) type Memory<'a> = (&'a mut Vec<Slice<'static>>, &'a mut Words);

/// The memory of slices of an earlier step: a vector of nothing fits any lifetime.
fn recycled<'a>(mut slices: Vec<Slice<'_>>) -> Vec<Slice<'a>> {
    slices.clear();
    slices.into_iter().map(|_| unreachable!("it was emptied")).collect()
}
