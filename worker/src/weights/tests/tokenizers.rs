//! Tokenizer bundles, loaded by the library that routers use and compared with the reference's ids text by text.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shoal_common::ids::TokenId;
use shoal_common::wire::blob::TokenizerBundle;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

use super::builder::{Gguf, boolean, float32s, string, strings, uint32, uint32s};
use super::{copy_of_tiny, golden, open, open_gguf};
use crate::weights::{ModelFile, TokenizerFault, WeightsError};

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: u32 = 1;
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const BYTE: u32 = 6;

/// A byte-level tokenizer of a few letters for models from the builder.
pub(super) fn four_letter_bpe() -> Vec<(&'static str, Vec<u8>)> {
    let tokens = ["<e>", "<u>", "a", "b", "c", "d", "Ġ", "ab", "cd", "abcd"];
    let mut kinds = [NORMAL; 10];
    (kinds[0], kinds[1]) = (CONTROL, USER_DEFINED);
    vec![
        ("tokenizer.ggml.model", string("gpt2")),
        ("tokenizer.ggml.pre", string("gpt-2")),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.token_type", uint32s(&kinds)),
        ("tokenizer.ggml.merges", strings(&["a b", "c d", "ab cd"])),
        ("tokenizer.ggml.eos_token_id", uint32(0)),
    ]
}

/// A SentencePiece tokenizer of a few letters, with byte tokens for the two bytes of `é`.
fn four_letter_spm() -> Vec<(&'static str, Vec<u8>)> {
    let tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "c", "ab", "bc", "▁ab", "<|x|>"];
    let scores = [0., 0., 0., 0., 0., -9., -8., -7., -6., -2., -1., -3., 0.];
    let kinds = [UNKNOWN, CONTROL, CONTROL, BYTE, BYTE, 1, 1, 1, 1, 1, 1, 1, USER_DEFINED];
    vec![
        ("tokenizer.ggml.model", string("llama")),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.scores", float32s(&scores)),
        ("tokenizer.ggml.token_type", uint32s(&kinds)),
        ("tokenizer.ggml.bos_token_id", uint32(1)),
        ("tokenizer.ggml.eos_token_id", uint32(2)),
    ]
}

