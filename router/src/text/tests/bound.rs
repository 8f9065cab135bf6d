use proptest::prelude::*;
use serde_json::json;

use super::samples::*;
use crate::text::SpecialTokens;
use crate::text::tokenizer::Tokenizer;

#[test]
fn a_long_text_is_known_to_be_long_before_it_is_tokenised() {
    for tokenizer in [byte_level(), sentence_piece(llama_decoder())] {
        assert!(tokenizer.fewest_tokens(&"a".repeat(1 << 20)) > 8192);
        assert_eq!(tokenizer.fewest_tokens(""), 0);
    }
}

#[test]
fn a_tokenizer_that_may_drop_text_makes_no_claim() {
    let mut drops = byte_level_json();
    drops["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}]});
    let mut strips = byte_level_json();
    strips["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    for json in [drops, strips] {
        let tokenizer = Tokenizer::from_bundle(&bundle(&json), BYTE_LEVEL_VOCAB).unwrap();
        assert_eq!(tokenizer.fewest_tokens(&"a".repeat(1 << 20)), 0);
    }
}

proptest! {
    #[test]
    fn no_text_has_fewer_tokens_than_the_bound(
        text in "(<\\|im_end\\|>|</s>|a|the |  |\n|é|e\u{301}|\u{1100}\u{1161}\u{11a8}|𝐀|\u{4}){0,30}|.*",
        normalizer in prop_oneof![
            Just(json!(null)), Just(json!({"type": "NFC"})), Just(json!({"type": "NFKC"})),
        ],
        strip in any::<bool>(),
    ) {
        let mut byte_level = byte_level_json();
        byte_level["normalizer"] = normalizer;
        byte_level["added_tokens"][2]["lstrip"] = json!(strip);
        byte_level["added_tokens"][2]["rstrip"] = json!(strip);
        for json in [byte_level, sentence_piece_json(llama_decoder())] {
            let tokenizer = Tokenizer::from_bundle(&bundle(&json), BYTE_LEVEL_VOCAB).unwrap();
            let tokens = tokenizer.encode(&text, SpecialTokens::Parsed).unwrap().len();
            prop_assert!(tokenizer.fewest_tokens(&text) <= tokens);
        }
    }
}
