//! A group while the engine runs it: its tokens, its branches' histories, what it has to say after a step. Owned by the
//! engine's thread; knows nothing of KV or of other groups.

use std::time::Instant;

use shoal_common::block_hash::BlockHash;
use shoal_common::ids::{BranchIndex, TokenId};
use shoal_common::sampling::SamplingParams;
use shoal_common::wire::message::{BranchEnd, BranchStart, BranchToken, EndRules, GroupFrame};

use super::admission::Arrival;
use super::hashes;
use super::sink::GroupSink;
use crate::adapters::{Adapter, Lease};
use crate::backend::LogitsBuffer;
use crate::sampler::{self, Sampler, TokenHistory};
use crate::scheduler::{Drawn, PlannedSlice};

/// One candidate.
struct LiveBranch {
    choice: u32,
    /// Emitted tokens, then those drawn here.
    generated: Vec<TokenId>,
    history: TokenHistory,
    /// Hash of its last full block.
    last_block: BlockHash,
    life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Ended,
}

/// A group as the engine sees it.
pub(super) struct LiveGroup {
    pub(super) sink: GroupSink,
    pub(super) deadline: Option<Instant>,
    /// Whether the policy was told that the group's stream is clogged.
    pub(super) parking: Parking,
    /// Given back when the group ends.
    adapter: Option<Lease>,
    prompt: Vec<TokenId>,
    sampling: SamplingParams,
    end: EndRules,
    /// Alternatives of the generated tokens' scores; absent: they are not scored.
    alternatives: Option<u8>,
    /// Alternatives of the prompt's scores.
    score_alternatives: u8,
    branches: Vec<LiveBranch>,
    /// `[vocab]` logits of the prompt's last token, while a branch has yet to draw from them; else empty.
    prompt_row: Vec<f32>,
    /// Drawn in this step.
    drawn: Vec<BranchToken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parking {
    Scheduled,
    Parked,
}

impl LiveGroup {
    pub(super) fn new(arrival: Arrival) -> Self {
        let Arrival { submit, hashes, adapter, sink, deadline } = arrival;
        let begin = hashes.prompt.last().copied().unwrap_or_else(|| hashes::begin(&submit));
        let prompt = submit.prompt.0;
        let blank = TokenHistory::new(&prompt);
        let branch = |(start, hashes): (BranchStart, &Vec<BlockHash>)| {
            let last_block = hashes.last().copied().unwrap_or(begin);
            LiveBranch::new(start.choice, start.emitted.0, &blank, last_block)
        };
        let branches = submit.branches.into_iter().zip(&hashes.branches).map(branch);
        Self {
            sink,
            deadline,
            parking: Parking::Scheduled,
            adapter,
            branches: branches.collect(),
            prompt,
            sampling: submit.sampling,
            end: submit.end,
            alternatives: submit.score_tokens,
            score_alternatives: submit.score_prompt.unwrap_or(0),
            prompt_row: Vec::new(),
            drawn: Vec::new(),
        }
    }

    /// What all of its slices are computed with.
    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_deref()
    }

    /// Whether nothing can be computed with it any more.
    pub(super) fn has_lost_adapter(&self) -> bool {
        self.adapter.as_ref().is_some_and(Lease::is_lost)
    }

    /// The tokens of a planned slice.
    pub(super) fn tokens(&self, slice: &PlannedSlice) -> &[TokenId] {
        match slice.start.checked_sub(self.prompt.len()) {
            None => &self.prompt[slice.start..slice.end()],
            Some(start) => &self.branches[slice.sequence.branch.index()].generated[start..start + slice.count],
        }
    }

    /// Keeps the prompt's last row if `slice` has computed it and a branch will draw from it. `row` is the slice's last.
    pub(super) fn keep_prompt_row(&mut self, slice: &PlannedSlice, row: &[f32]) {
        if slice.end() == self.prompt.len() && self.wants_prompt_row() {
            self.prompt_row.clear();
            self.prompt_row.extend_from_slice(row);
        }
    }

