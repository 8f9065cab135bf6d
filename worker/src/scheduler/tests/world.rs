//! A world for the policy: stands for the engine and its backend. It carries plans out on real tokens, in a pool whose KV
//! is the tokens themselves, and complains about every plan that a backend could not carry out, that reads what was not
//! written, or that would give another text than the group's own.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZero;

use shoal_common::block_hash::{BlockHash, CacheSalt};
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{BranchIndex, Digest, TokenId};

use crate::backend::{BLOCK_TOKENS, BlockId, LogitsOf, Slice, StepCheck};
use crate::scheduler::group::Flow;
use crate::scheduler::*;

const VOCAB: u32 = 1000;

pub(super) const ROOMY: Bounds = Bounds { slots: 8, blocks: 640, groups: 64, queued_tokens: u64::MAX, step_tokens: 64 };

/// What the world knows of a group.
#[derive(Debug)]
pub(super) struct Text {
    prompt: Vec<TokenId>,
    pub(super) branches: Vec<Vec<TokenId>>,
    max_tokens: usize,
    scoring: Scoring,
    pub(super) scored: usize,
    has_row: bool,
}

impl Text {
    /// Whether all that was asked for was said: scores, and tokens up to the end.
    pub(super) fn is_told(&self, early_end: usize) -> Result<(), String> {
        let scores = if self.scoring == Scoring::Prompt { self.prompt.len() } else { 0 };
        // What was emitted before may be longer than the early end.
        let is_whole = |branch: &Vec<TokenId>| branch.len() >= self.max_tokens.min(early_end);
        if self.scored == scores && self.branches.iter().all(is_whole) { Ok(()) } else { Err(format!("{self:?}")) }
    }

    fn of(&self, branch: BranchIndex) -> Vec<TokenId> {
        let generated = self.branches.get(branch.index()).map_or(&[][..], Vec::as_slice);
        [&self.prompt[..], generated].concat()
    }
}

pub(super) struct World {
    pub(super) bounds: Bounds,
    pub(super) policy: Policy,
    pub(super) pace: Pace,
    pub(super) plan: StepPlan,
    /// Steps under way: computed, and not told.
    away: VecDeque<StepPlan>,
    at_once: usize,
    pub(super) texts: BTreeMap<GroupId, Text>,
    pool: Vec<[TokenId; BLOCK_TOKENS]>,
    check: StepCheck,
    /// Branches end early at this many tokens, when it is less than `max_tokens`.
    pub(super) early_end: usize,
    pub(super) finished: Vec<GroupId>,
    pub(super) served: Vec<SequenceId>,
    /// Tokens computed so far, and per group.
    pub(super) computed: usize,
    pub(super) computed_of: BTreeMap<GroupId, usize>,
}

/// What a test asks for: a prompt of `length` tokens of the text `story`.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) share_key: u64,
    pub(super) story: u32,
    pub(super) prompt: usize,
    pub(super) max_tokens: usize,
    /// How much of each branch is there already.
    pub(super) emitted: Vec<usize>,
    pub(super) scoring: Scoring,
}

/// A prompt with a text of its own, and branches that have nothing yet.
pub(super) fn ask(share_key: u64, prompt: usize, max_tokens: usize, branches: usize) -> Ask {
    let emitted = vec![0; branches];
    Ask { share_key, story: 0, prompt, max_tokens, emitted, scoring: Scoring::Off }
}

/// Token `at` of a story. Two stories have no token in common.
fn told(story: u32, at: usize) -> TokenId {
    TokenId((story * 7919 + at as u32 * 31) % VOCAB)
}

/// The token that follows a text, in a branch.
fn next_token(text: &[TokenId], branch: BranchIndex) -> TokenId {
    let sum = text.iter().fold(u32::from(branch.0) + 1, |sum, token| sum.wrapping_mul(1_664_525) ^ token.0);
    TokenId(sum % VOCAB)
}

pub(super) fn begin() -> BlockHash {
    let digest = Digest::of(b"world");
    BlockHash::begin(CacheSalt(0), &Fingerprint::new(digest, None, digest, "world"))
}

