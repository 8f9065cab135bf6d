//! The books of one group: how much of its prompt and of each branch is computed, and which sequences hold it. A branch
//! *knows* prompt + generated tokens and has *computed* some of them; when the two meet, its next token is drawn. A prefill,
//! a resumed branch and a decode differ in nothing else. Used by the policy alone.

use shoal_common::ids::BranchIndex;

use super::budget::{Budget, Room};
use super::plan::Feed;

/// A sequence that holds KV. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A group in this engine's life. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

/// Whether the prompt's tokens are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Only the last row of the prompt is wanted.
    Off,
    /// Every row is.
    Prompt,
}

/// What the policy must know of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupShape {
    /// Key of the fair share.
    pub share_key: u64,
    /// Prompt tokens, at least 1.
    pub prompt: usize,
    /// Tokens each branch generates at most, emitted ones included.
    pub max_tokens: usize,
    /// Per branch, tokens it has generated already: fewer than `max_tokens`. Empty: the prompt is only scored.
    pub emitted: Vec<usize>,
    /// Whether the prompt is scored.
    pub scoring: Scoring,
}

impl GroupShape {
    /// KV tokens of the longest sequence the group can need.
    pub(super) fn longest(&self) -> usize {
        self.prompt + if self.emitted.is_empty() { 0 } else { self.max_tokens }
    }
}

/// A sequence with the KV of its first `computed` tokens.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: SequenceId,
    pub(super) computed: usize,
    pub(super) room: Room,
}

/// Who holds the KV of the prompt.
#[derive(Debug)]
enum PromptKv {
    /// Nobody.
    Absent,
    /// It is being computed.
    Filling(Held),
    /// Every running branch.
    InBranches,
    /// A branch that has ended, while others wait to fork from it and none runs.
    Kept(Held),
}

#[derive(Debug)]
enum BranchState {
    Waiting,
    Running(Held),
    Ended,
}

#[derive(Debug)]
struct Branch {
    generated: usize,
    state: BranchState,
}

/// Whether the prompt's scores are still owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scores {
    Owed,
    Settled,
}

/// Whether the group's stream takes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Open,
    Parked,
}

/// The next thing of a group that has to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Compute the prompt, with room for the first branch.
    Prompt,
    /// Fork this branch from the prompt.
    Branch(BranchIndex),
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) share_key: u64,
    pub(super) flow: Flow,
    prompt_len: usize,
    max_tokens: usize,
    scores: Scores,
    prompt: PromptKv,
    branches: Vec<Branch>,
}

impl Group {
    pub(super) fn new(shape: &GroupShape) -> Self {
        let branch = |emitted: &usize| Branch { generated: *emitted, state: BranchState::Waiting };
        Self {
            share_key: shape.share_key,
            flow: Flow::Open,
            prompt_len: shape.prompt,
            max_tokens: shape.max_tokens,
            scores: if shape.scoring == Scoring::Prompt { Scores::Owed } else { Scores::Settled },
            prompt: PromptKv::Absent,
            branches: shape.emitted.iter().map(branch).collect(),
        }
    }

    pub(super) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    pub(super) fn scores_owed(&self) -> bool {
        self.scores == Scores::Owed
    }

    fn first_waiting(&self) -> Option<usize> {
        self.branches.iter().position(|branch| matches!(branch.state, BranchState::Waiting))
    }

    fn runs(&self) -> bool {
        self.branches.iter().any(|branch| matches!(branch.state, BranchState::Running(_)))
    }

    /// Whether a branch waits that draws its first token from the prompt's last row.
    pub(super) fn wants_prompt_row(&self) -> bool {
        self.branches.iter().any(|branch| matches!(branch.state, BranchState::Waiting) && branch.generated == 0)
    }

