//! The request as `/openapi.json` describes it. Nothing is decoded with these types: that is `validate`'s, with the rules that
//! a schema cannot say.

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;

/// `POST /v1/completions` as documented. `null` is the same as absent for every field but `model`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = CompletionRequest)]
#[expect(
    dead_code,
    reason = "describes the request in /openapi.json; `validate` decodes it with the rules a schema cannot say"
)]
pub struct CompletionRequestDoc {
    /// A served model, or an adapter's name.
    #[schema(example = "SmolLM2-135M-Instruct")]
    model: String,
    /// Absent or `""`: the start of a document.
    prompt: Option<PromptDoc>,
    /// Tokens generated at most; 0 only with `echo` or `loglikelihood`.
    #[schema(default = 512, minimum = 0)]
    max_tokens: Option<u32>,
    /// Choices per prompt.
    #[schema(default = 1, minimum = 1, maximum = 16)]
    n: Option<u16>,
    /// Candidates per prompt, of which the best `n` are returned; `n` when absent.
    #[schema(minimum = 1, maximum = 16)]
    best_of: Option<u16>,
    /// Put the prompt's text in front.
    #[schema(default = false)]
    echo: Option<bool>,
    /// Score the prompt's tokens.
    #[schema(default = false)]
    loglikelihood: Option<bool>,
    /// Alternatives per token; 0 gives the sampled token's logprob alone.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<u8>,
    /// 0 is greedy.
    #[schema(default = 1.0, minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Nucleus mass; 1 is off.
    #[schema(default = 1.0, minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Floor relative to the most probable token.
    #[schema(default = 0.0, minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// Keep the best k only; 0 and -1 are off.
    #[schema(default = 0, minimum = -1)]
    top_k: Option<i64>,
    /// Tokens before which nothing may end the answer.
    #[schema(default = 0, minimum = 0)]
    min_tokens: Option<u32>,
    /// Subtracted per occurrence among the generated tokens.
    #[schema(default = 0.0, minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Subtracted once per distinct generated token.
    #[schema(default = 0.0, minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens seen.
    #[schema(default = 1.0, exclusive_minimum = 0, maximum = 10)]
    repetition_penalty: Option<f64>,
    /// Token id to bias in -100..100; exactly -100 bans, exactly 100 leaves only such ids.
    logit_bias: Option<BTreeMap<String, Option<f64>>>,
    /// u64, or i64 taken as its two's complement. Absent: drawn, and returned in `x-shoal-seed`.
    seed: Option<i64>,
    /// The text ends before the first of these.
    stop: Option<StopDoc>,
    /// Tokens that end the answer.
    #[schema(max_items = 64)]
    stop_token_ids: Option<Vec<u32>>,
    /// Go on past the end of sequence.
    #[schema(default = false)]
    ignore_eos: Option<bool>,
    /// Text after the hole (fill-in-the-middle).
    suffix: Option<String>,
    /// An adapter's name.
    peft: Option<String>,
    /// Server-sent events, one [`Completion`] each, then `[DONE]`.
    #[schema(default = false)]
    stream: Option<bool>,
    /// Settings of a stream.
    stream_options: Option<StreamOptionsDoc>,
    /// Write the prompt and the request's facts to the prompt log.
    #[schema(default = false)]
    log_prompt: Option<bool>,
    /// Fair-share key.
    #[schema(max_length = 256)]
    user: Option<String>,
}

/// The four forms of a prompt.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = Prompt)]
#[serde(untagged)]
pub enum PromptDoc {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One prompt in token ids.
    Ids(Vec<u32>),
    /// Several prompts in token ids.
    IdLists(Vec<Vec<u32>>),
}

/// One stop string or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = Stop)]
#[serde(untagged)]
pub enum StopDoc {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Settings of a stream.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = StreamOptions)]
#[expect(dead_code, reason = "describes the request in /openapi.json")]
pub struct StreamOptionsDoc {
    /// Send usage on the last chunk.
    #[schema(default = false)]
    include_usage: Option<bool>,
}
