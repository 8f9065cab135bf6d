//! The answers of the HTTP contract as serde types: what `http::completions` sends, whole and in chunks. These types only
//! leave the house.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
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
