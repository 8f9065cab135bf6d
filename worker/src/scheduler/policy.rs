//! The policy: continuous batching over paged KV as a pure state machine. The engine tells it what came and what was drawn,
//! and asks for the next step (`fill`). It never sees a token, a clock or a queue; it hands out blocks and counts.
//!
//! - A sequence takes blocks as it grows; nothing is reserved. Out of blocks, idle cached ones are evicted, then parked
//!   sequences are preempted, then the youngest (`room`). What was preempted is computed again later, to the same bits; the
//!   oldest is never preempted for another, so that it always ends.
//! - Full blocks are registered under their hash once the step that filled them is done. Whatever starts begins with the
//!   longest prefix that is registered.
//! - A group's prompt is computed once: its branches share its blocks, and each copies the last one when it writes to it.
//! - Several steps may be under way at once, and they end in the order in which they were planned. A sequence that waits for a
//!   token from one of them is in no other, and nobody preempts it; a prompt's chunks may follow each other through several.
//!   A backend has each step's effects before the next one's, so that the blocks of whoever is cancelled can be given
//!   away at once.
//! - What starts next is decided by `shares`; the one whose turn it is waits for room, and the others wait behind it, so
//!   that small groups cannot starve a large one.

use std::collections::BTreeMap;
use std::num::NonZero;

use shoal_common::ids::BranchIndex;

use super::blocks::Blocks;
use super::bounds::Bounds;
use super::group::{Flow, Group, GroupId, GroupShape, Life};
use super::plan::{Drawn, PlannedSlice, StepPlan};
use super::sequence::{Draws, Running, SequenceId};
use super::shares::Shares;
use crate::backend::{BLOCK_TOKENS, BlockId};

/// Why a group is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many groups as allowed are here, or as much work.
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
    /// Groups of which nothing runs.
    pub waiting: usize,
    /// Tokens still to compute, at most.
    pub queued_tokens: u64,
    /// KV tokens of the blocks that sequences hold.
    pub kv_used: u64,
}

/// What came of the cache and of the blocks' scarcity since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tokens of sequences that were looked for in the cache: at their start, and again after they were preempted.
    pub looked_up_tokens: u64,
    /// How many of them were found in the cache.
    pub cached_tokens: u64,
    /// Sequences that were preempted.
    pub preemptions: u64,
}

/// The state machine. Holds at most [`Bounds::groups`] groups and [`Bounds::slots`] sequences.
#[derive(Debug)]
pub struct Policy {
    pub(super) bounds: Bounds,
    pub(super) blocks: Blocks,
    pub(super) groups: BTreeMap<GroupId, Group>,
    pub(super) shares: Shares,
    pub(super) running: Running,
    /// The group whose turn it is, while there is no room for it: nothing starts before it.
    pub(super) next: Option<GroupId>,
    /// Steps planned so far.
    pub(super) step: u64,
    /// Sequences served so far, over all steps.
    pub(super) served: u64,
    pub(super) totals: Totals,
    /// Steps that are to be under way at once.
    pub(super) spread: NonZero<usize>,
    /// Rows of a step that cost about as much together as one.
    pub(super) rows_together: NonZero<usize>,
    /// Memory of `fill`, used again.
    pub(super) candidates: Vec<SequenceId>,
}

