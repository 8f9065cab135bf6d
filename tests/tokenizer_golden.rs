//! Tokenizer, detokeniser and stop strings on the real SmolLM2 vocabulary, string by string against what the reference
//! implementations made of it. Needs the model file of `scripts/fetch-model`, named by `SHOAL_TEST_MODEL`.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use shoal_common::ids::TokenId;
use shoal_router::request::ClientText;
use shoal_router::text::{Detokenizer, SpecialText, SpecialTokens, StopMatcher, Tokenizer};
use shoal_worker::weights::ModelFile;

/// Rows of SmolLM2-135M.
const VOCAB: u32 = 49_152;

#[expect(clippy::disallowed_methods, reason = "a test's fixture, not a setting")]
fn tokenizer() -> Arc<Tokenizer> {
    let path = std::env::var_os("SHOAL_TEST_MODEL")
        .expect("set SHOAL_TEST_MODEL to the model file, which is the last line that scripts/fetch-model prints");
    let bundle = ModelFile::open(Path::new(&path)).expect("the model file can be read").bundle;
    Arc::new(Tokenizer::from_bundle(&bundle, VOCAB).expect("the model file has a tokenizer"))
}

fn lines<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/public").join(name);
    let file = std::fs::read_to_string(path).expect("the fixture is part of the repository");
    file.lines().map(|line| serde_json::from_str(line).expect("the fixture has this shape")).collect()
}

#[derive(Deserialize)]
#[serde(tag = "case", rename_all = "snake_case")]
enum EncodeCase {
    Encode {
        text: String,
        ids: Vec<TokenId>,
        ids_specials_as_text: Vec<TokenId>,
        decoded: String,
        decoded_skip_special: String,
    },
    JsonSurrogate {
        json_literal: String,
        ids: Option<Vec<TokenId>>,
    },
}

#[test]
fn every_string_becomes_the_references_ids_and_comes_back() {
    let tokenizer = tokenizer();
    let cases = lines("tokenizer.jsonl");
    assert_eq!(cases.len(), 76);
    for case in cases {
        match case {
            EncodeCase::Encode { text, ids, ids_specials_as_text, decoded, decoded_skip_special } => {
                assert_eq!(tokenizer.encode(&text, SpecialTokens::Parsed).unwrap(), ids, "{text:?}");
                assert_eq!(tokenizer.encode_prompt(&text).unwrap(), ids, "{text:?}: this model adds no BOS");
                assert_eq!(tokenizer.encode(&text, SpecialTokens::AsText).unwrap(), ids_specials_as_text, "{text:?}");
                assert_eq!(tokenizer.decode(&ids, SpecialText::Shown), decoded);
                assert_eq!(tokenizer.decode(&ids, SpecialText::Hidden), decoded_skip_special);
            }
            EncodeCase::JsonSurrogate { json_literal, ids } => {
                let text: Result<String, _> = serde_json::from_str(&json_literal);
                assert_eq!(text.is_ok(), ids.is_some(), "{json_literal}");
                if let (Ok(text), Some(ids)) = (text, ids) {
                    assert_eq!(tokenizer.encode(&text, SpecialTokens::Parsed).unwrap(), ids, "{json_literal}");
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct DetokCase {
    kind: String,
    ids: Vec<TokenId>,
    skip_special_tokens: bool,
    token_bytes_hex: Vec<String>,
    expected_deltas: Vec<String>,
    expected_flush: String,
    final_text: String,
    replacement_allowed: bool,
}

#[test]
fn every_token_shows_the_longest_text_that_is_whole() {
    let tokenizer = tokenizer();
    for case in lines::<DetokCase>("detok.jsonl") {
        let special = if case.skip_special_tokens { SpecialText::Hidden } else { SpecialText::Shown };
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), special);
        let deltas: Vec<_> = case.ids.iter().map(|id| detokenizer.push(*id)).collect();
        assert_eq!(deltas, case.expected_deltas, "{}", case.kind);
        let flush = detokenizer.finish();
        assert_eq!(flush, case.expected_flush, "{}", case.kind);
        let text = deltas.concat() + &flush;
        assert_eq!(text, case.final_text, "{}", case.kind);
        assert_eq!(text, tokenizer.decode(&case.ids, special), "{}", case.kind);
        assert!(case.replacement_allowed || !text.contains('\u{fffd}'), "{}", case.kind);
        for (id, expected) in case.ids.iter().zip(&case.token_bytes_hex) {
            let hidden = case.skip_special_tokens && tokenizer.is_special(*id);
            let bytes = if hidden { &[] } else { tokenizer.token_bytes(*id) };
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(&hex, expected, "{}: bytes of token {id}", case.kind);
        }
    }
}

#[derive(Deserialize)]
struct StopCase {
    kind: String,
    stop: Vec<String>,
    expected_text: String,
    matched_stop: Option<String>,
    n_generated: usize,
    tokens: Vec<TokenId>,
}

#[test]
fn every_answer_ends_where_the_reference_ends_it() {
    let tokenizer = tokenizer();
    for case in lines::<StopCase>("stops.jsonl") {
        let stops: Vec<_> = case.stop.iter().cloned().map(ClientText).collect();
        let mut detokenizer = Detokenizer::continuing(Arc::clone(&tokenizer), SpecialText::Hidden);
        let mut matcher = StopMatcher::new(&stops);
        let (mut text, mut matched, mut used) = (String::new(), None, 0);
        for id in &case.tokens {
            used += 1;
            let outcome = matcher.push(&detokenizer.push(*id));
            text.push_str(&outcome.released);
            matched = outcome.matched;
            if matched.is_some() {
                break;
            }
        }
        if matched.is_none() {
            let last = matcher.push(&detokenizer.finish());
            text.push_str(&last.released);
            text.push_str(&matcher.finish());
        }
        assert_eq!(text, case.expected_text, "{}", case.kind);
        assert_eq!(matched.map(|index| &case.stop[index]), case.matched_stop.as_ref(), "{}", case.kind);
        assert_eq!(used, case.n_generated, "{}", case.kind);
    }
}

#[derive(Deserialize)]
struct ChatCase {
    rendered: String,
    ids: Vec<TokenId>,
}

#[test]
fn every_rendered_conversation_becomes_the_references_ids() {
    let tokenizer = tokenizer();
    for case in lines::<ChatCase>("chat.jsonl") {
        assert_eq!(tokenizer.encode(&case.rendered, SpecialTokens::Parsed).unwrap(), case.ids);
    }
}
