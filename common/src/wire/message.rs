//! The group stream: one prompt and its branches, from submission to the last token. Opening the stream submits; resetting
//! it cancels; its flow control is the back-pressure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::blob::BlobRequest;
use super::bounded;
use crate::block_hash::CacheSalt;
use crate::fingerprint::Fingerprint;
use crate::ids::{BranchIndex, Generation, TokenId};
use crate::sampling::SamplingParams;

/// Branches of a group at most. These three bounds hold for every worker: a router cannot be configured to ask for more.
pub const MAX_BRANCHES: usize = 64;

/// Alternatives per token at most: the contract's bound of `logprobs`.
pub const MAX_ALTERNATIVES: u8 = 20;

/// Entries of `logit_bias` at most: the contract's default bound, four times over.
pub const MAX_LOGIT_BIAS: usize = 4096;

/// First frame of every stream that a router opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StreamOpen {
    /// Run a group; the worker answers with [`GroupFrame`]s.
    Group(Box<Submit>),
    /// Send a blob; the worker answers with a [`BlobHeader`](super::blob::BlobHeader) and the bytes.
    Blob(BlobRequest),
}

/// First frame of every stream that a worker opens after its control stream, or to another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerOpen {
    /// Send a blob (an adapter); the answer is a [`BlobHeader`](super::blob::BlobHeader) and the bytes.
    Blob(BlobRequest),
    /// Say who has a blob and is nearer; a router answers with [`Nearer`](super::blob::Nearer), nobody else is asked.
    Nearer(BlobRequest),
}

/// Later frames of a group stream, from the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupOrder {
    /// This branch has ended (a stop string matched): free it.
    StopBranch(BranchIndex),
}

/// Token ids of a prompt. Has no readable `Debug`, so that a prompt cannot reach a log by way of a format string.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PromptIds(pub Vec<TokenId>);

impl fmt::Debug for PromptIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PromptIds({} tokens)", self.0.len())
    }
}

/// One prompt with its branches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submit {
    /// Identity of the answer that is asked for; a worker with another one refuses.
    pub fingerprint: Fingerprint,
    /// The adapter that the fingerprint names; absent: the base model. A worker that does not have it fetches it first.
    pub adapter: Option<Generation>,
    /// At least one token.
    pub prompt: PromptIds,
    /// At least one unless `max_tokens` is 0, at most [`MAX_BRANCHES`]; index = [`BranchIndex`].
    #[serde(deserialize_with = "bounded::few::<MAX_BRANCHES, _, _>")]
    pub branches: Vec<BranchStart>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// When a branch ends.
    pub end: EndRules,
    /// Score the generated tokens, with this many alternatives each (at most [`MAX_ALTERNATIVES`]); absent: do not. A score
    /// costs a pass over the vocabulary, and most requests want none.
    pub score_tokens: Option<u8>,
    /// Score the prompt's tokens, with this many alternatives each (at most [`MAX_ALTERNATIVES`]); absent: do not.
    pub score_prompt: Option<u8>,
    /// Key of the fair share among users: a hash, not the name.
    pub share_key: u64,
    /// Whose cached prefixes this group may meet.
    pub cache_salt: CacheSalt,
    /// Milliseconds the router is still willing to wait; absent: no deadline.
    pub deadline_ms: Option<u32>,
}

/// Where a branch begins: from nothing, or from what another worker had already produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchStart {
    /// Choice number for the sampler's generator, unique within the request.
    pub choice: u32,
    /// Tokens already delivered; they are prefilled, not sent again, and count as output.
    pub emitted: PromptIds,
}

/// When a branch ends, in tokens. Stop strings are the router's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRules {
    /// Tokens generated at most, those of `emitted` included.
    pub max_tokens: u32,
    /// None of `stop_ids` can be drawn before this many tokens.
    pub min_tokens: u32,
    /// Tokens that end a branch: the model's EOS (unless ignored) and the request's own. Ascending.
    pub stop_ids: Vec<TokenId>,
}

/// From worker to router on a group stream. After the last branch ended the worker finishes the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GroupFrame {
    /// The group has a place; always the first frame unless it is `Busy` or `Failed`.
    Accepted,
    /// Scores of prompt tokens `first..first+len`, in order and without gaps over the frames. Token 0 has no score, so the
    /// first frame begins at 1. All of them come before the first `Step`.
    PromptScores {
        /// Position of the first scored token.
        first: u32,
        /// One entry per token.
        scores: Vec<TokenScore>,
    },
    /// The tokens of one step, at most one per branch.
    Step(Vec<BranchToken>),
    /// No room. Nothing was computed; another worker may be asked.
    Busy {
        /// Expected wait.
        retry_after_ms: u32,
    },
    /// The group cannot go on.
    Failed(GroupFailure),
}

/// Why a worker gave up on a group. Fixed texts: nothing of a prompt can be in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GroupFailure {
    /// The worker serves another model, adapter or numerics version.
    #[error("the worker's fingerprint is another one")]
    WrongFingerprint,
    /// The submission breaks a rule of the protocol (an id outside the vocabulary, no tokens, too long).
    #[error("the submission is invalid")]
    Invalid,
    /// The deadline passed.
    #[error("the deadline has passed")]
    Deadline,
    /// The worker is shutting down and its drain time is over.
    #[error("the worker is shutting down")]
    ShuttingDown,
    /// The backend failed.
    #[error("the worker's engine failed")]
    Engine,
    /// The adapter does not fit the model or is broken: no worker can use it.
    #[error("the adapter cannot be used")]
    AdapterRefused,
    /// The adapter could not be had in time: nobody sent it, or there is no room for it.
    #[error("the adapter could not be loaded")]
    AdapterUnavailable,
    /// A part of the worker's model is away or has been, and what was computed is lost with it. See
    /// [`WorkerState::Incomplete`](super::hello::WorkerState): the same worker may be asked again.
    #[error("a part of the worker's model was lost")]
    Incomplete,
}

/// A generated token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BranchToken {
    /// Which branch.
    pub branch: BranchIndex,
    /// Index among the branch's generated tokens; the router refuses a gap or a repetition.
    pub position: u32,
    /// The token.
    pub token: TokenId,
    /// Its score, where one was asked for.
    pub score: Option<TokenScore>,
    /// Set on the branch's last token.
    pub end: Option<BranchEnd>,
}

/// A token with its raw model logprob (before bias, penalties and temperature), in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    /// The token.
    pub token: TokenId,
    /// Its raw logprob.
    pub logprob: f32,
    /// The best alternatives, by (logprob descending, id ascending); may hold the token itself.
    pub alternatives: Vec<(TokenId, f32)>,
}

/// Why a worker ended a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BranchEnd {
    /// The last token is one of `stop_ids`.
    StopToken,
    /// `max_tokens` reached.
    Length,
}
