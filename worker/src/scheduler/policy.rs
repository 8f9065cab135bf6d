//! The policy: continuous batching as a pure state machine. The engine tells it what came and what was drawn, and asks for
//! the next step. A step takes running decodes first, in rotation when they do not all fit, then fills up with prefill
//! chunks, so that a long prompt never stalls running streams. It never sees a token, a clock or a queue.
//!
//! - A group's prompt is computed once; its branches fork from it as room allows.
//! - Room is reserved for the worst case before anything is computed, so a started branch always ends.
//! - What starts next is decided by `shares`; the one whose turn it is waits for room, and the others wait behind it, so
//!   that small groups cannot starve a large one.
//! - When nothing else can go on, a prompt that is only kept for waiting branches is given up and computed again later.

use std::collections::{BTreeMap, VecDeque};

use shoal_common::ids::BranchIndex;

use super::budget::{Bounds, Budget};
use super::plan::{Draw, Drawn, Feed, Fork, Freed, PlannedSlice, Row, StepPlan};
use super::sequence::{Flow, Group, GroupId, GroupShape, Held, SequenceId, Unit};
use super::shares::Shares;
use crate::backend::LogitsOf;

/// Rows of prompt scores in one step, over all groups: with a vocabulary of 128 k they are 32 MB of logits.
pub const SCORE_ROWS: usize = 64;

/// Why a group is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many groups as allowed are here.
    #[error("as many groups as allowed are admitted")]
    Full,
    /// One of its branches could not be held even alone.
    #[error("a branch is longer than all of the kv")]
    TooLong,
}

/// How much is running and waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that hold KV.
    pub running: usize,
    /// Groups of which nothing has started.
    pub waiting: usize,
    /// Tokens still to compute, at most.
    pub queued_tokens: u64,
    /// KV tokens reserved.
    pub kv_used: u64,
}

/// A sequence that has tokens to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Runner {
    group: GroupId,
    feed: Feed,
}

/// The state machine. Holds at most [`Bounds::groups`] groups and [`Bounds::slots`] runners.
#[derive(Debug)]
pub struct Policy {
    bounds: Bounds,
    budget: Budget,
    groups: BTreeMap<GroupId, Group>,
    shares: Shares,
    /// Least recently served first.
    runners: VecDeque<Runner>,
    /// Forked from in the planned step for the last time.
    outgoing: Vec<Held>,
    next_sequence: u64,
}

/// A step being filled.
struct Draft {
    plan: StepPlan,
    tokens_left: usize,
    score_rows_left: usize,
    /// Groups of which something starts in this step: its tokens are planned already, or wait for a fork.
    begun: Vec<GroupId>,
}

