//! From deltas to the documents of the contract: token labels, both logprob shapes, the fields around the choices.

use std::sync::Arc;

use shoal_common::ambient;
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Name, TokenId};

use super::schema::{Choice, Completion, CompletionObject, Logprob, Logprobs, LogprobsContent, TopLogprob, Usage};
use crate::choice::{Delta, PlacedToken};
use crate::text::Tokenizer;

/// The fields that all chunks of an answer share.
#[derive(Clone, Debug)]
pub struct Envelope {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Envelope {
    /// A fresh id around `model`, the name the client used; `created` in Unix seconds.
    pub fn new(model: &Name, fingerprint: Fingerprint, created: u64) -> Self {
        let id = format!("cmpl-{:032x}", ambient::draw::<u128>());
        Self { id, created, model: model.to_string(), fingerprint: fingerprint.to_string() }
    }

    /// A document or chunk with `choices`.
    pub fn document(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: CompletionObject::TextCompletion,
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage,
        }
    }

    /// A chunk as JSON text.
    pub fn chunk_json(&self, choices: Vec<Choice>, usage: Option<Usage>) -> String {
        serde_json::to_string(&self.document(choices, usage)).expect("strings, numbers and lists always serialise")
    }
}

/// Turns deltas into choices.
#[derive(Clone, Debug)]
pub struct Reporter {
    tokenizer: Arc<Tokenizer>,
    alternatives: Option<u8>,
}

impl Reporter {
    /// Reports logprobs with `alternatives` each, or none at all.
    pub fn new(tokenizer: &Arc<Tokenizer>, alternatives: Option<u8>) -> Self {
        Self { tokenizer: Arc::clone(tokenizer), alternatives }
    }

    /// A choice of a whole answer: logprobs are there, even if empty, where they were asked for.
    pub fn whole(&self, index: u32, delta: Delta) -> Choice {
        let logprobs = self.alternatives.map(|count| self.logprobs(delta.tokens, count));
        Choice { index, text: delta.text, finish_reason: delta.finish, logprobs }
    }

    /// A choice of a chunk: no logprobs where no token is told, but on its last. So the chunks of a choice that has no token at
    /// all say together what the whole answer says: empty lists.
    pub fn chunk(&self, index: u32, mut delta: Delta) -> Choice {
        let tokens = std::mem::take(&mut delta.tokens);
        let is_told = !tokens.is_empty() || delta.finish.is_some();
        let logprobs = self.alternatives.filter(|_| is_told).map(|count| self.logprobs(tokens, count));
        Choice { index, text: delta.text, finish_reason: delta.finish, logprobs }
    }

    fn logprobs(&self, tokens: Vec<PlacedToken>, alternatives: u8) -> Logprobs {
        let mut logprobs = Logprobs::default();
        for PlacedToken { token, score, offset } in tokens {
            let Some(score) = score else {
                logprobs.push_unscored(self.tokenizer.token_label(token), offset);
                continue;
            };
            let listed = score.alternatives.iter().take(alternatives.into());
            let top_logprobs = listed.map(|(token, logprob)| self.top(*token, *logprob)).collect();
            let TopLogprob { token, logprob, bytes } = self.top(token, score.logprob);
            logprobs.push(LogprobsContent { token, logprob, bytes, top_logprobs }, offset);
        }
        logprobs
    }

    fn top(&self, token: TokenId, logprob: f32) -> TopLogprob {
        TopLogprob {
            token: self.tokenizer.token_label(token),
            logprob: Logprob(logprob),
            bytes: self.tokenizer.token_bytes(token).to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::FinishReason;
    use super::*;
    use crate::testing::model;

    #[test]
    fn the_chunks_of_a_choice_without_a_token_say_what_the_whole_answer_says() {
        let end = || Delta { finish: Some(FinishReason::Stop), ..Delta::default() };
        let told = |choice: Choice| serde_json::to_value(choice).expect("it serialises");
        for alternatives in [None, Some(0), Some(3)] {
            let reporter = Reporter::new(&model().tokenizer, alternatives);
            assert_eq!(told(reporter.chunk(0, end())), told(reporter.whole(0, end())));
            let lists = told(reporter.whole(0, end()))["logprobs"].clone();
            assert_eq!(lists.is_null(), alternatives.is_none(), "{lists}");
            // What stands between the first token and the last chunk says nothing of tokens.
            let text = Delta { text: "half".to_owned(), ..Delta::default() };
            assert!(told(reporter.chunk(0, text))["logprobs"].is_null());
        }
    }
}