    fn wants_prompt_row(&self) -> bool {
        self.branches.iter().any(|branch| branch.life == Life::Open && branch.generated.is_empty())
    }

    /// Scores of the tokens that follow those of a prompt slice, whose rows begin at `first_row`.
    pub(super) fn prompt_scores(
        &self,
        slice: &PlannedSlice,
        first_row: usize,
        logits: &LogitsBuffer,
        sampler: &mut Sampler,
    ) -> Option<GroupFrame> {
        let first = slice.start + 1;
        let scored = self.prompt.get(first..self.prompt.len().min(first + slice.count))?;
        let score =
            |(at, token): (usize, &TokenId)| sampler.score(logits.row(first_row + at), *token, self.score_alternatives);
        let scores: Vec<_> = scored.iter().enumerate().map(score).collect();
        let first = u32::try_from(first).expect("a prompt fits the context, which is a u32");
        (!scores.is_empty()).then_some(GroupFrame::PromptScores { first, scores })
    }

    /// Whether the branch has not ended. A router may end one while a step is under way.
    pub(super) fn is_open(&self, at: BranchIndex) -> bool {
        self.branches.get(at.index()).is_some_and(|branch| branch.life == Life::Open)
    }

    /// Draws the branch's next token from `row`, or from the prompt's row.
    pub(super) fn draw(&mut self, at: BranchIndex, row: Option<&[f32]>, sampler: &mut Sampler) -> Drawn {
        let row = row.unwrap_or(&self.prompt_row);
        let branch = &mut self.branches[at.index()];
        let position = branch.position();
        let banned = if position < self.end.min_tokens { &self.end.stop_ids[..] } else { &[] };
        let draw =
            sampler::Draw { params: &self.sampling, history: &branch.history, banned, choice: branch.choice, position };
        let token = sampler.sample(row, &draw);
        let score = self.alternatives.map(|alternatives| sampler.score(row, token, alternatives));
        branch.push(token);
        let end = if self.end.stop_ids.binary_search(&token).is_ok() {
            Some(BranchEnd::StopToken)
        } else {
            (branch.position() >= self.end.max_tokens).then_some(BranchEnd::Length)
        };
        if end.is_some() {
            branch.life = Life::Ended;
        }
        self.drawn.push(BranchToken { branch: at, position, token, score, end });
        if end.is_some() {
            return Drawn::Ended;
        }
        let filled = hashes::filled(&branch.last_block, &self.prompt, &branch.generated);
        branch.last_block = filled.unwrap_or(branch.last_block);
        Drawn::GoesOn { filled }
    }

    /// The router has ended the branch.
    pub(super) fn stop_branch(&mut self, at: BranchIndex) {
        if let Some(branch) = self.branches.get_mut(at.index()) {
            branch.life = Life::Ended;
        }
    }

    /// The tokens of the step, if there are any.
    pub(super) fn take_frame(&mut self) -> Option<GroupFrame> {
        if !self.wants_prompt_row() {
            self.prompt_row = Vec::new();
        }
        if self.drawn.is_empty() {
            return None;
        }
        let mut tokens = std::mem::take(&mut self.drawn);
        tokens.sort_unstable_by_key(|token| token.branch);
        Some(GroupFrame::Step(tokens))
    }
}

impl LiveBranch {
    fn new(choice: u32, emitted: Vec<TokenId>, blank: &TokenHistory, last_block: BlockHash) -> Self {
        let mut history = blank.clone();
        emitted.iter().for_each(|token| history.push(*token));
        Self { choice, generated: emitted, history, last_block, life: Life::Open }
    }

    /// Index of the next token among the generated ones.
    fn position(&self) -> u32 {
        u32::try_from(self.generated.len()).expect("a branch generates at most max_tokens, which is a u32")
    }

    fn push(&mut self, token: TokenId) {
        self.generated.push(token);
        self.history.push(token);
    }
}
