//! SentencePiece BPE (`tokenizer.ggml.model` = `llama`): the file keeps a score for each token instead of merge rules.
//! The rules are found again the way the `transformers` converter does it: every way to cut a token into two others, in
//! the order of the token's score.

use serde_json::{Value, json};

use super::header::Header;
use super::tokenizer::{Pipeline, TokenKind, Vocabulary, array, bpe_model, same_length};
use crate::weights::error::WeightsError;

/// SentencePiece writes a space as this character.
const SPACE: &str = "▁";

pub(super) fn pipeline(header: &Header<'_>, vocabulary: &Vocabulary<'_>) -> Result<Pipeline, WeightsError> {
    let scores = scores(header, vocabulary.texts.len())?;
    let merges = merges(vocabulary, &scores);
    let prefix = match header.boolean("tokenizer.ggml.add_space_prefix")? {
        Some(false) => SpacePrefix::Absent,
        Some(true) | None => SpacePrefix::Added,
    };
    let settings = json!({
        "unk_token": vocabulary.first_of(TokenKind::Unknown),
        "byte_fallback": vocabulary.first_of(TokenKind::Byte).is_some(),
        "fuse_unk": true,
    });
    Ok(Pipeline {
        normalizer: prefix.normalizer(),
        pre_tokenizer: Value::Null,
        decoder: prefix.decoder(),
        model: bpe_model(vocabulary, &merges, settings),
        adds_bos: true,
    })
}

impl<'a> Vocabulary<'a> {
    fn first_of(&self, kind: TokenKind) -> Option<&'a str> {
        self.kinds.iter().position(|&found| found == kind).map(|id| self.texts[id])
    }
}

/// Whether text is taken to begin with a space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SpacePrefix {
    Added,
    Absent,
}

impl SpacePrefix {
    fn normalizer(self) -> Value {
        let mut stages = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE })];
        if self == Self::Added {
            stages.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        }
        json!({ "type": "Sequence", "normalizers": stages })
    }

    fn decoder(self) -> Value {
        let mut stages = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self == Self::Added {
            stages.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({ "type": "Sequence", "decoders": stages })
    }
}

/// The score of each token; 0 is made positive so that all zeros compare equal.
fn scores(header: &Header<'_>, tokens: usize) -> Result<Vec<f64>, WeightsError> {
    let list = "tokenizer.ggml.scores";
    let scores = header.required(list, "an array of numbers", array)?;
    same_length(list, scores.len(), tokens)?;
    let wrong = || WeightsError::Setting { key: list.to_owned(), expected: "an array of numbers" };
    let score = |value: super::value::Value<'_>| value.float().filter(|score| !score.is_nan()).map(|score| score + 0.0);
    scores.values().map(|value| value.ok().and_then(score).ok_or_else(wrong)).collect()
}

/// Merge rules, best first.
fn merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let normal = |text: &str| {
        let id = *vocabulary.ids.get(text)? as usize;
        (vocabulary.kinds[id] == TokenKind::Normal).then_some(id)
    };
    let mut rules = Vec::new();
    for (id, &text) in vocabulary.texts.iter().enumerate() {
        if vocabulary.kinds[id] != TokenKind::Normal {
            continue;
        }
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let halves =
            cuts.filter_map(|(left, right)| Some((scores[normal(left)?], scores[normal(right)?], left, right)));
        let mut halves: Vec<_> = halves.collect();
        halves.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
        rules.extend(halves.into_iter().map(|(_, _, left, right)| (scores[id], left, right)));
    }
    rules.sort_by(|a, b| b.0.total_cmp(&a.0));
    rules.into_iter().map(|(_, left, right)| (left, right)).collect()
}
