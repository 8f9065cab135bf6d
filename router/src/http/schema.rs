//! The documents of the HTTP contract as serde types: what `http::completions` sends, and the request as `/openapi.json`
//! describes it. Decoding requests is `validate`'s; these types only leave the house.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// An answer, and every chunk of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Completion {
    /// `cmpl-…`, the same in all chunks of a stream.
    pub id: String,
    /// Always `text_completion`.
    pub object: CompletionObject,
    /// Unix seconds.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
    /// `fp_…`: two answers under one fingerprint and seed are byte-identical.
    pub system_fingerprint: String,
    /// In a stream: those that this chunk carries on.
    pub choices: Vec<Choice>,
    /// In a stream: on one chunk at most, `null` on the others.
    #[schema(required = false)]
    pub usage: Option<Usage>,
}

/// The constant `text_completion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CompletionObject {
    /// The only one.
    #[default]
    TextCompletion,
}

/// One of the `n` answers to one of the prompts.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Choice {
    /// `prompt index * n + k`
    pub index: u32,
    /// Whole characters only.
    pub text: String,
    /// `null` while the choice goes on.
    pub finish_reason: Option<FinishReason>,
    /// `null` unless asked for.
    pub logprobs: Option<Logprobs>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model's end of sequence, a stop string or a stop token.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// Cut by a drain, a deadline or a failure that replay could not mend.
    Cancelled,
}

/// Tokens counted over all prompts and candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompts, each prompt once.
    pub prompt_tokens: u64,
    /// Tokens generated for all candidates, those cut by a stop string too.
    pub completion_tokens: u64,
    /// The sum.
    pub total_tokens: u64,
}

impl Usage {
    /// The two counts and their sum.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens.saturating_add(completion_tokens) }
    }
}

/// A logprob in nats. JSON has no infinities: minus infinity, and whatever is not a number, is written as -9999.0.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, ToSchema)]
#[schema(value_type = f64)]
pub struct Logprob(pub f32);

impl Serialize for Logprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f32(if self.0.is_finite() { self.0 } else { -9999.0 })
    }
}

/// Logprobs of a choice's tokens in two shapes at once: OctoAI's `content` and OpenAI's four parallel lists. All lists
/// have one entry per token; [`push`](Logprobs::push) keeps them so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Logprobs {
    /// OctoAI's shape. `null` stands for a token without a logprob: the first one of an echoed prompt.
    pub content: Vec<Option<LogprobsContent>>,
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// The tokens' logprobs; `null` for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<Logprob>>,
    /// For each token its alternatives by text; `null` where `token_logprobs` is.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Where each token begins in the returned text of the choice, in Unicode scalars.
    pub text_offset: Vec<u64>,
}

/// A token with its logprob and alternatives, OctoAI's shape.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct LogprobsContent {
    /// The token's text.
    pub token: String,
    /// Its logprob.
    pub logprob: Logprob,
    /// Its bytes: half a character has no text of its own.
    pub bytes: Vec<u8>,
    /// By (logprob descending, id ascending).
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative, OctoAI's shape.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Its logprob.
    pub logprob: Logprob,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Alternatives by text in order of rank, OpenAI's shape. Two ids may have one text (halves of characters do): the better
/// one is kept, since JSON keys are unique.
#[derive(Clone, Debug, Default, PartialEq, ToSchema)]
#[schema(value_type = BTreeMap<String, f64>)]
pub struct TopLogprobs(Vec<(String, Logprob)>);

impl TopLogprobs {
    /// From alternatives in order of rank.
    pub fn new(ranked: impl IntoIterator<Item = (String, Logprob)>) -> Self {
        let mut unique: Vec<(String, Logprob)> = Vec::new();
        for (token, logprob) in ranked {
            if unique.iter().all(|(seen, _)| *seen != token) {
                unique.push((token, logprob));
            }
        }
        Self(unique)
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(token, logprob)| map.serialize_entry(token, logprob))?;
        map.end()
    }
}

impl Logprobs {
    /// A scored token that begins at `offset` of the choice's text.
    pub fn push(&mut self, content: LogprobsContent, offset: u64) {
        self.tokens.push(content.token.clone());
        self.token_logprobs.push(Some(content.logprob));
        let ranked = content.top_logprobs.iter().map(|top| (top.token.clone(), top.logprob));
        self.top_logprobs.push(Some(TopLogprobs::new(ranked)));
        self.text_offset.push(offset);
        self.content.push(Some(content));
    }

    /// A token that nothing stands before, so that it has no logprob.
    pub fn push_unscored(&mut self, token: String, offset: u64) {
        self.tokens.push(token);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.text_offset.push(offset);
        self.content.push(None);
    }

    /// Drops the tokens from `length` on, in every list.
    pub fn truncate(&mut self, length: usize) {
        self.content.truncate(length);
        self.tokens.truncate(length);
        self.token_logprobs.truncate(length);
        self.top_logprobs.truncate(length);
        self.text_offset.truncate(length);
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn scored(token: &str, logprob: f32, alternatives: &[(&str, f32)]) -> LogprobsContent {
        let top = |(token, logprob): &(&str, f32)| TopLogprob {
            token: (*token).to_owned(),
            logprob: Logprob(*logprob),
            bytes: token.as_bytes().to_vec(),
        };
        LogprobsContent {
            token: token.to_owned(),
            logprob: Logprob(logprob),
            bytes: token.as_bytes().to_vec(),
            top_logprobs: alternatives.iter().map(top).collect(),
        }
    }

    #[test]
    fn logprobs_carry_both_shapes_token_by_token() {
        let mut logprobs = Logprobs::default();
        logprobs.push_unscored("The".to_owned(), 0);
        logprobs.push(scored(" cat", -0.1, &[(" cat", -0.1), (" dog", -2.5)]), 3);
        insta::assert_json_snapshot!(logprobs);
    }

    #[test]
    fn an_infinite_logprob_is_a_number_all_clients_read() {
        for odd in [f32::NEG_INFINITY, f32::INFINITY, f32::NAN] {
            assert_eq!(serde_json::to_value(Logprob(odd)).unwrap(), json!(-9999.0));
        }
        assert_eq!(serde_json::to_string(&Logprob(-0.1)).unwrap(), "-0.1");
    }

    #[test]
    fn two_ids_of_one_text_leave_the_better_one_and_keep_the_order() {
        let half = "\u{fffd}";
        let top = TopLogprobs::new(
            [("z", -0.5), (half, -1.0), ("a", -1.5), (half, -2.0)].map(|(t, l)| (t.to_owned(), Logprob(l))),
        );
        assert_eq!(serde_json::to_string(&top).unwrap(), format!("{{\"z\":-0.5,\"{half}\":-1.0,\"a\":-1.5}}"));
    }

    #[test]
    fn an_answer_has_the_fields_that_the_clients_require() {
        let answer = Completion {
            id: "cmpl-1".to_owned(),
            object: CompletionObject::TextCompletion,
            created: 1,
            model: "m".to_owned(),
            system_fingerprint: "fp_0".to_owned(),
            choices: vec![Choice {
                index: 0,
                text: "hi".to_owned(),
                finish_reason: Some(FinishReason::Cancelled),
                logprobs: None,
            }],
            usage: Some(Usage::new(1, 2)),
        };
        let expected: Value = json!({
            "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "system_fingerprint": "fp_0",
            "choices": [{ "index": 0, "text": "hi", "finish_reason": "cancelled", "logprobs": null }],
            "usage": { "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3 },
        });
        assert_eq!(serde_json::to_value(answer).unwrap(), expected);
    }
}
