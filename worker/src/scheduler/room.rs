//! Room for what runs and for what starts: how the policy comes by a block when none is free, and who has to go for it.

use super::Policy;
use super::group::{Flow, Life};
use super::plan::BlockCopy;
use super::sequence::{Sequence, SequenceId};
use crate::backend::{BLOCK_TOKENS, BlockId};

impl Policy {
    /// Makes the table of a sequence cover `count` more tokens, with blocks that are its own alone where it writes. Returns
    /// for how many of them there is room. 0: nobody younger could be preempted, so that it was preempted itself; or else
    /// somebody can be once a step that is under way has ended.
    pub(super) fn make_room(&mut self, id: SequenceId, count: usize, copies: &mut Vec<BlockCopy>) -> usize {
        let room = self.find_blocks(id, count, copies);
        // A fork shares its sibling's block, which may have been filled and registered since; left alone with it, it writes
        // over what its sibling has generated.
        let next = |sequence: &Sequence| sequence.table.get(sequence.computed / BLOCK_TOKENS).copied();
        if let Some(block) = self.running.get(id).filter(|_| room > 0).and_then(next) {
            self.blocks.forget(block);
        }
        room
    }

    fn find_blocks(&mut self, id: SequenceId, count: usize, copies: &mut Vec<BlockCopy>) -> usize {
        loop {
            let Some(sequence) = self.running.get(id) else { return 0 };
            let room = self.writable(sequence);
            if room >= count {
                return count;
            }
            // One thing at a time: who is preempted may have been the one that shared a block with this sequence.
            if let Some(block) = self.blocks.take() {
                self.give(id, block, copies);
            } else if let Some(victim) = self.parked().or_else(|| self.younger_than(id)) {
                self.preempt(victim);
            } else if room > 0 || self.must_wait(id) {
                return room;
            } else {
                self.preempt(id);
            }
        }
    }

    /// Whether steps under way keep blocks that the sequence may have after them, or its own.
    fn must_wait(&self, id: SequenceId) -> bool {
        let gives_way = |other: &Sequence| other.id >= id || self.groups[&other.id.group].flow == Flow::Parked;
        self.running.iter().any(|other| other.is_away() && gives_way(other))
    }

    /// Positions after the computed ones that the sequence has blocks of its own for.
    fn writable(&self, sequence: &Sequence) -> usize {
        if self.is_last_shared(sequence) { 0 } else { sequence.table.len() * BLOCK_TOKENS - sequence.computed }
    }

    /// Whether the block that the sequence writes to next is named by other tables too: the last one of a prompt, which the
    /// group's branches share until they write to it.
    fn is_last_shared(&self, sequence: &Sequence) -> bool {
        let next = sequence.table.get(sequence.computed / BLOCK_TOKENS);
        next.is_some_and(|block| self.blocks.references(*block) > 1)
    }

    /// Gives the sequence a block: a copy of its last one if that is shared, else one more.
    fn give(&mut self, id: SequenceId, block: BlockId, copies: &mut Vec<BlockCopy>) {
        let is_shared = self.running.get(id).is_some_and(|sequence| self.is_last_shared(sequence));
        let Some(sequence) = self.running.get_mut(id) else { return };
        match sequence.table.last_mut().filter(|_| is_shared) {
            None => sequence.table.push(block),
            Some(last) => {
                let from = std::mem::replace(last, block);
                copies.push(BlockCopy { from, to: block });
                self.blocks.release(from);
            }
        }
    }

    /// Whether something that needs `blocks` may start. What runs must be able to go on for a while, or else what starts is
    /// preempted again before it has done anything: the prompts under way will be held, and everybody gets one block more.
    pub(super) fn has_room(&self, blocks: usize) -> bool {
        let promised: usize = self.running.iter().map(|sequence| self.wanted(sequence)).sum();
        let headroom = self.running.len();
        self.running.is_empty() || self.blocks.available() >= blocks + promised + headroom
    }

    /// Blocks that the sequence will take for what is known of it.
    fn wanted(&self, sequence: &Sequence) -> usize {
        let group = &self.groups[&sequence.id.group];
        let known = group.known(sequence.id.branch).div_ceil(BLOCK_TOKENS);
        known - sequence.table.len() + usize::from(self.is_last_shared(sequence))
    }

    /// The youngest sequence whose client does not read, of those that no step under way is for.
    pub(super) fn parked(&self) -> Option<SequenceId> {
        let is_parked = |id: &SequenceId| self.groups[&id.group].flow == Flow::Parked;
        self.at_home().map(|sequence| sequence.id).find(is_parked)
    }

    /// The youngest of those that no step under way is for, if it is younger than `id`.
    fn younger_than(&self, id: SequenceId) -> Option<SequenceId> {
        self.at_home().next().map(|youngest| youngest.id).filter(|youngest| *youngest > id)
    }

    /// The sequences that no step under way is for, youngest first.
    fn at_home(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().rev().filter(|sequence| !sequence.is_away())
    }

    /// Takes slot and blocks from a sequence; it waits and will be computed again. Its full blocks stay in the cache as
    /// long as nobody needs them.
    pub(super) fn preempt(&mut self, id: SequenceId) {
        let Some(sequence) = self.running.get(id) else { return };
        let (computed, before) = (sequence.computed, sequence.computed - sequence.picked);
        self.let_go(id);
        self.totals.preemptions += 1;
        let Some(group) = self.groups.get_mut(&id.group) else { return };
        group.set_life(id.branch, Life::Waiting);
        let (key, prompt) = (group.share_key, group.prompt);
        self.shares.wait(key, id.group);
        if (before..computed).contains(&(prompt - 1)) {
            // The step was to complete the prompt, and what was forked from it in this step has nothing now.
            while let Some(fork) = self.forked_now(id) {
                self.preempt(fork);
            }
        }
    }

    fn forked_now(&self, id: SequenceId) -> Option<SequenceId> {
        let mut siblings = self.running.of_group(id.group).iter();
        siblings.find(|sibling| sibling.forked_in == Some(self.step)).map(|sibling| sibling.id)
    }

    /// Frees slot and blocks of a sequence, the last block first: a text's end is evicted before its beginning, without
    /// which it cannot be found.
    pub(super) fn let_go(&mut self, id: SequenceId) {
        let Some(sequence) = self.running.remove(id) else { return };
        sequence.table.iter().rev().for_each(|block| self.blocks.release(*block));
        self.running.recycle(sequence.table);
    }
}