/// Hashes of the full blocks of a text.
fn hashes(text: &[TokenId]) -> Vec<BlockHash> {
    let next = |last: &mut BlockHash, block: &[TokenId]| {
        *last = last.then(block);
        Some(*last)
    };
    text.chunks_exact(BLOCK_TOKENS).scan(begin(), next).collect()
}

impl World {
    pub(super) fn new(bounds: Bounds, early_end: usize) -> Self {
        let mut check = StepCheck::new(VOCAB as usize, usize::MAX);
        check.reserve(bounds.blocks);
        Self {
            bounds,
            policy: Policy::new(bounds),
            pace: Pace::new(bounds.slots),
            plan: StepPlan::default(),
            away: VecDeque::new(),
            at_once: 1,
            texts: BTreeMap::new(),
            pool: vec![[TokenId(u32::MAX); BLOCK_TOKENS]; bounds.blocks],
            check,
            early_end,
            finished: Vec::new(),
            served: Vec::new(),
            computed: 0,
            computed_of: BTreeMap::new(),
        }
    }

    /// As many steps are under way at once.
    pub(super) fn overlapping(mut self, steps: usize) -> Self {
        self.policy.spread_over(NonZero::new(steps).unwrap());
        self.at_once = steps;
        self
    }

    /// So many rows cost as much together as one.
    pub(super) fn computing_together(mut self, rows: usize) -> Self {
        self.policy.compute_together(NonZero::new(rows).unwrap());
        self
    }

    /// A group of which every id has a story of its own, unless it asks for one.
    pub(super) fn admit(&mut self, id: u64, ask: Ask) -> Result<GroupId, Refused> {
        let id = GroupId(id);
        let story = if ask.story == 0 { 1000 + id.0 as u32 } else { ask.story };
        let prompt: Vec<TokenId> = (0..ask.prompt).map(|at| told(story, at)).collect();
        let mut branches = Vec::new();
        for (at, emitted) in ask.emitted.iter().enumerate() {
            let mut text = prompt.clone();
            for _ in 0..*emitted {
                text.push(next_token(&text, BranchIndex(at as u16)));
            }
            branches.push(text.split_off(prompt.len()));
        }
        let of_prompt = prompt.len() / BLOCK_TOKENS;
        let of_branch = |text: &Vec<TokenId>| hashes(&[&prompt[..], text].concat()).split_off(of_prompt);
        let shape = GroupShape {
            share_key: ask.share_key,
            prompt: prompt.len(),
            max_tokens: ask.max_tokens,
            emitted: ask.emitted,
            scoring: ask.scoring,
            hashes: Hashes { prompt: hashes(&prompt), branches: branches.iter().map(of_branch).collect() },
        };
        self.policy.admit(id, shape)?;
        let (max_tokens, scoring) = (ask.max_tokens, ask.scoring);
        self.texts.insert(id, Text { prompt, branches, max_tokens, scoring, scored: 0, has_row: false });
        Ok(id)
    }

    /// One step; false when the policy has nothing to do. The oldest step under way ends when there are enough of them, or no
    /// other can begin.
    pub(super) fn step(&mut self) -> bool {
        let mut plan = StepPlan::default();
        let before: Vec<_> = self.policy.running.iter().map(|sequence| sequence.id).collect();
        self.policy.plan(&self.pace, &mut plan);
        self.check_preempted(&before);
        self.check_apart(&plan);
        let (decodes, prefill) = (plan.tokens_of(Phase::Decode), plan.tokens_of(Phase::Prefill));
        assert!(plan.tokens() <= self.bounds.step_tokens);
        self.pace.observe(decodes, plan.prefills(), 0.01 + 0.0001 * prefill as f64);
        for copy in &plan.copies {
            self.check.check_copy(copy.from, copy.to).unwrap();
            self.pool[copy.to.index()] = self.pool[copy.from.index()];
        }
        self.compute(&plan);
        let begins = !plan.is_empty();
        if begins || self.away.is_empty() {
            self.away.push_back(plan);
        }
        if !begins || self.away.len() >= self.at_once {
            self.end_oldest();
        }
        self.check_books();
        begins || !self.plan.is_empty()
    }

