//! Puts the groups of a request together: which candidate is which choice, what stands in front of it, who won `best_of`,
//! what it all cost. Pure; `answer` feeds it the groups' events and hands on what comes out.

use shoal_common::ids::BranchIndex;
use shoal_common::wire::message::{BranchToken, TokenScore};

use crate::choice::{Candidate, Delta, PlacedToken};
use crate::dispatch::GroupEvent;
use crate::http::schema::{FinishReason, Usage};
use crate::plan::{Assignment, FirstToken, GroupPlan, Plan, Prelude};
use crate::text::{Detokenizer, SpecialText};

/// What one event adds to one choice.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceDelta {
    /// The choice's index in the answer.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
}

/// A branch that must be ended: a stop string matched in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopOrder {
    /// Which group.
    pub group: usize,
    /// Which branch of it.
    pub branch: BranchIndex,
}

/// What an event leads to.
#[derive(Debug, Default)]
pub struct Output {
    /// In the order in which they are to be sent.
    pub deltas: Vec<ChoiceDelta>,
    /// Branches whose worker does not know yet that they ended.
    pub stops: Vec<StopOrder>,
}

/// The state of all choices of a request.
#[derive(Debug)]
pub struct Merge {
    groups: Vec<Group>,
    prompt_tokens: u64,
    candidates_per_branch: u64,
}

#[derive(Debug)]
struct Group {
    /// Index of its first choice.
    base: u32,
    /// Choices of this group.
    n: u16,
    assignment: Assignment,
    candidates: Vec<Candidate>,
    /// Deltas of candidates that are not ranked yet; empty unless ranked.
    buffered: Vec<Delta>,
    prelude: Prelude,
    scores: Vec<TokenScore>,
    stage: Stage,
}

/// How far a group's answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Prompt scores are still to come.
    Scoring,
    /// Tokens come.
    Generating,
    /// Every choice has its finish reason.
    Done,
}

impl Merge {
    /// The state before anything has come.
    pub fn new(plan: &Plan) -> Self {
        let groups = plan.groups.iter().enumerate().map(|(index, group)| Group::new(plan, group, index)).collect();
        let prompt_tokens = plan.groups.iter().map(|group| group.submit.prompt.0.len() as u64).sum();
        Self { groups, prompt_tokens, candidates_per_branch: plan.candidates_per_branch() }
    }

    /// What can be told before any event: echoed prompts whose tokens are not reported.
    pub fn begin(&mut self) -> Vec<ChoiceDelta> {
        self.groups.iter_mut().flat_map(Group::open_if_scored).collect()
    }

    /// Takes an event of a group.
    pub fn accept(&mut self, group: usize, event: GroupEvent) -> Output {
        let mut output = Output::default();
        match event {
            GroupEvent::PromptScores(scores) => {
                self.groups[group].scores.extend(scores);
                output.deltas = self.groups[group].open_if_scored();
            }
            GroupEvent::Tokens(tokens) => {
                for token in tokens {
                    self.groups[group].take(group, token, &mut output);
                }
            }
        }
        output.deltas.retain(|choice| !choice.delta.is_empty());
        output
    }

    /// Ends every choice that is still open where it stands.
    pub fn cancel(&mut self) -> Vec<ChoiceDelta> {
        self.groups.iter_mut().flat_map(Group::cancel).collect()
    }

    /// Whether every choice has its finish reason.
    pub fn is_done(&self) -> bool {
        self.groups.iter().all(|group| group.stage == Stage::Done)
    }

    /// What was counted so far. All candidates count, computed or not.
    pub fn usage(&self) -> Usage {
        let generated: u64 =
            self.groups.iter().flat_map(|group| &group.candidates).map(|one| u64::from(one.generated())).sum();
        Usage::new(self.prompt_tokens, generated * self.candidates_per_branch)
    }
}

impl Group {
    fn new(plan: &Plan, group: &GroupPlan, index: usize) -> Self {
        let tokenizer = &plan.rules.tokenizer;
        let mut rules = plan.rules.clone();
        rules.text_before = crate::choice::scalars(&group.prelude.text);
        let detokenizer = || Detokenizer::continuing(tokenizer.clone(), SpecialText::Hidden);
        let branches = group.submit.branches.len();
        let ranked = plan.assignment == Assignment::Ranked;
        Self {
            base: index as u32 * u32::from(plan.n),
            n: plan.n,
            assignment: plan.assignment,
            candidates: (0..branches).map(|_| Candidate::new(&rules, detokenizer())).collect(),
            buffered: vec![Delta::default(); if ranked { branches } else { 0 }],
            prelude: group.prelude.clone(),
            scores: Vec::new(),
            stage: Stage::Scoring,
        }
    }

