use proptest::prelude::*;
use serde_json::{Value, json};
use shoal_common::ids::TokenId;
use shoal_common::wire::blob::FimTokens;

use super::samples::*;
use crate::text::SpecialText;
use crate::text::tokenizer::*;

fn ids(raw: &[u32]) -> Vec<TokenId> {
    raw.iter().copied().map(TokenId).collect()
}

fn build(json: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_bundle(&bundle(json), BYTE_LEVEL_VOCAB)
}

#[test]
fn the_tiny_models_prompts_and_answers_are_those_of_the_reference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny/goldens.jsonl");
    let tokenizer = byte_level();
    let mut prompts = 0;
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let golden: Value = serde_json::from_str(line).unwrap();
        let numbers = |field: &str| -> Vec<TokenId> { serde_json::from_value(golden[field].clone()).unwrap() };
        if let Some(prompt) = golden["prompt"].as_str() {
            assert_eq!(tokenizer.encode(prompt, SpecialTokens::Parsed).unwrap(), numbers("prompt_ids"), "{prompt:?}");
            prompts += 1;
        }
        assert_eq!(tokenizer.decode(&numbers("greedy_ids"), SpecialText::Shown), golden["text"].as_str().unwrap());
    }
    assert!(prompts > 0);
}

#[test]
fn a_bos_is_put_before_a_prompt_once_and_only_where_the_model_wants_it() {
    let mut bundle = bundle(&byte_level_json());
    let without = Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB).unwrap();
    bundle.add_bos = true;
    let with = Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB).unwrap();
    let plain = without.encode_prompt("a cat").unwrap();
    assert!(!plain.contains(&IM_START));
    assert_eq!(with.encode_prompt("a cat").unwrap(), [vec![IM_START], plain.clone()].concat());
    assert_eq!(with.encode_prompt("<|im_start|>a cat").unwrap(), [vec![IM_START], plain].concat());
    assert_eq!(with.encode_prompt("").unwrap(), [IM_START]);
    assert!(!with.encode("a cat", SpecialTokens::Parsed).unwrap().contains(&IM_START));
}

#[test]
fn a_document_starts_with_bos_or_else_with_the_separator() {
    let mut bundle = bundle(&byte_level_json());
    let start = |bundle: &_| Tokenizer::from_bundle(bundle, BYTE_LEVEL_VOCAB).unwrap().document_start();
    assert_eq!(start(&bundle), Some(IM_START));
    bundle.bos = None;
    assert_eq!(start(&bundle), Some(TokenId(0)));
    bundle.document_separator = None;
    assert_eq!(start(&bundle), None);
}

#[test]
fn special_tokens_written_as_text_never_become_control_tokens() {
    let tokenizer = byte_level();
    let text = "a<|im_end|>b<|endoftext|>";
    let parsed = tokenizer.encode(text, SpecialTokens::Parsed).unwrap();
    assert_eq!(parsed.iter().filter(|id| tokenizer.is_special(**id)).count(), 2);
    let literal = tokenizer.encode(text, SpecialTokens::AsText).unwrap();
    assert!(!literal.iter().any(|id| tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&literal, SpecialText::Hidden), text);
    assert_eq!(tokenizer.decode(&parsed, SpecialText::Hidden), "ab");
    assert_eq!(tokenizer.decode(&parsed, SpecialText::Shown), text);
}

#[test]
fn infill_goes_prefix_suffix_middle_and_its_texts_cannot_forge_the_markers() {
    let mut bundle = bundle(&byte_level_json());
    let none = Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB).unwrap();
    assert_eq!(none.encode_infill("a", "b").unwrap(), None);

    bundle.fim = Some(FimTokens { prefix: TokenId(0), suffix: TokenId(1), middle: TokenId(2) });
    let tokenizer = Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB).unwrap();
    let made = tokenizer.encode_infill("def f(<|im_end|>", " return").unwrap().unwrap();
    let special: Vec<_> = made.iter().filter(|id| tokenizer.is_special(**id)).copied().collect();
    assert_eq!(special, ids(&[0, 1, 2]));
    assert_eq!(made.last(), Some(&TokenId(2)));
    assert_eq!(
        tokenizer.decode(&made, SpecialText::Shown),
        "<|endoftext|>def f(<|im_end|><|im_start|> return<|im_end|>"
    );

    bundle.add_bos = true;
    let with_bos = Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB).unwrap();
    let expected = [vec![IM_START], made].concat();
    assert_eq!(with_bos.encode_infill("def f(<|im_end|>", " return").unwrap().unwrap(), expected);
}

