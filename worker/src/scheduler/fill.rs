//! How a step is filled: running decodes first, then newcomers and prompts under way share the prefill tokens that may go
//! with them. Everything that is served is picked first, and the plan is written at the end from what still runs: a
//! sequence that was picked may be preempted for an older one in the same step.

use std::num::NonZero;
use std::ops::Range;

use shoal_common::ids::BranchIndex;

use super::Policy;
use super::group::{Chunk, Flow, Group, GroupId, Life, Rows};
use super::pace::{Pace, Spare};
use super::plan::{BlockCopy, Draw, Phase, PlannedSlice, Row, StepPlan};
use super::sequence::{Draws, Sequence, SequenceId};
use crate::backend::{BLOCK_TOKENS, LogitsOf};

/// Rows of prompt scores in one step, over all groups: with a vocabulary of 128 k they are 32 MB of logits.
pub(super) const SCORE_ROWS: usize = 64;

/// A step being filled.
struct Draft<'a> {
    copies: &'a mut Vec<BlockCopy>,
    pace: &'a Pace,
    /// What prefills may still add to the time of the step.
    spare: Spare,
    tokens_left: usize,
    score_rows_left: usize,
    /// Rows so far, and how many of them cost about as much together as one.
    rows: usize,
    together: NonZero<usize>,
}

impl Draft<'_> {
    /// Whether no prefill can be added.
    fn is_full(&self) -> bool {
        self.tokens_left == 0 || self.spare.is_used_up()
    }

    /// How many of a chunk's tokens, from `start` on, can be added.
    fn fits(&self, start: usize, chunk: Chunk) -> usize {
        let paced = self.pace.fits(&self.spare, start);
        let most = self.whole(paced.min(self.tokens_left)).min(self.tokens_left).min(chunk.count);
        if chunk.rows == Rows::Scored { most.min(self.score_rows_left) } else { most }
    }

    /// About as many tokens, after which the rows of the step are whole groups of those that are computed together: one more
    /// would cost as much as a group, and what is missing from one costs little.
    fn whole(&self, tokens: usize) -> usize {
        let (end, together) = (self.rows + tokens, self.together.get());
        match end / together * together {
            _ if tokens == 0 => 0,
            whole if whole > self.rows => whole - self.rows,
            _ => end.next_multiple_of(together) - self.rows,
        }
    }

    /// The positions `chunk` are added.
    fn charge(&mut self, chunk: Range<usize>, rows: Rows) {
        self.tokens_left -= chunk.len();
        self.rows += chunk.len();
        self.score_rows_left -= if rows == Rows::Scored { chunk.len() } else { 0 };
        self.pace.charge(&mut self.spare, chunk);
    }
}

/// How a branch that waits begins.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// With the prompt that this sequence of its group has computed.
    Fork(SequenceId),
    /// With so many cached blocks.
    Prefix(usize),
}

/// Whether a group's next branch can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// If there is room.
    Ready,
    /// In another step: this one is full.
    Full,
    /// Something else has to happen first.
    NotYet,
}

/// Who of a key's prompts under way is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turns {
    /// Each in its turn, so that a long one holds up nobody.
    Rotation,
    /// Whoever is done soonest.
    ShortestFirst,
}

impl Policy {
    /// The next step, into `plan`. Empty when nothing can go on before something is told. [`Policy::complete`] must follow; before
    /// it does, other steps may be planned, and they end in the order in which they were planned.
    pub fn plan(&mut self, pace: &Pace, plan: &mut StepPlan) {
        plan.clear();
        self.step += 1;
        let mut draft = Draft {
            copies: &mut plan.copies,
            pace,
            spare: Spare::UNLIMITED,
            tokens_left: self.bounds.step_tokens.div_ceil(self.spread.get()),
            score_rows_left: SCORE_ROWS,
            rows: 0,
            together: self.rows_together,
        };
        let decodes = self.decode(&mut draft);
        let prompts = self.prompts();
        draft.spare = pace.spare(decodes, prompts);
        if decodes > 0 {
            self.resume(decodes, prompts, &mut draft);
        }
        // Those who are computed again beside decodes have had their turn, and more than there is now.
        let wanted = |group: &Group, branch| decodes == 0 || !group.has_generated(branch);
        self.start_beside_prefills(&mut draft, wanted);
        self.prefill(&mut draft, Turns::Rotation, wanted);
        // Branches of prompts that are complete now, and whoever still fits.
        self.start(&mut draft, |_, _| true);
        self.write(plan);
    }