impl Policy {
    /// Nothing admitted, everything free.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            budget: Budget::new(&bounds),
            bounds,
            groups: BTreeMap::new(),
            shares: Shares::default(),
            runners: VecDeque::new(),
            outgoing: Vec::new(),
            next_sequence: 0,
        }
    }

    /// Takes a group in. `id` must be new; later ids are younger.
    pub fn admit(&mut self, id: GroupId, shape: &GroupShape) -> Result<(), Refused> {
        if self.groups.len() >= self.bounds.groups {
            return Err(Refused::Full);
        }
        if !self.budget.could_ever_hold(shape.longest()) {
            return Err(Refused::TooLong);
        }
        self.shares.push(shape.share_key, id);
        self.groups.insert(id, Group::new(shape));
        Ok(())
    }

    /// Drops a group, wherever it stands. An unknown or finished group frees nothing.
    pub fn cancel(&mut self, id: GroupId) -> Freed {
        let mut freed = Freed::default();
        self.finish(id, &mut freed);
        freed
    }

    /// Ends one branch. One that is unknown or has ended frees nothing.
    pub fn stop_branch(&mut self, id: GroupId, branch: BranchIndex) -> Freed {
        let mut freed = Freed::default();
        self.end_branch(id, branch, &mut freed);
        freed
    }

    /// A parked group keeps what it holds and is not scheduled.
    pub fn park(&mut self, id: GroupId) {
        self.set_flow(id, Flow::Parked);
    }

    /// The group is scheduled again.
    pub fn unpark(&mut self, id: GroupId) {
        self.set_flow(id, Flow::Open);
    }

    fn set_flow(&mut self, id: GroupId, flow: Flow) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.flow = flow;
        }
    }

    /// How much is running and waiting.
    pub fn load(&self) -> Load {
        Load {
            running: self.budget.used_slots(),
            waiting: self.groups.values().filter(|group| group.is_queued()).count(),
            queued_tokens: self.groups.values().map(Group::work_left).sum(),
            kv_used: self.budget.used_kv(),
        }
    }

    /// Whether no group is here.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The next step. Empty when nothing can go on before something is told. [`Policy::complete`] must follow.
    pub fn plan(&mut self) -> StepPlan {
        let mut step = Draft {
            plan: StepPlan::default(),
            tokens_left: self.bounds.step_tokens,
            score_rows_left: SCORE_ROWS,
            begun: Vec::new(),
        };
        // Where more sequences decode than a step holds, prompts still get a quarter of it: else nobody could begin until
        // somebody ends.
        let for_prompts = if self.has_prefills() || !self.shares.is_empty() { step.tokens_left / 4 } else { 0 };
        step.tokens_left -= for_prompts;
        self.serve_runners(&mut step, Turn::Decodes);
        step.tokens_left += for_prompts;
        // Newcomers come before prompts that are under way, with half of what is left: a long prompt must not hold up
        // everyone who comes after it.
        let kept = if self.has_prefills() { step.tokens_left / 2 } else { 0 };
        step.tokens_left -= kept;
        self.start_units(&mut step);
        step.tokens_left += kept;
        self.serve_runners(&mut step, Turn::Prefills);
        while step.plan.is_empty() && self.give_up_a_prompt(&mut step) {
            self.start_units(&mut step);
        }
        step.plan
    }

    /// Tells what came of the draws of `plan`. Draws of groups that are gone are passed over.
    pub fn complete(&mut self, plan: &StepPlan, drawn: &[(GroupId, BranchIndex, Drawn)]) -> Freed {
        let mut freed = Freed::default();
        for held in std::mem::take(&mut self.outgoing) {
            self.let_go(held, &mut freed);
        }
        for (id, branch, drawn) in drawn {
            match drawn {
                Drawn::GoesOn => self.grow(*id, *branch),
                Drawn::Ended => self.end_branch(*id, *branch, &mut freed),
            }
        }
        for slice in plan.slices.iter().filter(|slice| slice.feed == Feed::Prompt) {
            if self.groups.get(&slice.group).is_some_and(Group::is_over) {
                self.finish(slice.group, &mut freed);
            }
        }
        freed
    }

    fn serve_runners(&mut self, step: &mut Draft, turn: Turn) {
        let mut served = VecDeque::new();
        let mut passed = VecDeque::new();
        for runner in std::mem::take(&mut self.runners) {
            if self.turn_of(runner) != Some(turn) || step.begun.contains(&runner.group) {
                passed.push_back(runner);
                continue;
            }
            match self.serve(runner, step) {
                Served::GoesOn(next) => served.push_back(next),
                Served::NoBudget => passed.push_back(runner),
                Served::Done => {}
            }
        }
        passed.append(&mut served);
        self.runners = passed;
    }

    fn has_prefills(&self) -> bool {
        self.runners.iter().any(|runner| self.turn_of(*runner) == Some(Turn::Prefills))
    }

    /// Which turn serves the runner; `None` while it is parked.
    fn turn_of(&self, runner: Runner) -> Option<Turn> {
        let group = self.groups.get(&runner.group)?;
        let pending = group.pending(runner.feed)?;
        let may_run = group.flow == Flow::Open && pending.count > 0;
        let decodes = pending.count == 1 && runner.feed != Feed::Prompt;
        may_run.then_some(if decodes { Turn::Decodes } else { Turn::Prefills })
    }

    /// Plans as much of the runner's tokens as fit.
    fn serve(&mut self, runner: Runner, step: &mut Draft) -> Served {
        let Some(group) = self.groups.get_mut(&runner.group) else { return Served::Done };
        let Some(pending) = group.pending(runner.feed) else { return Served::Done };
        let scores = runner.feed == Feed::Prompt && group.scores_owed();
        let most = if scores { step.tokens_left.min(step.score_rows_left) } else { step.tokens_left };
        let count = pending.count.min(most);
        if count == 0 {
            return Served::NoBudget;
        }
        let reaches_end = count == pending.count;
        let logits = match runner.feed {
            Feed::Prompt if scores => LogitsOf::All,
            Feed::Prompt if reaches_end && group.wants_prompt_row() => LogitsOf::Last,
            Feed::Branch(_) if reaches_end => LogitsOf::Last,
            Feed::Prompt | Feed::Branch(_) => LogitsOf::None,
        };
        step.tokens_left -= count;
        if scores {
            step.score_rows_left -= count;
        }
        let Runner { group: id, feed } = runner;
        let slice = PlannedSlice { group: id, feed, sequence: pending.sequence, start: pending.start, count, logits };
        step.plan.slices.push(slice);
        group.advance(feed, count);
        if !reaches_end {
            return Served::GoesOn(runner);
        }
        let served = reach_end(runner, group, &mut step.plan);
        self.leave_queue_if_started(id);
        served
    }

    /// Starts prompts and forks branches, in fair turns, until there is no room or no budget.
    fn start_units(&mut self, step: &mut Draft) {
        while !self.shares.is_empty() {
            let ready = |id| self.groups.get(&id).is_some_and(|group| is_ready(group, step));
            let Some(id) = self.shares.next(ready) else { return };
            if !self.start_unit(id, step) {
                return;
            }
        }
    }

    /// Starts the group's next unit; false when there is no room for it.
    fn start_unit(&mut self, id: GroupId, step: &mut Draft) -> bool {
        let Some(group) = self.groups.get_mut(&id) else { return false };
        let Some(unit) = group.next_unit() else { return false };
        let Some(room) = self.budget.take(group.room_needed()) else { return false };
        let sequence = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        let runner = match unit {
            Unit::Prompt => {
                group.start_prompt(sequence, room);
                Runner { group: id, feed: Feed::Prompt }
            }
            Unit::Branch(at) => {
                let from = group.prompt_holder().expect("a branch is ready only while a sequence holds the prompt");
                step.plan.forks.push(Fork { group: id, from, to: sequence, length: group.prompt_len() });
                if !group.has_generated(at) {
                    step.plan.draws.push(Draw { group: id, branch: at, row: Row::Prompt });
                }
                self.outgoing.extend(group.start_branch(at, sequence, room));
                Runner { group: id, feed: Feed::Branch(at) }
            }
        };
        let key = group.share_key;
        self.shares.served(key);
        step.begun.push(id);
        if unit == Unit::Prompt {
            match self.serve(runner, step) {
                Served::GoesOn(next) => self.runners.push_back(next),
                Served::NoBudget => self.runners.push_back(runner),
                Served::Done => {}
            }
        } else {
            self.runners.push_back(runner);
        }
        self.leave_queue_if_started(id);
        true
    }

    fn leave_queue_if_started(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get(&id).filter(|group| !group.has_more_to_start()) {
            self.shares.remove(group.share_key, id);
        }
    }

    /// Nothing can go on: the youngest prompt that is only kept makes room.
    fn give_up_a_prompt(&mut self, step: &mut Draft) -> bool {
        let mut kept = self.groups.values_mut().rev().filter(|group| group.flow == Flow::Open && group.keeps_prompt());
        let Some(held) = kept.next().and_then(Group::give_up_prompt) else { return false };
        step.plan.releases.push(held.id);
        self.budget.give(held.room);
        true
    }

    fn grow(&mut self, id: GroupId, branch: BranchIndex) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.grow(branch);
        }
    }

    fn end_branch(&mut self, id: GroupId, branch: BranchIndex, freed: &mut Freed) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let held = group.end_branch(branch, &mut self.budget);
        let is_over = group.is_over();
        self.runners.retain(|runner| *runner != Runner { group: id, feed: Feed::Branch(branch) });
        if let Some(held) = held {
            self.let_go(held, freed);
        }
        if is_over {
            self.finish(id, freed);
        } else {
            self.leave_queue_if_started(id);
        }
    }

    fn finish(&mut self, id: GroupId, freed: &mut Freed) {
        let Some(group) = self.groups.remove(&id) else { return };
        self.shares.remove(group.share_key, id);
        self.runners.retain(|runner| runner.group != id);
        for held in group.into_held() {
            self.let_go(held, freed);
        }
        freed.finished.push(id);
    }

    fn let_go(&mut self, held: Held, freed: &mut Freed) {
        self.budget.give(held.room);
        freed.sequences.push(held.id);
    }
}