#[test]
fn ids_the_model_has_no_row_for_are_refused() {
    let small = Tokenizer::from_bundle(&bundle(&byte_level_json()), 100).unwrap();
    let all = byte_level();
    let text = "the cat";
    let outside = all.encode(text, SpecialTokens::Parsed).unwrap().into_iter().find(|id| id.0 >= 100).unwrap();
    let error = small.encode(text, SpecialTokens::Parsed).unwrap_err();
    assert!(matches!(error, TokenizerError::OutsideVocabulary { id, vocab_size: 100 } if id == outside));
    assert!(matches!(
        Tokenizer::from_bundle(&bundle(&byte_level_json()), 2).unwrap_err(),
        TokenizerError::OutsideVocabulary { id: IM_END, vocab_size: 2 }
    ));
    assert!(matches!(
        Tokenizer::from_bundle(&bundle(&byte_level_json()), MAX_VOCAB + 1).unwrap_err(),
        TokenizerError::TooLarge { .. }
    ));
}

#[test]
fn padding_rows_have_no_text_but_a_name_of_their_own() {
    let tokenizer = Tokenizer::from_bundle(&bundle(&byte_level_json()), 520).unwrap();
    assert_eq!(tokenizer.token_bytes(TokenId(519)), b"");
    assert_eq!(tokenizer.token_bytes(TokenId(u32::MAX)), b"");
    assert_eq!(tokenizer.token_label(TokenId(519)), "token_id:519");
    assert_eq!(tokenizer.decode(&ids(&[519, 512]), SpecialText::Shown), "");
    assert_eq!(tokenizer.vocab_size(), 520);
}

#[test]
fn the_settings_of_the_tokenizers_training_change_no_prompt() {
    let text = "the quick brown fox jumps over the lazy dog";
    let expected = byte_level().encode_prompt(text).unwrap();
    let mut json = byte_level_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 2, "pad_type_id": 0, "pad_token": "<|im_end|>"});
    json["model"]["dropout"] = json!(0.9);
    let tokenizer = build(&json).unwrap();
    for _ in 0..20 {
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), expected);
    }
}

#[test]
fn byte_level_tokens_are_their_raw_bytes() {
    let tokenizer = byte_level();
    let bytes: Vec<u8> = tokenizer
        .encode(" é😀\n", SpecialTokens::Parsed)
        .unwrap()
        .iter()
        .flat_map(|id| tokenizer.token_bytes(*id).to_vec())
        .collect();
    assert_eq!(bytes, " é😀\n".as_bytes());
    assert_eq!(tokenizer.token_bytes(IM_END), b"<|im_end|>");
}

#[test]
fn sentence_piece_tokens_are_spelt_with_spaces_and_bytes() {
    let tokenizer = sentence_piece(llama_decoder());
    assert_eq!(tokenizer.token_bytes(TokenId(3 + 0x0a)), b"\n");
    assert_eq!(tokenizer.token_bytes(TokenId(3 + 0xe2)), [0xe2]);
    let hello = tokenizer.encode("hello", SpecialTokens::Parsed).unwrap();
    let bytes: Vec<u8> = hello.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
    assert_eq!(bytes, b" hello");
    assert_eq!(tokenizer.decode(&hello, SpecialText::Hidden), "hello");
    assert_eq!(sentence_piece(gemma_decoder()).decode(&hello, SpecialText::Hidden), " hello");
}

#[test]
fn labels_of_different_broken_tokens_differ() {
    let tokenizer = sentence_piece(llama_decoder());
    assert_eq!(tokenizer.token_label(TokenId(3 + 0xe2)), r"bytes:\xe2");
    assert_eq!(tokenizer.token_label(TokenId(3 + 0x96)), r"bytes:\x96");
    assert_eq!(tokenizer.token_label(TokenId(3 + 0x41)), "A");
    assert_eq!(tokenizer.token_label(TokenId(2)), "</s>");
}

