//! The books of one group: what each branch knows, what of the prompt is scored, what waits. A branch *knows* prompt and
//! generated tokens; its sequence has *computed* some of them. When the two meet, its next token is drawn. A prefill, a
//! resumed or a preempted branch and a decode differ in nothing else. Used by the policy alone.

use shoal_common::block_hash::BlockHash;
use shoal_common::ids::BranchIndex;

use super::sequence::Sequence;
use crate::backend::BLOCK_TOKENS;

/// A group in this engine's life. Never used twice; the lesser is the older.
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

/// Hashes of a group's full blocks, as far as their tokens are known. What has no hash is never shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    /// Of the prompt's full blocks.
    pub prompt: Vec<BlockHash>,
    /// Per branch, of the full blocks after those.
    pub branches: Vec<Vec<BlockHash>>,
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
    /// Names of its blocks.
    pub hashes: Hashes,
}

impl GroupShape {
    /// Blocks of the longest sequence the group can need.
    pub(super) fn blocks(&self) -> usize {
        let generated = if self.emitted.is_empty() { 0 } else { self.max_tokens };
        (self.prompt + generated).div_ceil(BLOCK_TOKENS)
    }

    /// Tokens to compute for it at most, if it is never preempted.
    pub(super) fn work(&self) -> u64 {
        (self.prompt + self.emitted.len() * self.max_tokens) as u64
    }
}

/// Where a branch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// For a slot and blocks.
    Waiting,
    /// It has a sequence.
    Running,
    Ended,
}

#[derive(Debug)]
struct Branch {
    generated: usize,
    life: Life,
    /// Of its full blocks after the prompt's.
    hashes: Vec<BlockHash>,
}

/// What the group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Generate,
    /// Its only branch ends with the prompt and draws nothing.
    Score,
}

/// Whether the group's stream takes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Open,
    Parked,
}

/// Which rows of a chunk the prompt's scores need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    AsUsual,
    Scored,
}

/// Tokens that a sequence can compute next in one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) count: usize,
    pub(super) rows: Rows,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) share_key: u64,
    pub(super) flow: Flow,
    pub(super) prompt: usize,
    max_tokens: usize,
    purpose: Purpose,
    /// Prompt tokens whose rows were asked for; all of them where none are scored.
    pub(super) scored: usize,
    /// Whether anything was computed for it.
    pub(super) has_begun: bool,
    /// Whether the engine has the prompt's last row for branches that have drawn nothing yet.
    pub(super) has_row: bool,
    hashes: Vec<BlockHash>,
    branches: Vec<Branch>,
}

impl Group {
    pub(super) fn new(shape: GroupShape) -> Self {
        let GroupShape { share_key, prompt, max_tokens, mut emitted, scoring, hashes } = shape;
        let purpose = if emitted.is_empty() { Purpose::Score } else { Purpose::Generate };
        if purpose == Purpose::Score {
            emitted.push(0);
        }
        let mut of_branches = hashes.branches.into_iter();
        let branch =
            |generated| Branch { generated, life: Life::Waiting, hashes: of_branches.next().unwrap_or_default() };
        Self {
            share_key,
            flow: Flow::Open,
            prompt,
            max_tokens,
            purpose,
            scored: if scoring == Scoring::Prompt { 0 } else { prompt },
            has_begun: false,
            has_row: false,
            hashes: hashes.prompt,
            branches: emitted.into_iter().map(branch).collect(),
        }
    }

    /// Tokens of the branch that are known.
    pub(super) fn known(&self, branch: BranchIndex) -> usize {
        self.prompt + self.branches[branch.index()].generated
    }

    pub(super) fn has_generated(&self, branch: BranchIndex) -> bool {
        self.branches[branch.index()].generated > 0
    }

    /// Whether tokens are drawn from what the group computes.
    pub(super) fn draws(&self) -> bool {
        self.purpose == Purpose::Generate
    }

