//! The prompts of a measurement: the same for the same seed on every machine, each unlike the others. Called by `mod` before
//! the clock runs.
//!
//! Text is cut to length by the server's own tokenizer where it has `/tokenize` and `/detokenize` (Shoal, vLLM and
//! llama-server do), else by an estimate. Token ids have the exact length everywhere.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::Connection;
use super::error::BenchError;

/// Common words, so that a word is about a token in every vocabulary.
const WORDS: [&str; 72] = [
    "the", "of", "and", "river", "engine", "moon", "yellow", "carry", "table", "seven", "problem", "Python", "quickly",
    "garden", "memory", "window", "a", "strange", "Berlin", "letter", "is", "was", "running", "under", "cold",
    "market", "function", "return", "history", "paper", "wheel", "never", "north", "coffee", "signal", "music",
    "tower", "report", "over", "between", "small", "light", "student", "green", "network", "bread", "morning", "they",
    "about", "number", "into", "great", "people", "water", "where", "write", "place", "year", "live", "every",
    "country", "school", "father", "again", "house", "story", "second", "point", "world", "stone", "question",
    "answer",
];

/// What ends a run of words.
const ENDS: [&str; 4] = [".", ",", "?", " and"];

/// Tokens of a word with its share of the signs between, where no tokenizer can be asked.
const TOKENS_PER_WORD: f64 = 1.1;

/// The number of the shared prefix among the prompts; theirs count from 0.
const PREFIX: u64 = u64::MAX;

/// A prompt as `/v1/completions` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// What prompts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Material {
    /// Words.
    Words,
    /// Token ids of a vocabulary of this size.
    Ids { vocab: u32 },
}

/// What every prompt is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptPlan {
    pub(crate) material: Material,
    /// Tokens that are the prompt's own.
    pub(crate) tokens: usize,
    /// Tokens before them that all prompts share.
    pub(crate) shared: usize,
    pub(crate) seed: u64,
}

/// How text is cut to a number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ruler {
    ServersTokenizer,
    Estimate,
}

/// Makes prompts by number.
#[derive(Debug)]
pub(super) struct Prompts<'a> {
    connection: Connection<'a>,
    model: String,
    plan: PromptPlan,
    ruler: Ruler,
    /// Text of the shared prefix; empty without one.
    prefix: String,
}

impl<'a> Prompts<'a> {
    /// Finds out how this server's text can be cut.
    pub(super) async fn new(connection: Connection<'a>, model: &str, plan: PromptPlan) -> Result<Self, BenchError> {
        let (model, ruler, prefix) = (model.to_owned(), Ruler::ServersTokenizer, String::new());
        let mut prompts = Self { connection, model, plan, ruler, prefix };
        if plan.material == Material::Words {
            match prompts.cut_by_server(words(8, plan.seed, PREFIX), 4).await {
                Ok(_) => {}
                // A server without these endpoints, or with others of that name, is still a completion server.
                Err(BenchError::Refused { .. } | BenchError::NotJson { .. }) => prompts.ruler = Ruler::Estimate,
                Err(error) => return Err(error),
            }
            if plan.shared > 0 {
                prompts.prefix = prompts.text(plan.shared, PREFIX).await? + " ";
            }
        }
        Ok(prompts)
    }

    /// Prompt `number`.
    pub(super) async fn prompt(&mut self, number: u64) -> Result<Prompt, BenchError> {
        self.of_length(self.plan.tokens, number).await
    }

    /// A prompt of `tokens` own tokens: prompt `number` but for its length.
    pub(super) async fn of_length(&mut self, tokens: usize, number: u64) -> Result<Prompt, BenchError> {
        let PromptPlan { material, shared, seed, .. } = self.plan;
        Ok(match material {
            Material::Words => {
                let own = self.text(tokens, number).await?;
                Prompt::Text(format!("{}{own}", self.prefix))
            }
            Material::Ids { vocab } => {
                let mut all = ids(vocab, shared, seed, PREFIX);
                all.extend(ids(vocab, tokens, seed, number));
                Prompt::Ids(all)
            }
        })
    }