fn load(bundle: &TokenizerBundle) -> Tokenizer {
    Tokenizer::from_bytes(&bundle.tokenizer_json).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

fn lines(relative: &str) -> Vec<Value> {
    let content = std::fs::read_to_string(golden(relative)).unwrap();
    content.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn field<T: DeserializeOwned>(line: &Value, name: &str) -> T {
    serde_json::from_value(line[name].clone()).unwrap()
}

/// The default model, 98 MB, which is not kept in the repository.
#[expect(clippy::disallowed_methods, reason = "which model the tests use is no setting of the server")]
fn real_model() -> ModelFile {
    let path = std::env::var_os("SHOAL_TEST_MODEL").map(PathBuf::from);
    let path = path.expect("this test needs the default model: run scripts/test, or set SHOAL_TEST_MODEL to its path");
    ModelFile::open(&path).unwrap()
}

#[test]
fn the_default_models_gguf_tokenises_as_the_reference_does() {
    let bundle = real_model().bundle;
    let mut tokenizer = load(&bundle);
    let cases: Vec<_> = lines("public/tokenizer.jsonl").into_iter().filter(|line| line["case"] == "encode").collect();
    assert!(cases.len() > 60, "only {} texts to compare", cases.len());
    for (specials_as_text, expected) in [(false, "ids"), (true, "ids_specials_as_text")] {
        tokenizer.set_encode_special_tokens(specials_as_text);
        for line in &cases {
            let text: String = field(line, "text");
            assert_eq!(ids(&tokenizer, &text), field::<Vec<u32>>(line, expected), "{expected} of {text:?}");
        }
    }
    for line in &cases {
        let decoded = tokenizer.decode(&field::<Vec<u32>>(line, "ids"), false).unwrap();
        assert_eq!(decoded, field::<String>(line, "decoded"));
    }
}

#[test]
fn rendered_chats_of_the_default_model_tokenise_as_the_reference_does() {
    let tokenizer = load(&real_model().bundle);
    for line in lines("public/chat.jsonl") {
        assert_eq!(ids(&tokenizer, &field::<String>(&line, "rendered")), field::<Vec<u32>>(&line, "ids"));
    }
}

#[test]
fn the_default_models_special_tokens_come_from_its_gguf() {
    let model = real_model();
    assert_eq!(model.quantisation, "Q4_1");
    assert_eq!(model.parameters(), 134_515_008);
    assert_eq!(model.bundle.bos, Some(TokenId(1)));
    assert!(!model.bundle.add_bos);
    assert_eq!(model.bundle.eos, [TokenId(2)]);
    assert_eq!(model.bundle.document_separator, Some(TokenId(0)));
    assert_eq!(model.bundle.fim, None);
    assert!(model.bundle.chat_template.unwrap().contains("<|im_start|>assistant"));
}

#[test]
fn both_formats_of_the_tiny_model_tokenise_alike() {
    let (gguf, directory) = (open("tiny/gguf/tiny-q4_1.gguf").bundle, open("tiny/base").bundle);
    let (from_gguf, from_directory) = (load(&gguf), load(&directory));
    let texts = lines("public/tokenizer.jsonl").into_iter().filter(|line| line["text"].is_string());
    for line in texts {
        let text: String = field(&line, "text");
        let expected = ids(&from_directory, &text);
        assert_eq!(ids(&from_gguf, &text), expected, "{text:?}");
        assert_eq!(from_gguf.decode(&expected, false).unwrap(), from_directory.decode(&expected, false).unwrap());
    }
    for line in lines("tiny/goldens.jsonl").into_iter().filter(|line| line["prompt"].is_string()) {
        assert_eq!(ids(&from_gguf, &field::<String>(&line, "prompt")), field::<Vec<u32>>(&line, "prompt_ids"));
    }
    let rest = |bundle: TokenizerBundle| TokenizerBundle { tokenizer_json: Vec::new(), ..bundle };
    assert_eq!(rest(gguf), rest(directory));
}

#[test]
fn every_kind_of_pre_tokenizer_loads_and_cuts_without_losing_text() {
    let text = "I'LL've 12345 ÄäßЖ 漢字かな가 \t\r\n\n  {x+=1} — “q” ١٢٣ e\u{301} 🦀";
    let names =
        ["gpt-2", "smollm", "default", "falcon", "llama-bpe", "smaug-bpe", "qwen2", "stablelm2", "tekken", "gpt-4o"];
    for name in names.into_iter().chain(["deepseek-llm", "deepseek-coder"]) {
        let pieces = pieces(name, text);
        assert_eq!(pieces.concat(), text, "{name}");
        assert!(pieces.len() > 10, "{name} cuts too little: {pieces:?}");
    }
}

/// Pieces that a rule cuts `text` into.
fn pieces(pre: &str, text: &str) -> Vec<String> {
    let mut gguf = Gguf::model(four_letter_bpe());
    gguf.set("tokenizer.ggml.pre", string(pre));
    let tokenizer = load(&open_gguf(&gguf.build()).unwrap().bundle);
    let mut pieces = PreTokenizedString::from(text);
    tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut pieces).unwrap();
    let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits.iter().map(|(_, (begin, end), _)| text[*begin..*end].to_owned()).collect()
}

#[test]
fn pre_tokenizers_cut_digits_each_in_its_own_way() {
    assert_eq!(pieces("gpt-2", "a 12345"), ["a", " 12345"]);
    assert_eq!(pieces("smollm", "a  12"), ["a", "  ", "1", "2"]);
    assert_eq!(pieces("llama-bpe", "a 12345"), ["a", " ", "123", "45"]);
    assert_eq!(pieces("qwen2", "a 123"), ["a", " ", "1", "2", "3"]);
    assert_eq!(pieces("tekken", "aB12"), ["a", "B", "1", "2"]);
    assert_eq!(pieces("default", "a+12345"), ["a", "+", "123", "45"]);
    assert_eq!(pieces("deepseek-coder", "a b\n12"), ["a", " b", "\n", "1", "2"]);
}

#[test]
fn the_pre_tokenizers_of_the_families_cut_like_their_own_tokenizers() {
    let cases = lines("families/pieces.jsonl");
    assert_eq!(cases.len(), 30);
    for case in cases {
        let (pre, text): (String, String) = (field(&case, "pre"), field(&case, "text"));
        assert_eq!(pieces(&pre, &text), field::<Vec<String>>(&case, "pieces"), "{pre}: {text:?}");
    }
}

#[test]
fn a_pre_tokenizer_that_is_unknown_or_absent_is_refused() {
    let mut gguf = Gguf::model(four_letter_bpe());
    gguf.set("tokenizer.ggml.pre", string("no-such-rule"));
    let refused = open_gguf(&gguf.build()).unwrap_err();
    let text = "the model's tokenizer cannot be used: the pre-tokenizer \"no-such-rule\" is not supported";
    assert_eq!(refused.to_string(), text);
    gguf.metadata.retain(|(key, _)| key != "tokenizer.ggml.pre");
    let refused = open_gguf(&gguf.build()).unwrap_err();
    assert!(matches!(refused, WeightsError::Tokenizer(TokenizerFault::NoPreTokenizer)), "{refused}");
}

#[test]
fn control_and_user_defined_tokens_are_found_in_text_and_only_control_ones_are_special() {
    let bundle = open_gguf(&Gguf::model(four_letter_bpe()).build()).unwrap().bundle;
    let mut tokenizer = load(&bundle);
    assert_eq!(ids(&tokenizer, "abcd<e>ab<u>c"), [9, 0, 7, 1, 4]);
    assert_eq!(tokenizer.decode(&[9, 0, 1], true).unwrap(), "abcd<u>");
    tokenizer.set_encode_special_tokens(true);
    assert_eq!(ids(&tokenizer, "ab<u>"), [7, 1], "a user-defined token is text like any other");
}

#[test]
fn end_and_document_tokens_follow_what_the_file_says() {
    let plain = open_gguf(&Gguf::model(four_letter_bpe()).build()).unwrap().bundle;
    assert_eq!((plain.bos, plain.add_bos, plain.document_separator), (None, false, Some(TokenId(0))));
    let mut gguf = Gguf::model(four_letter_bpe());
    gguf.set("tokenizer.ggml.eot_token_id", uint32(1));
    gguf.set("tokenizer.ggml.bos_token_id", uint32(9));
    gguf.set("tokenizer.ggml.add_bos_token", boolean(1));
    gguf.set("tokenizer.ggml.fim_pre_token_id", uint32(2));
    gguf.set("tokenizer.ggml.fim_suf_token_id", uint32(3));
    gguf.set("tokenizer.ggml.fim_mid_token_id", uint32(4));
    let full = open_gguf(&gguf.build()).unwrap().bundle;
    assert_eq!((full.bos, full.add_bos, full.document_separator), (Some(TokenId(9)), true, None));
    assert_eq!(full.eos, [TokenId(0), TokenId(1)]);
    let fim = full.fim.unwrap();
    assert_eq!([fim.prefix, fim.suffix, fim.middle], [TokenId(2), TokenId(3), TokenId(4)]);
    gguf.set("tokenizer.ggml.eos_token_id", uint32(10));
    assert!(open_gguf(&gguf.build()).is_err(), "an end token outside the vocabulary was taken");
}

#[test]
fn answers_of_llama_3_and_qwen_end_at_every_end_token_of_theirs() {
    let ends = |pre: &str, kind: u32| {
        let mut gguf = Gguf::model(four_letter_bpe());
        let tokens = ["<|eot_id|>", "<|endoftext|>", "<|eom_id|>", "b", "c", "d", "Ġ", "ab", "cd", "abcd"];
        let mut kinds = [NORMAL; 10];
        (kinds[0], kinds[1], kinds[2]) = (CONTROL, kind, CONTROL);
        gguf.set("tokenizer.ggml.tokens", strings(&tokens));
        gguf.set("tokenizer.ggml.token_type", uint32s(&kinds));
        gguf.set("tokenizer.ggml.merges", strings(&["c d"]));
        gguf.set("tokenizer.ggml.pre", string(pre));
        open_gguf(&gguf.build()).unwrap().bundle.eos
    };
    assert_eq!(ends("llama-bpe", CONTROL), [TokenId(0), TokenId(1), TokenId(2)]);
    assert_eq!(ends("qwen2", CONTROL), [TokenId(0), TokenId(1), TokenId(2)]);
    assert_eq!(ends("qwen2", NORMAL), [TokenId(0), TokenId(2)], "a text that looks like one ends nothing");
    assert_eq!(ends("gpt-2", CONTROL), [TokenId(0)], "others name all of theirs");
    let mut gguf = Gguf::model(four_letter_bpe());
    gguf.set("tokenizer.ggml.eom_token_id", uint32(1));
    assert_eq!(open_gguf(&gguf.build()).unwrap().bundle.eos, [TokenId(0), TokenId(1)]);
}

#[test]
fn tokenizer_lists_that_do_not_fit_together_are_refused() {
    let many: Vec<String> = (0..33).map(|id| format!("t{id}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bad = [
        ("tokenizer.ggml.tokens", strings(&many)),
        ("tokenizer.ggml.tokens", strings(&["a", "a"])),
        ("tokenizer.ggml.tokens", uint32s(&[1])),
        ("tokenizer.ggml.tokens", strings(&[&"x".repeat(1025)])),
        ("tokenizer.ggml.token_type", uint32s(&[1; 9])),
        ("tokenizer.ggml.token_type", uint32s(&[7; 10])),
        ("tokenizer.ggml.merges", strings(&["ab"])),
        ("tokenizer.ggml.merges", strings(&["a c"])),
        ("tokenizer.ggml.merges", strings(&[""])),
        ("tokenizer.ggml.model", string("bert")),
        ("tokenizer.chat_template", super::builder::array(super::builder::STRING, 0, &[])),
    ];
    for (key, value) in bad {
        let mut gguf = Gguf::model(four_letter_bpe());
        gguf.set(key, value);
        assert!(open_gguf(&gguf.build()).is_err(), "a bad {key} was taken");
    }
}

#[test]
fn sentencepiece_scores_become_merges_with_byte_fallback() {
    let bundle = open_gguf(&Gguf::model(four_letter_spm()).build()).unwrap().bundle;
    let tokenizer = load(&bundle);
    // `bc` has a better score than `ab`: it is joined first though it stands further right.
    assert_eq!(ids(&tokenizer, "abc"), [5, 6, 10]);
    assert_eq!(ids(&tokenizer, "ab ab"), [11, 11]);
    assert_eq!(ids(&tokenizer, "aé"), [5, 6, 3, 4]);
    assert_eq!(ids(&tokenizer, "?"), [5, 0]);
    assert_eq!(ids(&tokenizer, "b<|x|>"), [5, 7, 12]);
    assert_eq!(tokenizer.decode(&[11, 11, 3, 4], false).unwrap(), "ab abé");
    assert_eq!((bundle.bos, bundle.add_bos), (Some(TokenId(1)), true));

    let mut gguf = Gguf::model(four_letter_spm());
    gguf.set("tokenizer.ggml.add_space_prefix", boolean(0));
    gguf.set("tokenizer.ggml.add_bos_token", boolean(0));
    let bundle = open_gguf(&gguf.build()).unwrap().bundle;
    assert_eq!(ids(&load(&bundle), "ab ab"), [9, 11]);
    assert!(!bundle.add_bos);
    gguf.set("tokenizer.ggml.scores", float32s(&[f32::NAN; 13]));
    assert!(open_gguf(&gguf.build()).is_err(), "scores that are not numbers were taken");
}

/// The bundle of the tiny directory after some of its JSON files were changed.
fn with_files(changes: &[(&str, Value)]) -> TokenizerBundle {
    let directory = copy_of_tiny();
    for (file, change) in changes {
        let path = directory.path().join(file);
        let mut content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (key, value) in change.as_object().unwrap() {
            content[key] = value.clone();
        }
        std::fs::write(&path, content.to_string()).unwrap();
    }
    std::fs::remove_file(directory.path().join("chat_template.jinja")).unwrap();
    ModelFile::open(directory.path()).unwrap().bundle
}

#[test]
fn special_tokens_of_a_directory_come_from_the_first_file_that_names_them() {
    let none = json!({ "bos_token_id": null, "eos_token_id": null });
    let list = with_files(&[("generation_config.json", json!({ "eos_token_id": [2, 0, 2] }))]);
    assert_eq!(list.eos, [TokenId(0), TokenId(2)]);
    let from_config =
        with_files(&[("generation_config.json", none.clone()), ("config.json", json!({ "eos_token_id": 0 }))]);
    assert_eq!(from_config.eos, [TokenId(0)]);
    let text = json!({ "eos_token": { "content": "<|im_start|>", "lstrip": false } });
    let from_text =
        with_files(&[("generation_config.json", none.clone()), ("config.json", none), ("tokenizer_config.json", text)]);
    assert_eq!((from_text.bos, from_text.eos), (Some(TokenId(1)), vec![TokenId(1)]));
}

#[test]
fn a_bos_is_added_where_the_tokenizer_adds_one() {
    let template = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [], "special_tokens": {} });
    let nested = json!({ "post_processor": { "type": "Sequence", "processors": [{ "type": "ByteLevel" }, template] } });
    let processed = with_files(&[("tokenizer.json", nested.clone())]);
    assert_eq!((processed.bos, processed.add_bos), (Some(TokenId(0)), true));
    let overruled =
        with_files(&[("tokenizer.json", nested), ("tokenizer_config.json", json!({ "add_bos_token": false }))]);
    assert_eq!((overruled.bos, overruled.add_bos), (Some(TokenId(1)), false));
    let said = with_files(&[("tokenizer_config.json", json!({ "add_bos_token": true }))]);
    assert_eq!((said.bos, said.add_bos), (Some(TokenId(1)), true));
}

#[test]
fn a_chat_template_may_be_one_of_several() {
    let templates = json!([{ "name": "tool_use", "template": "T" }, { "name": "default", "template": "D" }]);
    let bundle = with_files(&[("tokenizer_config.json", json!({ "chat_template": templates }))]);
    assert_eq!(bundle.chat_template.as_deref(), Some("D"));
    let bundle = with_files(&[("tokenizer_config.json", json!({ "chat_template": "one" }))]);
    assert_eq!(bundle.chat_template.as_deref(), Some("one"));
    assert_eq!(with_files(&[]).chat_template, None);
}
