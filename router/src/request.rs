//! A completion request in types that cannot be wrong. `validate` builds it from the body alone; what depends on the model
//! (ids within the vocabulary, context, fill-in-the-middle) is checked by `plan`.

use std::fmt;

use shoal_common::ids::{Name, TokenId};
use shoal_common::sampling::SamplingParams;

/// Text of a client. No `Display` and no readable `Debug`, so that a prompt cannot reach a log by way of a format string.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientText(pub String);

impl fmt::Debug for ClientText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientText({} bytes)", self.0.len())
    }
}

/// One prompt as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    /// Absent or `""`: the start of a document.
    DocumentStart,
    /// A non-empty string.
    Text(ClientText),
    /// At least one id; not yet checked against a vocabulary.
    Tokens(shoal_common::wire::message::PromptIds),
}

/// Where in the request a prompt stood, for error locations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// A string, or absent.
    Single,
    /// `[string]`
    Texts,
    /// `[int]`
    Ids,
    /// `[[int]]`
    IdLists,
}

/// Whether the prompt's text stands before the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// The completion alone.
    Off,
    /// Prompt first.
    Prompt,
}

/// Whether the prompt's tokens are scored by request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loglikelihood {
    /// Not asked for.
    Off,
    /// Scores of every prompt token but the first.
    Prompt,
}

/// What the model's end-of-sequence token does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EosRule {
    /// Ends the answer.
    Ends,
    /// Generation goes on.
    Ignored,
}

/// How the answer is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// One JSON document.
    Whole,
    /// Server-sent events.
    Stream {
        /// Whether usage is sent too.
        usage: StreamUsage,
    },
}

/// Whether a stream carries usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamUsage {
    /// `stream_options.include_usage`
    Included,
    /// Not asked for.
    Omitted,
}

/// Whether the request may be written to the prompt log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPrompt {
    /// `log_prompt: true`
    Yes,
    /// No prompt text is ever written.
    No,
}

/// A completion request, right in everything that can be judged without a model.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// A served model, or an adapter's name.
    pub model: Name,
    /// `peft`
    pub adapter: Option<Name>,
    /// At least one, at most `limits.prompts`.
    pub prompts: Vec<PromptInput>,
    /// How `prompts` was written.
    pub prompt_form: PromptForm,
    /// Text after the hole (fill-in-the-middle).
    pub suffix: Option<ClientText>,
    /// 0 only with `echo` or `loglikelihood`.
    pub max_tokens: u32,
    /// Tokens before which no stop may end the answer.
    pub min_tokens: u32,
    /// Choices per prompt, at least 1.
    pub n: u16,
    /// Candidates per prompt, at least `n`.
    pub best_of: u16,
    /// Prompt text in front.
    pub echo: Echo,
    /// Prompt scores.
    pub loglikelihood: Loglikelihood,
    /// Alternatives per token; absent: no logprobs.
    pub logprobs: Option<u8>,
    /// How tokens are drawn; its `seed` is filled by `plan`.
    pub sampling: SamplingParams,
    /// The client's seed. Signed ones are taken as their two's complement.
    pub seed: Option<u64>,
    /// Stop strings, non-empty.
    pub stop: Vec<ClientText>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<TokenId>,
    /// What EOS does.
    pub eos: EosRule,
    /// Whole or streamed.
    pub delivery: Delivery,
    /// Prompt log.
    pub log_prompt: LogPrompt,
    /// Fair-share key.
    pub user: Option<ClientText>,
    /// Unknown fields, for `x-shoal-ignored`: at most 16 names, each cut to printable ASCII of at most 64 bytes.
    pub ignored: Vec<String>,
}