    fn end_oldest(&mut self) {
        let Some(plan) = self.away.pop_front() else { return };
        // Who is gone is no more drawn for.
        let stays = |draw: &&Draw| self.policy.running.get(draw.sequence).is_some();
        let draws: Vec<_> = plan.draws.iter().filter(stays).copied().collect();
        let drawn: Vec<_> = draws.iter().map(|draw| (draw.sequence, self.draw(&plan, draw))).collect();
        self.policy.complete(&plan, &drawn, &mut self.finished);
        self.plan = plan;
    }

    /// Nobody who waits for a token from a step under way is in another one, or has lost its blocks.
    fn check_apart(&self, plan: &StepPlan) {
        for waits in self.away.iter().flat_map(|plan| &plan.draws) {
            let is_in = |id: SequenceId| id == waits.sequence;
            assert!(!plan.draws.iter().any(|draw| is_in(draw.sequence)), "{waits:?} is drawn twice");
            assert!(!plan.slices.iter().any(|slice| is_in(slice.sequence)), "{waits:?} goes on without its token");
        }
    }

    /// Steps until nothing is left to do, and how many they were.
    pub(super) fn run(&mut self) -> usize {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps <= self.step_bound(), "no end in sight");
        }
        steps
    }

    /// Who was preempted is parked, or there is an older one that it made room for.
    fn check_preempted(&self, before: &[SequenceId]) {
        let is_open = |id: &SequenceId| self.policy.groups[&id.group].flow == Flow::Open;
        let oldest = self.policy.running.iter().map(|sequence| sequence.id).find(is_open);
        let is_away = |id: &SequenceId| {
            let slices = self.away.iter().flat_map(|plan| &plan.slices).map(|slice| slice.sequence);
            slices
                .chain(self.away.iter().flat_map(|plan| &plan.draws).map(|draw| draw.sequence))
                .any(|away| away == *id)
        };
        let gone = before.iter().filter(|id| self.policy.running.get(**id).is_none());
        assert!(!gone.clone().any(is_away), "a sequence of a step under way was preempted");
        for id in before.iter().filter(|id| self.policy.running.get(**id).is_none() && is_open(id)) {
            assert!(oldest.is_some_and(|oldest| oldest < *id), "{id:?} was preempted, and it is the oldest");
        }
    }

    fn compute(&mut self, plan: &StepPlan) {
        let texts: Vec<_> =
            plan.slices.iter().map(|it| self.texts[&it.sequence.group].of(it.sequence.branch)).collect();
        let slice = |(planned, text): (&PlannedSlice, &'_ Vec<TokenId>)| {
            let (blocks, text) = (self.policy.table(planned.sequence).to_vec(), text.clone());
            (planned.start, planned.end(), blocks, text)
        };
        let owned: Vec<_> = plan.slices.iter().zip(&texts).map(slice).collect();
        let slices: Vec<Slice<'_>> = owned
            .iter()
            .zip(&plan.slices)
            .map(|((start, end, blocks, text), planned)| Slice {
                start: *start,
                tokens: &text[*start..*end],
                blocks,
                adapter: None,
                logits: planned.logits,
            })
            .collect();
        self.check.check(&slices).unwrap();
        for ((_, end, blocks, text), planned) in owned.iter().zip(&plan.slices) {
            self.compute_slice(planned, blocks, &text[..*end]);
        }
    }

    fn compute_slice(&mut self, planned: &PlannedSlice, blocks: &[BlockId], text: &[TokenId]) {
        let SequenceId { group: id, .. } = planned.sequence;
        assert!(!self.finished.contains(&id), "a finished group is not computed");
        for block in &blocks[planned.start / BLOCK_TOKENS..planned.end().div_ceil(BLOCK_TOKENS)] {
            assert!(!self.policy.blocks.is_registered(*block), "a block that can be found is written to");
        }
        for (at, token) in text.iter().enumerate() {
            let slot = &mut self.pool[blocks[at / BLOCK_TOKENS].index()][at % BLOCK_TOKENS];
            if at >= planned.start {
                *slot = *token;
            }
            assert_eq!(slot, token, "position {at} of {:?} holds another text's token", planned.sequence);
        }
        let group = self.texts.get_mut(&id).unwrap();
        let prompt = group.prompt.len();
        assert!(planned.end() <= prompt || planned.start >= prompt, "a slice has one source");
        if planned.logits == LogitsOf::All {
            assert_eq!(group.scored, planned.start, "scores come in order and once");
            assert_eq!(group.scoring, Scoring::Prompt);
            group.scored = planned.end();
        }
        group.has_row |= planned.end() == prompt && planned.logits != LogitsOf::None;
        self.served.push(planned.sequence);
        self.computed += planned.count;
        *self.computed_of.entry(id).or_default() += planned.count;
    }

    fn draw(&mut self, plan: &StepPlan, draw: &Draw) -> Drawn {
        let SequenceId { group: id, branch } = draw.sequence;
        let text = self.texts[&id].of(branch);
        let group = self.texts.get_mut(&id).unwrap();
        match draw.row {
            Row::Prompt => assert!(text.len() == group.prompt.len() && group.has_row, "there is no row to draw from"),
            Row::Slice(at) => {
                let slice = &plan.slices[at];
                assert_eq!((slice.sequence, slice.end()), (draw.sequence, text.len()));
                assert_ne!(slice.logits, LogitsOf::None);
            }
        }
        assert!(group.scoring == Scoring::Off || group.scored == group.prompt.len(), "scores come before tokens");
        let generated = &mut group.branches[branch.index()];
        generated.push(next_token(&text, branch));
        if generated.len() >= group.max_tokens.min(self.early_end) {
            return Drawn::Ended;
        }
        let text = self.texts[&id].of(branch);
        let is_full = text.len().is_multiple_of(BLOCK_TOKENS);
        Drawn::GoesOn { filled: hashes(&text).last().copied().filter(|_| is_full) }
    }

    /// The books agree with the tables: what is referenced is what they name, and nothing is held beside them.
    pub(super) fn check_books(&self) {
        let (policy, bounds) = (&self.policy, &self.bounds);
        let mut named = vec![0; bounds.blocks];
        policy.running.iter().flat_map(|sequence| &sequence.table).for_each(|block| named[block.index()] += 1);
        for (at, count) in named.iter().enumerate() {
            assert_eq!(policy.blocks.references(BlockId(at as u32)), *count, "block {at}");
        }
        let referenced = named.iter().filter(|count| **count > 0).count();
        assert_eq!(policy.blocks.referenced(), referenced);
        let load = policy.load();
        assert_eq!(load.kv_used, (referenced * BLOCK_TOKENS) as u64);
        assert!(load.running <= bounds.slots, "more sequences than slots");
    }

    /// Steps that all admitted groups can take at most: each computes a token, draws one, or is the first of a restart, and
    /// a sequence is computed again at most once for every older one.
    pub(super) fn step_bound(&self) -> usize {
        let of_group = |text: &Text| (text.branches.len() + 1) * (text.prompt.len() + text.max_tokens + 2);
        let sequences: usize = self.texts.values().map(|text| text.branches.len() + 1).sum();
        self.texts.values().map(of_group).sum::<usize>() * (sequences + 1) * self.at_once
    }

    pub(super) fn has_served(&self, id: GroupId) -> bool {
        self.served.iter().any(|served| served.group == id)
    }

    pub(super) fn computed_of(&self, id: GroupId) -> usize {
        self.computed_of.get(&id).copied().unwrap_or(0)
    }

    pub(super) fn assert_idle(&self) {
        assert!(self.policy.is_empty());
        assert_eq!(self.policy.load(), Load::default());
        assert_eq!(self.policy.blocks.available(), self.bounds.blocks, "a block has got lost");
    }
}