    /// Sequences in the middle of their answers are computed again before all other prompts, and may add more to the time of the
    /// step: somebody has them on a screen. They have come together, when their worker was lost, and it helps nobody if all of
    /// them go on at the same late moment: one is done after the other. What they take is not there for the others, but for the
    /// time that a single prompt always gets, and an eighth of the tokens: where workers are lost faster than this catches up,
    /// nobody would begin any more.
    fn resume(&mut self, decodes: usize, prompts: usize, draft: &mut Draft<'_>) {
        let more = draft.pace.spare_for_resumed(decodes);
        let usual = std::mem::replace(&mut draft.spare, more);
        let tokens = if prompts > 0 { draft.tokens_left / 8 } else { 0 };
        draft.tokens_left -= tokens;
        self.prefill(draft, Turns::ShortestFirst, Group::has_generated);
        self.start(draft, Group::has_generated);
        draft.tokens_left += tokens;
        draft.spare = usual.less_what_was_taken(more, draft.spare).at_least(draft.pace.spare(decodes, 1));
    }

    /// Newcomers come before prompts that are under way, with half of what is left: a long prompt must not hold up everyone
    /// who comes after it.
    fn start_beside_prefills(&mut self, draft: &mut Draft<'_>, wanted: impl Fn(&Group, BranchIndex) -> bool) {
        if self.prefills().next().is_none() {
            return self.start(draft, wanted);
        }
        let (tokens, spare) = (draft.tokens_left / 2, draft.spare.split());
        draft.tokens_left -= tokens;
        self.start(draft, wanted);
        draft.tokens_left += tokens;
        draft.spare.join(spare);
    }

    /// Serves the decodes, in rotation when they do not all fit, and returns how many. With several steps under way each gets its
    /// part of them; whoever is served together comes back together, and so stays together.
    fn decode(&mut self, draft: &mut Draft<'_>) -> usize {
        // Where more sequences decode than a step holds, prompts still get a quarter of it: else nobody could begin until
        // somebody ends.
        let prompts_wait = !self.shares.is_idle() || self.prefills().next().is_some();
        let for_prompts = if prompts_wait { draft.tokens_left / 4 } else { 0 };
        draft.tokens_left -= for_prompts;
        let mut decodes = std::mem::take(&mut self.candidates);
        decodes.clear();
        decodes.extend(self.open().filter(|sequence| self.phase(sequence) == Some(Phase::Decode)).map(|it| it.id));
        let part = self.part_of_decodes(decodes.len());
        if decodes.len() > draft.tokens_left.min(part) {
            decodes.sort_unstable_by_key(|id| self.running.get(*id).map(|sequence| (sequence.last_served, *id)));
        }
        // Else oldest first: who is preempted is younger and has not been served yet.
        let served = decodes.iter().filter(|id| self.pick(**id, draft)).take(part).count();
        self.candidates = decodes;
        draft.tokens_left += for_prompts;
        served
    }

    /// How many of the decodes a step gets, where `here` of them can go on now and the others are in steps under way.
    fn part_of_decodes(&self, here: usize) -> usize {
        if self.spread.get() == 1 {
            return usize::MAX;
        }
        let away = self.open().filter(|sequence| sequence.draw == Draws::WithStepUnderWay).count();
        (here + away).div_ceil(self.spread.get())
    }

