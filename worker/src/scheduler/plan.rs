//! What the policy tells the engine and what it hears back: plain values, made by [`Policy`](super::Policy), carried out by
//! the engine in the order of [`StepPlan`]'s fields.

use std::collections::BTreeSet;
use std::ops::Range;

use shoal_common::block_hash::BlockHash;

use super::{GroupId, SequenceId};
use crate::backend::{BlockId, LogitsOf};

/// One step, in the order in which it is carried out. Used again from step to step.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Before anything is computed, one after the other.
    pub copies: Vec<BlockCopy>,
    /// Computed together. Ascending sequences, one slice each.
    pub slices: Vec<PlannedSlice>,
    /// Tokens to draw from the logits of this step or of an earlier prompt. Ascending sequences.
    pub draws: Vec<Draw>,
}

impl StepPlan {
    /// Whether nothing can be done now.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.draws.is_empty()
    }

    /// Whom it is for, in ascending order.
    pub fn groups(&self) -> BTreeSet<GroupId> {
        let slices = self.slices.iter().map(|slice| slice.sequence.group);
        slices.chain(self.draws.iter().map(|draw| draw.sequence.group)).collect()
    }

    /// The step of those sequences alone that `keep` names, without the copies.
    pub fn part(&self, keep: impl Fn(SequenceId) -> bool) -> Self {
        let kept = self.slices.iter().enumerate().filter(|(_, slice)| keep(slice.sequence));
        let (places, slices): (Vec<usize>, Vec<PlannedSlice>) = kept.unzip();
        let draw = |draw: &Draw| {
            let row = match draw.row {
                Row::Prompt => Row::Prompt,
                Row::Slice(at) => Row::Slice(places.binary_search(&at).ok()?),
            };
            keep(draw.sequence).then_some(Draw { row, ..*draw })
        };
        let draws = self.draws.iter().filter_map(draw).collect();
        Self { copies: Vec::new(), slices, draws }
    }

    /// Tokens computed in this step.
    pub fn tokens(&self) -> usize {
        self.slices.iter().map(|slice| slice.count).sum()
    }

    /// Tokens of one phase.
    pub fn tokens_of(&self, phase: Phase) -> usize {
        self.slices.iter().filter(|slice| slice.phase == phase).map(|slice| slice.count).sum()
    }

    /// The positions of prompts that are computed, one range for each slice.
    pub fn prefills(&self) -> impl Iterator<Item = Range<usize>> + Clone {
        let prefills = self.slices.iter().filter(|slice| slice.phase == Phase::Prefill);
        prefills.map(|slice| slice.start..slice.end())
    }

    /// Empties it and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.copies.clear();
        self.slices.clear();
        self.draws.clear();
    }
}

/// A block whose KV is to be copied, because its sequence writes to it and others share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Stays as it is.
    pub from: BlockId,
    /// Is in the sequence's table.
    pub to: BlockId,
}

/// What a slice is to those who wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A part of a prompt, or of what a branch had generated before it was interrupted.
    Prefill,
    /// The last token of a running stream.
    Decode,
}

/// Consecutive tokens of one sequence: all of the prompt, or all generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedSlice {
    /// Whose.
    pub sequence: SequenceId,
    /// Prefill or decode.
    pub phase: Phase,
    /// Position of the first token in the sequence, prompt included.
    pub start: usize,
    /// Tokens, at least 1.
    pub count: usize,
    /// Rows wanted.
    pub logits: LogitsOf,
}

impl PlannedSlice {
    /// One past the last position.
    pub fn end(&self) -> usize {
        self.start + self.count
    }

    /// Rows of logits it yields.
    pub fn rows(&self) -> usize {
        match self.logits {
            LogitsOf::None => 0,
            LogitsOf::Last => 1,
            LogitsOf::All => self.count,
        }
    }
}

/// A token to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// For which branch.
    pub sequence: SequenceId,
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
    GoesOn {
        /// The hash of the block that is full with this token.
        filled: Option<BlockHash>,
    },
    /// The token was the branch's last.
    Ended,
}