    async fn text(&mut self, tokens: usize, number: u64) -> Result<String, BenchError> {
        match self.ruler {
            // No word is less than a token.
            Ruler::ServersTokenizer => self.cut_by_server(words(tokens, self.plan.seed, number), tokens).await,
            Ruler::Estimate => {
                let count = (tokens as f64 / TOKENS_PER_WORD).ceil() as usize;
                Ok(words(count, self.plan.seed, number))
            }
        }
    }

    /// `text` up to its first `tokens` tokens. The body is written for Shoal and vLLM, which read `prompt`, and for
    /// llama-server, which reads `content`.
    async fn cut_by_server(&mut self, text: String, tokens: usize) -> Result<String, BenchError> {
        #[derive(Deserialize)]
        struct Tokenized {
            tokens: Vec<u32>,
        }
        #[derive(Deserialize)]
        struct Detokenized {
            #[serde(alias = "content")]
            prompt: String,
        }
        let body = json!({"model": self.model, "prompt": text, "content": text, "add_special_tokens": false});
        let mut tokenized: Tokenized = self.connection.post_json("/tokenize", &body).await?;
        tokenized.tokens.truncate(tokens);
        let body = json!({"model": self.model, "tokens": tokenized.tokens});
        let detokenized: Detokenized = self.connection.post_json("/detokenize", &body).await?;
        Ok(detokenized.prompt)
    }
}

/// `count` words in runs of 5 to 14, with signs between the runs.
fn words(count: usize, seed: u64, number: u64) -> String {
    let mut random = Random::new(seed, number);
    let mut text = String::with_capacity(count * 7);
    let mut left_in_run = random.below(10) + 5;
    for place in 0..count {
        if left_in_run == 0 {
            text.push_str(ENDS[random.below(ENDS.len() as u32) as usize]);
            left_in_run = random.below(10) + 5;
        }
        if place > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[random.below(WORDS.len() as u32) as usize]);
        left_in_run -= 1;
    }
    text
}

/// `count` ids from the middle of the vocabulary, away from the special tokens at its ends.
fn ids(vocab: u32, count: usize, seed: u64, number: u64) -> Vec<u32> {
    let mut random = Random::new(seed, number);
    let (first, end) = (vocab / 64, vocab - vocab / 16);
    (0..count).map(|_| first + random.below(end - first)).collect()
}

/// SplitMix64: prompts must not change with a library's version.
struct Random(u64);

impl Random {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    fn new(seed: u64, number: u64) -> Self {
        let mut of_seed = Self(seed);
        Self(of_seed.next() ^ number.wrapping_mul(Self::STEP))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: u32) -> u32 {
        // The high half times the bound: below the bound, so it fits.
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_prompt_is_the_same_for_its_seed_and_number_and_like_no_other() {
        assert_eq!(words(128, 1, 0), words(128, 1, 0));
        let all: HashSet<_> = (0..4)
            .flat_map(|seed| (0..256).map(move |number| words(16, seed, number)))
            .chain([words(16, 0, PREFIX)])
            .collect();
        assert_eq!(all.len(), 4 * 256 + 1);
        assert_eq!(words(7, 1, 0).split(' ').count(), 7);
        assert!(words(128, 1, 0).starts_with(&words(32, 1, 0)));
    }

    #[test]
    fn the_words_of_a_seed_never_change() {
        let expected = "point river write window write bread strange quickly. second problem place water market question year \
                        signal yellow network Python? window table tower light market";
        assert_eq!(words(24, 1, 0), expected);
    }

    #[test]
    fn ids_stay_away_from_both_ends_of_the_vocabulary() {
        let drawn = ids(49152, 4096, 3, 9);
        assert_eq!(drawn.len(), 4096);
        assert!(drawn.iter().all(|id| (768..46080).contains(id)));
        assert!(ids(2, 8, 1, 1).iter().all(|&id| id < 2));
        assert_ne!(drawn, ids(49152, 4096, 4, 9));
    }
}