/// Which runners a pass over them serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Decodes,
    Prefills,
}

/// What became of a runner in a step.
enum Served {
    GoesOn(Runner),
    NoBudget,
    Done,
}

fn is_ready(group: &Group, step: &Draft) -> bool {
    let rows_left = !group.scores_owed() || step.score_rows_left > 0;
    let unit_is_ready = match group.next_unit() {
        Some(Unit::Prompt) => step.tokens_left > 0 && rows_left,
        Some(Unit::Branch(_)) => true,
        None => false,
    };
    group.flow == Flow::Open && unit_is_ready
}

/// All that is known is computed in this step: a token is drawn, unless a prompt was only scored or a branch resumes.
fn reach_end(runner: Runner, group: &mut Group, plan: &mut StepPlan) -> Served {
    let (branch, row) = match runner.feed {
        Feed::Branch(at) => (at, Row::Slice(plan.slices.len() - 1)),
        Feed::Prompt => match group.hand_prompt_over() {
            Some(at) => (at, Row::Prompt),
            None => return Served::Done,
        },
    };
    if row != Row::Prompt || !group.has_generated(branch) {
        plan.draws.push(Draw { group: runner.group, branch, row });
    }
    Served::GoesOn(Runner { group: runner.group, feed: Feed::Branch(branch) })
}