    /// Serves the prompts under way that are `wanted`, each once, in the order of their keys' `turns` and of those within a key.
    fn prefill(&mut self, draft: &mut Draft<'_>, turns: Turns, wanted: impl Fn(&Group, BranchIndex) -> bool) {
        let is_wanted = |id: &SequenceId| wanted(&self.groups[&id.group], id.branch);
        let mut waiting = std::mem::take(&mut self.candidates);
        waiting.clear();
        waiting.extend(self.prefills().map(|sequence| sequence.id).filter(is_wanted));
        while !draft.is_full() {
            let key = |id: &SequenceId| {
                let group = &self.groups[&id.group];
                let turn = self.running.get(*id).map(|sequence| match turns {
                    Turns::Rotation => sequence.last_served,
                    Turns::ShortestFirst => (group.known(id.branch) - sequence.computed) as u64,
                });
                (self.shares.rank(group.share_key), turn, *id)
            };
            let Some(at) = (0..waiting.len()).min_by_key(|at| key(&waiting[*at])) else { break };
            let id = waiting.swap_remove(at);
            if self.pick(id, draft) {
                self.shares.served(self.groups[&id.group].share_key);
            }
        }
        self.candidates = waiting;
    }

    /// Prompts that wait for their first token, as far as there are slots for them.
    fn prompts(&self) -> usize {
        let is_new = |sequence: &&Sequence| !self.groups[&sequence.id.group].has_generated(sequence.id.branch);
        let free = self.bounds.slots.saturating_sub(self.running.len());
        self.prefills().filter(is_new).count() + self.shares.waiting().min(free)
    }

    /// Sequences of groups that are scheduled.
    fn open(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().filter(|sequence| self.groups[&sequence.id.group].flow == Flow::Open)
    }

    /// Prompts under way that this step has not served.
    fn prefills(&self) -> impl Iterator<Item = &Sequence> {
        self.open().filter(|sequence| sequence.picked == 0 && self.phase(sequence) == Some(Phase::Prefill))
    }

    /// What the sequence has to compute; `None` where that is nothing in this step.
    fn phase(&self, sequence: &Sequence) -> Option<Phase> {
        let group = &self.groups[&sequence.id.group];
        let pending = group.known(sequence.id.branch) - sequence.computed;
        if pending == 0 || sequence.forked_in == Some(self.step) {
            return None;
        }
        let decodes = pending == 1 && group.has_generated(sequence.id.branch);
        Some(if decodes { Phase::Decode } else { Phase::Prefill })
    }

    /// Lets a sequence compute as much as fits. False when it is not served, or not there any more.
    fn pick(&mut self, id: SequenceId, draft: &mut Draft<'_>) -> bool {
        let (Some(sequence), Some(group)) = (self.running.get(id), self.groups.get(&id.group)) else { return false };
        let (key, start) = (group.share_key, sequence.computed);
        let chunk = group.chunk(id.branch, start);
        let count = match draft.fits(start, chunk) {
            0 => 0,
            count => self.make_room(id, count, draft.copies),
        };
        let Some(sequence) = self.running.get_mut(id).filter(|_| count > 0) else { return false };
        self.served += 1;
        sequence.computed += count;
        sequence.picked = count;
        sequence.last_served = self.served;
        draft.charge(start..start + count, chunk.rows);
        self.shares.charge(key, count);
        true
    }

    /// Starts branches that are `wanted`, in fair turns, until there is no room or the step is full.
    fn start(&mut self, draft: &mut Draft<'_>, wanted: impl Fn(&Group, BranchIndex) -> bool) {
        let wanted = |group: &Group| group.first_waiting().is_some_and(|branch| wanted(group, branch));
        while let Some(id) = self.next_to_start(draft, wanted) {
            self.next = Some(id);
            let Some(branch) = self.groups[&id].first_waiting() else { return };
            let sequence = SequenceId { group: id, branch };
            let Some(way) = self.find_room(sequence) else { return };
            self.next = None;
            self.begin(sequence, way);
            if matches!(way, Way::Prefix(_)) {
                self.pick(sequence, draft);
            }
        }
    }

