//! What the policy tells the engine and what it hears back: plain values, made by [`Policy`](super::Policy), carried out by
//! the engine in the order of [`StepPlan`]'s fields.

use shoal_common::ids::BranchIndex;

use super::{GroupId, SequenceId};
use crate::backend::LogitsOf;

/// One step, in the order in which it is carried out.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Freed before anything is computed, to make room.
    pub releases: Vec<SequenceId>,
    /// Computed together.
    pub slices: Vec<PlannedSlice>,
    /// Made from the prompts that are complete now.
    pub forks: Vec<Fork>,
    /// Tokens to draw from the logits of this step or of an earlier prompt.
    pub draws: Vec<Draw>,
}

impl StepPlan {
    /// Whether nothing can be done now.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.forks.is_empty() && self.draws.is_empty()
    }

    /// Tokens computed in this step.
    pub fn tokens(&self) -> usize {
        self.slices.iter().map(|slice| slice.count).sum()
    }
}

/// Where the tokens of a slice come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// The group's prompt.
    Prompt,
    /// What the branch has generated, counted from the end of the prompt.
    Branch(BranchIndex),
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedSlice {
    /// Whose.
    pub group: GroupId,
    /// Which of its tokens.
    pub feed: Feed,
    /// Where their KV goes.
    pub sequence: SequenceId,
    /// Position of the first token in the sequence, prompt included.
    pub start: usize,
    /// Tokens, at least 1.
    pub count: usize,
    /// Rows wanted.
    pub logits: LogitsOf,
}

/// A new sequence with the first positions of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// For which group.
    pub group: GroupId,
    /// Holds the prompt.
    pub from: SequenceId,
    /// The new one.
    pub to: SequenceId,
    /// Positions taken over: the prompt's.
    pub length: usize,
}

/// A token to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// For which group.
    pub group: GroupId,
    /// For which branch.
    pub branch: BranchIndex,
    /// From which logits.
    pub row: Row,
}

/// Where the logits of a draw are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// The row of the prompt's last token, which the engine keeps until every branch has drawn from it.
    Prompt,
    /// The last row of this slice of the step.
    Slice(usize),
}

/// What came of a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// The branch goes on with the token.
    GoesOn,
    /// The token was the branch's last.
    Ended,
}

/// What is no longer needed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Sequences to release.
    pub sequences: Vec<SequenceId>,
    /// Groups of which nothing is left to do.
    pub finished: Vec<GroupId>,
}