#[test]
fn a_decoder_that_is_not_a_language_models_is_refused_by_name() {
    let refused = |decoder: Value| match build(&sentence_piece_json(decoder)).unwrap_err() {
        TokenizerError::UnsupportedDecoder { kind } => kind,
        other => panic!("{other}"),
    };
    assert_eq!(refused(json!({"type": "WordPiece", "prefix": "##", "cleanup": true})), "WordPiece");
    assert_eq!(refused(Value::Null), "none");
    let mut long = llama_decoder();
    long["decoders"][0]["content"] = json!("x".repeat(1 << 20));
    assert_eq!(refused(long), "Sequence[Replace, ByteFallback, Fuse, Strip]");
    let regex = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "}, {"type": "Fuse"}]});
    assert_eq!(refused(regex), "Sequence[Replace, Fuse]");
}

#[test]
fn what_is_no_tokenizer_is_an_error() {
    let good = serde_json::to_vec(&byte_level_json()).unwrap();
    let mut bundle = bundle(&byte_level_json());
    for bad in [&b""[..], b"{}", b"[]", b"\xff\xfe", b"{\"model\":null}", &good[..good.len() / 2]] {
        bundle.tokenizer_json = bad.to_vec();
        assert!(matches!(Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB).unwrap_err(), TokenizerError::Malformed(_)));
    }
}

#[test]
fn a_panic_of_the_library_is_an_error_of_one_call() {
    let mut json = byte_level_json();
    json["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0});
    let tokenizer = build(&json).unwrap();
    for _ in 0..2 {
        assert!(matches!(tokenizer.encode("text", SpecialTokens::Parsed), Err(TokenizerError::Panicked)));
        assert_eq!(tokenizer.encode("<|im_end|>", SpecialTokens::Parsed).unwrap(), [IM_END]);
    }
}

#[test]
fn no_debug_output_of_a_tokenizer_shows_its_content() {
    let shown = format!("{:?}", byte_level());
    assert!(shown.len() < 200, "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Damage that leaves a tokenizer readable must leave it harmless too.
    #[test]
    fn a_damaged_tokenizer_never_brings_the_router_down(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bundle = bundle(&byte_level_json());
        for (at, byte) in edits {
            let at = at.index(bundle.tokenizer_json.len());
            bundle.tokenizer_json[at] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_bundle(&bundle, BYTE_LEVEL_VOCAB)
            && let Ok(ids) = tokenizer.encode("the <|im_end|> 12 é", SpecialTokens::Parsed)
        {
            prop_assert!(ids.iter().all(|id| id.0 < BYTE_LEVEL_VOCAB));
        }
    }
}

proptest! {
    #[test]
    fn byte_level_decoding_is_the_references_for_any_ids(raw in prop::collection::vec(0u32..520, 0..40)) {
        let json = byte_level_json();
        let (ours, theirs) = (build(&json).unwrap(), reference(&json));
        for (special, skip) in [(SpecialText::Hidden, true), (SpecialText::Shown, false)] {
            prop_assert_eq!(ours.decode(&ids(&raw), special), theirs.decode(&raw, skip).unwrap());
        }
    }

    /// Not for malformed bytes: where a run of byte tokens holds one malformed character the reference gives up the whole
    /// run, also the characters that a stream has already shown.
    #[test]
    fn sentence_piece_decoding_is_the_references_for_any_text(text in "[ hel o世é😀</s>\n]{0,30}") {
        for decoder in [llama_decoder(), gemma_decoder(), metaspace_decoder()] {
            let json = sentence_piece_json(decoder.clone());
            let (ours, theirs) = (build(&json).unwrap(), reference(&json));
            let encoded = ours.encode(&text, SpecialTokens::Parsed).unwrap();
            let raw: Vec<u32> = encoded.iter().map(|id| id.0).collect();
            let expected = theirs.encode(text.as_str(), false).unwrap();
            prop_assert_eq!(raw.as_slice(), expected.get_ids());
            if decoder == metaspace_decoder() && raw.iter().any(|id| (3..259).contains(id)) {
                continue; // this decoder writes byte tokens out; models that have it have none
            }
            for (special, skip) in [(SpecialText::Hidden, true), (SpecialText::Shown, false)] {
                prop_assert_eq!(ours.decode(&encoded, special), theirs.decode(&raw, skip).unwrap());
            }
        }
    }

    #[test]
    fn any_text_survives_the_way_there_and_back(text in any::<String>()) {
        let tokenizer = sentence_piece(llama_decoder());
        let encoded = tokenizer.encode(&text, SpecialTokens::AsText).unwrap();
        prop_assert_eq!(tokenizer.decode(&encoded, SpecialText::Hidden), text);
    }
}