    /// The group whose turn it is to start something, if it is wanted; or else the first one that is.
    fn next_to_start(&self, draft: &Draft<'_>, wanted: impl Fn(&Group) -> bool) -> Option<GroupId> {
        if self.running.len() >= self.bounds.slots && self.parked().is_none() {
            return None;
        }
        let readiness = |id| self.groups.get(&id).map_or(Readiness::NotYet, |group| self.readiness(id, group, draft));
        let is_wanted = |id: &GroupId| self.groups.get(id).is_some_and(&wanted);
        match self.next.map(|id| (id, readiness(id))) {
            // Who waits for room gets the next that there is.
            Some((id, Readiness::Ready)) => Some(id).filter(is_wanted),
            Some((_, Readiness::Full)) => None,
            Some((_, Readiness::NotYet)) | None => {
                self.shares.next(|id| readiness(id) == Readiness::Ready && is_wanted(&id))
            }
        }
    }

    fn readiness(&self, id: GroupId, group: &Group, draft: &Draft<'_>) -> Readiness {
        let Some(branch) = group.first_waiting().filter(|_| group.flow == Flow::Open) else {
            return Readiness::NotYet;
        };
        let siblings = self.running.of_group(id);
        if siblings.iter().any(|sibling| sibling.computed < group.prompt) {
            return Readiness::NotYet;
        }
        if let Some(Way::Fork(_)) = self.fork(id, group, group.has_generated(branch)) {
            return Readiness::Ready;
        }
        if draft.is_full() || (group.scores_owed() && draft.score_rows_left == 0) {
            return Readiness::Full;
        }
        let sequence = SequenceId { group: id, branch };
        if self.is_in_the_making(sequence, group) { Readiness::NotYet } else { Readiness::Ready }
    }

    /// The sibling to fork from. A branch that has generated nothing draws from the prompt's last row, which the engine must
    /// have or get in this step.
    fn fork(&self, id: GroupId, group: &Group, has_generated: bool) -> Option<Way> {
        let mut siblings = self.running.of_group(id).iter();
        let gets_row = |sibling: &Sequence| sibling.computed - sibling.picked < group.prompt;
        let holder = siblings
            .find(|sibling| sibling.computed >= group.prompt && (has_generated || group.has_row || gets_row(sibling)));
        holder.map(|holder| Way::Fork(holder.id))
    }

    /// Whether a sequence of another group is computing the block that this one needs next: it will be found when it is
    /// full, so that prompts that begin alike and come together are computed once. Nobody waits for a sequence that stands
    /// still: a parked or preempted one computes nothing.
    fn is_in_the_making(&self, id: SequenceId, group: &Group) -> bool {
        self.open().any(|other| {
            let theirs = &self.groups[&other.id.group];
            // Without what steps under way add, and this one: that cannot be found before their ends.
            let at = other.done() / BLOCK_TOKENS;
            let ours = group.hash(id.branch, at).filter(|_| at < group.cacheable(id.branch));
            ours.is_some_and(|hash| theirs.hash(other.id.branch, at) == Some(hash) && self.blocks.find(hash).is_none())
        })
    }

    /// A slot and blocks for a branch that is ready, and how it begins. Parked sequences make room.
    fn find_room(&mut self, id: SequenceId) -> Option<Way> {
        loop {
            let group = &self.groups[&id.group];
            let known = group.known(id.branch).div_ceil(BLOCK_TOKENS);
            let way = self.way(id, group);
            let found = match way {
                Way::Fork(_) => group.prompt / BLOCK_TOKENS,
                Way::Prefix(blocks) => self.held_prefix(id, group, blocks),
            };
            if self.running.len() < self.bounds.slots && self.has_room(known - found) {
                return Some(way);
            }
            let parked = self.parked()?;
            self.preempt(parked);
        }
    }