    /// The hash of the branch's block `at`, if it is full.
    pub(super) fn hash(&self, branch: BranchIndex, at: usize) -> Option<&BlockHash> {
        let of_prompt = self.prompt / BLOCK_TOKENS;
        match at.checked_sub(of_prompt) {
            None => self.hashes.get(at),
            Some(after) => self.branches[branch.index()].hashes.get(after),
        }
    }

    /// Blocks of the branch that may come from the cache: all full ones, but at least one token is computed, so that there
    /// is a row to draw from; and every token whose row is still to be scored is.
    pub(super) fn cacheable(&self, branch: BranchIndex) -> usize {
        let most = self.known(branch) - 1;
        (if self.scores_owed() { most.min(self.scored) } else { most }) / BLOCK_TOKENS
    }

    pub(super) fn scores_owed(&self) -> bool {
        self.scored < self.prompt
    }

    /// What a sequence of the branch that has `computed` tokens can compute next. A slice ends where the scored rows begin
    /// and where the prompt ends: what it is fed comes from one place, and the prompt's last row is a slice's last.
    pub(super) fn chunk(&self, branch: BranchIndex, computed: usize) -> Chunk {
        let known = self.known(branch);
        let (end, rows) = if computed < self.scored {
            (self.scored, Rows::AsUsual)
        } else if computed < self.prompt {
            (self.prompt, Rows::Scored)
        } else {
            (known, Rows::AsUsual)
        };
        Chunk { count: end - computed, rows }
    }

    /// Whether a branch is left that draws its first token from the prompt's last row.
    pub(super) fn wants_row(&self) -> bool {
        let wants = |branch: &Branch| branch.generated == 0 && branch.life != Life::Ended;
        self.purpose == Purpose::Generate && self.branches.iter().any(wants)
    }

    /// The branch that starts next.
    pub(super) fn first_waiting(&self) -> Option<BranchIndex> {
        self.branches.iter().position(|branch| branch.life == Life::Waiting).map(branch_index)
    }

    /// Whether nothing of it has started, or nothing that has still runs.
    pub(super) fn is_queued(&self) -> bool {
        self.branches.iter().all(|branch| branch.life != Life::Running)
    }

    /// Whether nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.branches.iter().all(|branch| branch.life == Life::Ended)
    }

    /// The branch's life, if there is such a branch.
    pub(super) fn life(&self, branch: BranchIndex) -> Option<Life> {
        self.branches.get(branch.index()).map(|branch| branch.life)
    }

    pub(super) fn set_life(&mut self, branch: BranchIndex, life: Life) {
        self.branches[branch.index()].life = life;
    }

    /// A token was drawn and the branch goes on; `filled` names the block that the token has filled.
    pub(super) fn grow(&mut self, branch: BranchIndex, filled: Option<BlockHash>) {
        let branch = &mut self.branches[branch.index()];
        branch.generated += 1;
        branch.hashes.extend(filled);
    }

    /// Tokens still to compute, at most, if nothing is preempted. `running` are the group's sequences.
    pub(super) fn work_left(&self, running: &[Sequence]) -> u64 {
        let furthest = running.iter().map(|sequence| sequence.computed).max().unwrap_or(0);
        let generate = if self.purpose == Purpose::Generate { self.max_tokens } else { 0 };
        // Emitted tokens are computed again too.
        let of_branch = |(at, branch): (usize, &Branch)| match branch.life {
            Life::Waiting => generate,
            Life::Running => {
                let own = running.iter().find(|sequence| sequence.id.branch.index() == at);
                generate - own.map_or(0, |sequence| sequence.computed.saturating_sub(self.prompt))
            }
            Life::Ended => 0,
        };
        let branches: usize = self.branches.iter().enumerate().map(of_branch).sum();
        (self.prompt.saturating_sub(furthest) + branches) as u64
    }
}

fn branch_index(at: usize) -> BranchIndex {
    BranchIndex(u16::try_from(at).expect("a submission has at most 64 branches"))
}