    /// The prelude of every choice, once all scores that belong to it are there.
    fn open_if_scored(&mut self) -> Vec<ChoiceDelta> {
        if self.stage != Stage::Scoring || self.scores.len() < self.prelude.scores_due() {
            return Vec::new();
        }
        self.stage = Stage::Generating;
        let mut delta = Delta { text: self.prelude.text.clone(), tokens: self.prelude_tokens(), finish: None };
        if self.candidates.is_empty() {
            delta.finish = Some(FinishReason::Length);
            self.stage = Stage::Done;
        }
        if self.assignment == Assignment::Ranked && self.stage == Stage::Generating {
            self.buffered.fill(delta);
            return Vec::new();
        }
        if delta.is_empty() { Vec::new() } else { self.for_choices(0..self.n, &delta) }
    }

    fn prelude_tokens(&mut self) -> Vec<PlacedToken> {
        let Some(placed) = &self.prelude.tokens else { return Vec::new() };
        let scores = std::mem::take(&mut self.scores).into_iter().map(Some);
        let all = placed.iter().zip(std::iter::once(None).chain(scores));
        let skipped = match self.prelude.first {
            FirstToken::Unscored => 0,
            FirstToken::Omitted => 1,
        };
        let place = |((token, offset), score): (&(_, u64), _)| PlacedToken { token: *token, score, offset: *offset };
        all.skip(skipped).map(place).collect()
    }

    fn take(&mut self, group: usize, token: BranchToken, output: &mut Output) {
        let (branch, ended_by_worker) = (token.branch, token.end.is_some());
        let Some(candidate) = self.candidates.get_mut(branch.index()) else { return };
        let delta = candidate.push(token);
        if delta.finish.is_some() && !ended_by_worker {
            output.stops.push(StopOrder { group, branch });
        }
        self.hand_on(branch, delta, &mut output.deltas);
    }

    fn hand_on(&mut self, branch: BranchIndex, delta: Delta, deltas: &mut Vec<ChoiceDelta>) {
        let all_ended = self.candidates.iter().all(|candidate| candidate.finish().is_some());
        match self.assignment {
            Assignment::Direct => deltas.push(ChoiceDelta { index: self.base + u32::from(branch.0), delta }),
            Assignment::Shared => deltas.extend(self.for_choices(0..self.n, &delta)),
            Assignment::Ranked => {
                self.buffered[branch.index()].append(delta);
                if all_ended && self.stage != Stage::Done {
                    deltas.extend(self.winners());
                }
            }
        }
        if all_ended {
            self.stage = Stage::Done;
        }
    }

    /// The `n` best candidates, best first; ties by candidate index.
    fn winners(&mut self) -> Vec<ChoiceDelta> {
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        let mean = |candidate: &usize| self.candidates[*candidate].mean_logprob();
        // A stable sort keeps the index order of equals.
        order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        order.truncate(usize::from(self.n));
        let base = self.base;
        let winner = |(rank, candidate): (usize, usize)| ChoiceDelta {
            index: base + rank as u32,
            delta: std::mem::take(&mut self.buffered[candidate]),
        };
        order.into_iter().enumerate().map(winner).collect()
    }

    fn cancel(&mut self) -> Vec<ChoiceDelta> {
        let mut deltas = Vec::new();
        if self.stage == Stage::Done {
            return deltas;
        }
        if self.candidates.is_empty() {
            self.stage = Stage::Done;
            let delta = Delta { finish: Some(FinishReason::Cancelled), ..Delta::default() };
            return self.for_choices(0..self.n, &delta);
        }
        for index in 0..self.candidates.len() {
            let delta = self.candidates[index].cancel();
            self.hand_on(BranchIndex(index as u16), delta, &mut deltas);
        }
        if self.assignment == Assignment::Ranked {
            // Also those that had come to their end: had the others gone on, one of them might have been better.
            deltas.iter_mut().for_each(|choice| choice.delta.finish = Some(FinishReason::Cancelled));
        }
        deltas.retain(|choice| !choice.delta.is_empty());
        deltas
    }

    fn for_choices(&self, choices: std::ops::Range<u16>, delta: &Delta) -> Vec<ChoiceDelta> {
        choices.map(|k| ChoiceDelta { index: self.base + u32::from(k), delta: delta.clone() }).collect()
    }
}

#[cfg(test)]
mod tests;