impl Policy {
    /// Nothing admitted, everything free.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            blocks: Blocks::new(bounds.blocks),
            bounds,
            groups: BTreeMap::new(),
            shares: Shares::default(),
            running: Running::default(),
            next: None,
            step: 0,
            served: 0,
            totals: Totals::default(),
            spread: NonZero::<usize>::MIN,
            rows_together: NonZero::<usize>::MIN,
            candidates: Vec::new(),
        }
    }

    /// From now on as many steps as `steps` are to be under way at once, with about as many tokens in each.
    pub fn spread_over(&mut self, steps: NonZero<usize>) {
        self.spread = steps;
    }

    /// From now on so many rows of a step cost about as much together as one.
    pub fn compute_together(&mut self, rows: NonZero<usize>) {
        self.rows_together = rows;
    }

    /// Takes a group in. `id` must be new; later ids are younger.
    pub fn admit(&mut self, id: GroupId, shape: GroupShape) -> Result<(), Refused> {
        if shape.blocks() > self.bounds.blocks {
            return Err(Refused::TooLong);
        }
        let queued = self.queued_tokens().saturating_add(shape.work());
        let is_first = self.groups.is_empty();
        if self.groups.len() >= self.bounds.groups || (queued > self.bounds.queued_tokens && !is_first) {
            return Err(Refused::Full);
        }
        self.shares.admit(shape.share_key, id);
        self.groups.insert(id, Group::new(shape));
        Ok(())
    }

    /// Drops a group, wherever it stands. One that is unknown or finished is passed over.
    pub fn cancel(&mut self, id: GroupId) {
        let Some(group) = self.groups.remove(&id) else { return };
        self.shares.finish(group.share_key, id);
        while let Some(sequence) = self.running.of_group(id).last().map(|sequence| sequence.id) {
            self.let_go(sequence);
        }
    }

    /// Whether anything was computed for the group.
    pub fn has_begun(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|group| group.has_begun)
    }

    /// No block holds what it held: nothing of it is found any more. Groups that have begun must be gone.
    pub fn forget_kv(&mut self) {
        assert!(self.running.is_empty() && self.blocks.referenced() == 0, "a sequence goes on with kv that is lost");
        self.blocks = Blocks::new(self.bounds.blocks);
    }

    /// Ends one branch, and the group if it was the last; then returns the group. A branch that is unknown or has ended is
    /// passed over.
    pub fn stop_branch(&mut self, id: GroupId, branch: BranchIndex) -> Option<GroupId> {
        let group = self.groups.get_mut(&id)?;
        if group.life(branch).is_none_or(|life| life == Life::Ended) {
            return None;
        }
        group.set_life(branch, Life::Ended);
        let (key, is_over) = (group.share_key, group.is_over());
        if group.first_waiting().is_none() {
            self.shares.leave(key, id);
        }
        self.let_go(SequenceId { group: id, branch });
        is_over.then(|| {
            self.cancel(id);
            id
        })
    }

    /// A parked group is not scheduled. It keeps what it holds until others need it.
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
            running: self.running.len(),
            waiting: self.groups.values().filter(|group| group.is_queued()).count(),
            queued_tokens: self.queued_tokens(),
            kv_used: (self.blocks.referenced() * BLOCK_TOKENS) as u64,
        }
    }

    fn queued_tokens(&self) -> u64 {
        self.groups.iter().map(|(id, group)| group.work_left(self.running.of_group(*id))).sum()
    }

    /// What came of the cache and of the blocks' scarcity.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether no group is here.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The block table of a sequence of the planned step.
    pub fn table(&self, id: SequenceId) -> &[BlockId] {
        self.running.get(id).map_or(&[], |sequence| &sequence.table)
    }

    /// Whether the sequence has not ended, nor its group.
    pub fn runs(&self, id: SequenceId) -> bool {
        self.running.get(id).is_some()
    }

    /// The step of `plan` is done; tells what came of its draws, and hears which groups are over (`finished`). Groups that
    /// are gone are passed over.
    pub fn complete(&mut self, plan: &StepPlan, drawn: &[(SequenceId, Drawn)], finished: &mut Vec<GroupId>) {
        self.bring_home(plan);
        for slice in &plan.slices {
            self.register(slice);
            let SequenceId { group: id, branch } = slice.sequence;
            let is_scored = |group: &Group| {
                !group.draws() && slice.end() == group.prompt && group.life(branch) == Some(Life::Running)
            };
            if self.groups.get(&id).is_some_and(is_scored) {
                finished.extend(self.stop_branch(id, branch));
            }
        }
        for (SequenceId { group: id, branch }, drawn) in drawn {
            match (drawn, self.groups.get_mut(id)) {
                (Drawn::GoesOn { filled }, Some(group)) => group.grow(*branch, *filled),
                (Drawn::Ended, _) => finished.extend(self.stop_branch(*id, *branch)),
                (Drawn::GoesOn { .. }, None) => {}
            }
        }
        self.shares.settle(|id| self.groups.get(&id).is_some_and(|group| group.flow == Flow::Open));
    }

    /// The step is under way no more for those it was for.
    fn bring_home(&mut self, plan: &StepPlan) {
        for slice in &plan.slices {
            if let Some(sequence) = self.running.get_mut(slice.sequence) {
                sequence.away -= slice.count;
            }
        }
        for draw in &plan.draws {
            if let Some(sequence) = self.running.get_mut(draw.sequence) {
                sequence.draw = Draws::Later;
            }
        }
    }

    /// The blocks that a slice has filled can be found from now on.
    fn register(&mut self, slice: &PlannedSlice) {
        let SequenceId { group, branch } = slice.sequence;
        let (Some(group), Some(sequence)) = (self.groups.get(&group), self.running.get_mut(slice.sequence)) else {
            return;
        };
        for at in slice.start / BLOCK_TOKENS..slice.end() / BLOCK_TOKENS {
            let Some(hash) = group.hash(branch, at) else { return };
            sequence.table[at] = self.blocks.register(sequence.table[at], *hash);
        }
    }
}