    /// The longest beginning there is.
    fn way(&self, id: SequenceId, group: &Group) -> Way {
        let find = |at: &usize| group.hash(id.branch, *at).is_some_and(|hash| self.blocks.find(hash).is_some());
        let prefix = (0..group.cacheable(id.branch)).take_while(find).count();
        match self.fork(id.group, group, group.has_generated(id.branch)) {
            Some(fork) if prefix * BLOCK_TOKENS <= group.prompt => fork,
            _ => Way::Prefix(prefix),
        }
    }

    /// How many of the first `blocks` cached blocks others hold already, so that they take nothing away.
    fn held_prefix(&self, id: SequenceId, group: &Group, blocks: usize) -> usize {
        let found = (0..blocks).filter_map(|at| self.blocks.find(group.hash(id.branch, at)?));
        found.filter(|block| self.blocks.references(*block) > 0).count()
    }

    /// The branch runs.
    fn begin(&mut self, id: SequenceId, way: Way) {
        let Some(group) = self.groups.get_mut(&id.group) else { return };
        group.has_begun = true;
        group.set_life(id.branch, Life::Running);
        self.shares.served(group.share_key);
        if group.first_waiting().is_none() {
            self.shares.leave(group.share_key, id.group);
        }
        let sequence = self.running.start(id);
        let mut table = std::mem::take(&mut sequence.table);
        match way {
            Way::Fork(holder) => {
                (sequence.computed, sequence.forked_in) = (group.prompt, Some(self.step));
                let blocks = group.prompt.div_ceil(BLOCK_TOKENS);
                table.extend(self.running.get(holder).into_iter().flat_map(|holder| &holder.table[..blocks]));
            }
            Way::Prefix(blocks) => {
                sequence.computed = blocks * BLOCK_TOKENS;
                if !group.scores_owed() {
                    self.totals.looked_up_tokens += group.known(id.branch) as u64;
                    self.totals.cached_tokens += sequence.computed as u64;
                }
                table.extend((0..blocks).filter_map(|at| self.blocks.find(group.hash(id.branch, at)?)));
            }
        }
        table.iter().for_each(|block| self.blocks.share(*block));
        if let Some(sequence) = self.running.get_mut(id) {
            sequence.table = table;
        }
    }

    /// Writes down what was picked, and draws for every sequence that has computed all it knows.
    fn write(&mut self, plan: &mut StepPlan) {
        for sequence in self.running.iter_mut() {
            let Some(group) = self.groups.get_mut(&sequence.id.group) else { continue };
            let known = group.known(sequence.id.branch);
            let may_draw = group.draws() && group.flow == Flow::Open && sequence.draw == Draws::Later;
            let draws = sequence.computed == known && may_draw;
            let mut row = Row::Prompt;
            if sequence.picked > 0 {
                row = Row::Slice(plan.slices.len());
                plan.slices.push(slice(sequence, group, draws));
            }
            if draws {
                plan.draws.push(Draw { sequence: sequence.id, row });
                sequence.draw = Draws::WithStepUnderWay;
            }
            sequence.away += std::mem::take(&mut sequence.picked);
        }
    }
}

/// The slice of a picked sequence, whose rows the group takes note of.
fn slice(sequence: &Sequence, group: &mut Group, draws: bool) -> PlannedSlice {
    let Sequence { id, computed: end, picked: count, .. } = *sequence;
    let start = end - count;
    let is_scored = start >= group.scored && start < group.prompt;
    let completes_prompt = end == group.prompt && group.wants_row();
    let logits = if is_scored {
        LogitsOf::All
    } else if draws || completes_prompt {
        LogitsOf::Last
    } else {
        LogitsOf::None
    };
    if is_scored {
        group.scored = end;
    }
    group.has_row |= completes_prompt;
    let decodes = count == 1 && group.has_generated(id.branch) && start >= group.prompt;
    let phase = if decodes { Phase::Decode } else { Phase::Prefill };
    PlannedSlice { sequence: id, phase, start, count, logits }
}