    /// Whether it holds no KV and computes nothing: it waits in the queue.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.prompt, PromptKv::Absent)
    }

    /// Whether an ended branch's sequence is kept for those that wait.
    pub(super) fn keeps_prompt(&self) -> bool {
        matches!(self.prompt, PromptKv::Kept(_))
    }

    /// Whether nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.scores == Scores::Settled && self.first_waiting().is_none() && !self.runs()
    }

    /// Whether something will have to start, now or later.
    pub(super) fn has_more_to_start(&self) -> bool {
        self.first_waiting().is_some() || (self.is_queued() && self.scores_owed())
    }

    /// What can start now, room permitting.
    pub(super) fn next_unit(&self) -> Option<Unit> {
        match self.prompt {
            PromptKv::Absent => self.has_more_to_start().then_some(Unit::Prompt),
            PromptKv::Filling(_) => None,
            PromptKv::InBranches | PromptKv::Kept(_) => self.first_waiting().map(|at| Unit::Branch(branch_index(at))),
        }
    }

    /// KV tokens to reserve for the next unit.
    pub(super) fn room_needed(&self) -> usize {
        self.prompt_len + if self.first_waiting().is_some() { self.max_tokens } else { 0 }
    }

    /// A sequence that holds the whole prompt.
    pub(super) fn prompt_holder(&self) -> Option<SequenceId> {
        if let PromptKv::Kept(held) = &self.prompt {
            return Some(held.id);
        }
        self.branches.iter().find_map(|branch| match &branch.state {
            BranchState::Running(held) => Some(held.id),
            BranchState::Waiting | BranchState::Ended => None,
        })
    }

    fn held(&self, feed: Feed) -> Option<&Held> {
        match feed {
            Feed::Prompt => match &self.prompt {
                PromptKv::Filling(held) => Some(held),
                _ => None,
            },
            Feed::Branch(at) => match &self.branches.get(at.index())?.state {
                BranchState::Running(held) => Some(held),
                BranchState::Waiting | BranchState::Ended => None,
            },
        }
    }

    /// Sequence, position and count of the tokens known but not computed.
    pub(super) fn pending(&self, feed: Feed) -> Option<Pending> {
        let held = self.held(feed)?;
        let known = match feed {
            Feed::Prompt => self.prompt_len,
            Feed::Branch(at) => self.prompt_len + self.branches[at.index()].generated,
        };
        Some(Pending { sequence: held.id, start: held.computed, count: known - held.computed })
    }

    /// `count` more tokens of `feed` are computed.
    pub(super) fn advance(&mut self, feed: Feed, count: usize) {
        let held = match feed {
            Feed::Prompt => match &mut self.prompt {
                PromptKv::Filling(held) => Some(held),
                _ => None,
            },
            Feed::Branch(at) => match &mut self.branches[at.index()].state {
                BranchState::Running(held) => Some(held),
                BranchState::Waiting | BranchState::Ended => None,
            },
        };
        if let Some(held) = held {
            held.computed += count;
        }
    }

    pub(super) fn start_prompt(&mut self, id: SequenceId, room: Room) {
        self.prompt = PromptKv::Filling(Held { id, computed: 0, room });
    }

    /// The prompt is computed: its sequence becomes the first waiting branch's. `None` when no branch waits.
    pub(super) fn hand_prompt_over(&mut self) -> Option<BranchIndex> {
        self.scores = Scores::Settled;
        let at = self.first_waiting()?;
        if let PromptKv::Filling(held) = std::mem::replace(&mut self.prompt, PromptKv::InBranches) {
            self.branches[at].state = BranchState::Running(held);
        }
        Some(branch_index(at))
    }

    /// The branch runs on a sequence of its own that holds the prompt. Returns the sequence that was kept for it until now.
    pub(super) fn start_branch(&mut self, at: BranchIndex, id: SequenceId, room: Room) -> Option<Held> {
        self.branches[at.index()].state = BranchState::Running(Held { id, computed: self.prompt_len, room });
        self.drop_kept_prompt()
    }

    fn drop_kept_prompt(&mut self) -> Option<Held> {
        let is_needed = self.first_waiting().is_some() && !self.runs();
        if is_needed || !self.keeps_prompt() {
            return None;
        }
        let next = if self.runs() { PromptKv::InBranches } else { PromptKv::Absent };
        match std::mem::replace(&mut self.prompt, next) {
            PromptKv::Kept(held) => Some(held),
            _ => None,
        }
    }

    pub(super) fn has_generated(&self, at: BranchIndex) -> bool {
        self.branches[at.index()].generated > 0
    }

    /// A token was drawn and the branch goes on.
    pub(super) fn grow(&mut self, at: BranchIndex) {
        self.branches[at.index()].generated += 1;
    }

    /// The branch has ended. Returns what nobody needs any more; ending it again returns nothing.
    pub(super) fn end_branch(&mut self, at: BranchIndex, budget: &mut Budget) -> Option<Held> {
        let branch = self.branches.get_mut(at.index())?;
        let BranchState::Running(mut held) = std::mem::replace(&mut branch.state, BranchState::Ended) else {
            return self.drop_kept_prompt();
        };
        if self.runs() {
            return Some(held);
        }
        if self.first_waiting().is_none() {
            self.prompt = PromptKv::Absent;
            return Some(held);
        }
        budget.shrink(&mut held.room, held.computed);
        self.prompt = PromptKv::Kept(held);
        None
    }

    /// Gives up the kept prompt; it will be computed again.
    pub(super) fn give_up_prompt(&mut self) -> Option<Held> {
        match std::mem::replace(&mut self.prompt, PromptKv::Absent) {
            PromptKv::Kept(held) => Some(held),
            other => {
                self.prompt = other;
                None
            }
        }
    }

    /// The end of a group: everything it holds.
    pub(super) fn into_held(self) -> Vec<Held> {
        let prompt = match self.prompt {
            PromptKv::Filling(held) | PromptKv::Kept(held) => Some(held),
            PromptKv::Absent | PromptKv::InBranches => None,
        };
        let branches = self.branches.into_iter().filter_map(|branch| match branch.state {
            BranchState::Running(held) => Some(held),
            BranchState::Waiting | BranchState::Ended => None,
        });
        prompt.into_iter().chain(branches).collect()
    }

    /// Tokens still to compute, at most.
    pub(super) fn work_left(&self) -> u64 {
        let prompt = match &self.prompt {
            PromptKv::Absent => self.prompt_len,
            PromptKv::Filling(held) => self.prompt_len - held.computed,
            PromptKv::InBranches | PromptKv::Kept(_) => 0,
        };
        // Emitted tokens are computed again too.
        let of_branch = |branch: &Branch| match &branch.state {
            BranchState::Waiting => self.max_tokens,
            BranchState::Running(held) => self.prompt_len + self.max_tokens - held.computed,
            BranchState::Ended => 0,
        };
        let branches: usize = self.branches.iter().map(of_branch).sum();
        (prompt + branches) as u64
    }
}

/// Tokens that are known but not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) sequence: SequenceId,
    pub(super) start: usize,
    pub(super) count: usize,
}

fn branch_index(at: usize) -> BranchIndex {
    BranchIndex(u16::try_from(at).expect("a submission has at most 64 branches"))
}
