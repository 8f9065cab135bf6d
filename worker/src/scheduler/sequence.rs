//! The sequences that run: a branch with a slot, a block table and a count of what is computed. Kept in order of age, so
//! that a group's sequences are neighbours and the youngest is at the end. Used by the policy alone.

use shoal_common::ids::BranchIndex;

use super::GroupId;
use crate::backend::BlockId;

/// A branch's sequence. The lesser id is the older one: groups in the order of their arrival, branches in theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SequenceId {
    /// Whose.
    pub group: GroupId,
    /// Which of its branches; 0 where a prompt is only scored.
    pub branch: BranchIndex,
}

/// A branch that runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Block `i` holds the positions from `BLOCK_TOKENS * i` on.
    pub(super) table: Vec<BlockId>,
    /// Positions whose KV is there once all steps under way and the one that is being planned are done.
    pub(super) computed: usize,
    /// How many of them the step that is being planned adds.
    pub(super) picked: usize,
    /// Positions that steps under way compute.
    pub(super) away: usize,
    /// Whether its next token is drawn when a step that is under way ends.
    pub(super) draw: Draws,
    /// When it was served last, in servings of all sequences.
    pub(super) last_served: u64,
    /// The step in which it was forked: what it shares may be in the making, so that it computes nothing yet.
    pub(super) forked_in: Option<u64>,
}

/// Whether a sequence's next token is about to be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Draws {
    Later,
    WithStepUnderWay,
}

impl Sequence {
    /// Whether a step under way computes or draws for it. Then it keeps its blocks: what comes of the step is for them.
    pub(super) fn is_away(&self) -> bool {
        self.away > 0 || self.draw == Draws::WithStepUnderWay
    }

    /// Positions whose KV is there now: steps that are under way and the one that is being planned apart.
    pub(super) fn done(&self) -> usize {
        self.computed - self.picked - self.away
    }
}

/// All that run.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// Ascending ids.
    sequences: Vec<Sequence>,
    /// Tables of sequences that are gone, to be used again.
    spare: Vec<Vec<BlockId>>,
}

impl Running {
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Sequence> {
        self.sequences.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.sequences.iter_mut()
    }

    fn place(&self, id: SequenceId) -> Result<usize, usize> {
        self.sequences.binary_search_by_key(&id, |sequence| sequence.id)
    }

    pub(super) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.place(id).ok().map(|at| &self.sequences[at])
    }

    pub(super) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.place(id).ok().map(|at| &mut self.sequences[at])
    }

    pub(super) fn of_group(&self, group: GroupId) -> &[Sequence] {
        let begin = self.sequences.partition_point(|sequence| sequence.id.group < group);
        let count = self.sequences[begin..].partition_point(|sequence| sequence.id.group == group);
        &self.sequences[begin..begin + count]
    }

    /// A new sequence without blocks.
    pub(super) fn start(&mut self, id: SequenceId) -> &mut Sequence {
        let table = self.spare.pop().unwrap_or_default();
        let (away, draw) = (0, Draws::Later);
        let sequence = Sequence { id, table, computed: 0, picked: 0, away, draw, last_served: 0, forked_in: None };
        let at = self.place(id).expect_err("a branch that waits does not run");
        self.sequences.insert(at, sequence);
        &mut self.sequences[at]
    }

    /// Takes a sequence out; its table goes back with [`Running::recycle`].
    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        self.place(id).ok().map(|at| self.sequences.remove(at))
    }

    pub(super) fn recycle(&mut self, mut table: Vec<BlockId>) {
        table.clear();
        self.spare.push(table);
    }
}
