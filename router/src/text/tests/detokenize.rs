use std::sync::Arc;

use proptest::prelude::*;
use shoal_common::ids::TokenId;

use super::samples::*;
use crate::text::detokenize::*;
use crate::text::{SpecialTokens, Tokenizer};

fn any_tokenizer() -> impl Strategy<Value = Arc<Tokenizer>> {
    prop_oneof![
        Just(byte_level()),
        Just(sentence_piece(llama_decoder())),
        Just(sentence_piece(gemma_decoder())),
        Just(sentence_piece(metaspace_decoder())),
    ]
}

fn stream(tokenizer: &Arc<Tokenizer>, text: &str) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), SpecialText::Hidden);
    let ids = tokenizer.encode(text, SpecialTokens::Parsed).unwrap();
    ids.into_iter().map(|id| detokenizer.push(id)).collect()
}

#[test]
fn a_character_is_shown_only_when_it_is_whole() {
    for tokenizer in [byte_level(), sentence_piece(llama_decoder())] {
        let deltas = stream(&tokenizer, "o😀o");
        assert!(deltas.len() >= 4, "{deltas:?}");
        assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')), "{deltas:?}");
        assert!(deltas.contains(&"😀".to_owned()), "{deltas:?}");
        assert_eq!(deltas.concat(), "o😀o");
    }
}

#[test]
fn a_character_cut_off_by_the_end_is_one_replacement() {
    let tokenizer = sentence_piece(gemma_decoder());
    let mut detokenizer = Detokenizer::new(tokenizer, SpecialText::Hidden);
    assert_eq!(detokenizer.push(TokenId(3 + 0xf0)), "");
    assert_eq!(detokenizer.push(TokenId(3 + 0x9f)), "");
    assert_eq!(detokenizer.pending(), 2);
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.pending(), 0);
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn a_continuation_keeps_the_space_that_parts_it_from_its_prompt() {
    for decoder in [llama_decoder(), metaspace_decoder()] {
        let tokenizer = sentence_piece(decoder);
        let ids = tokenizer.encode("hello", SpecialTokens::Parsed).unwrap();
        let write = |mut detokenizer: Detokenizer| ids.iter().map(|id| detokenizer.push(*id)).collect::<String>();
        assert_eq!(write(Detokenizer::new(Arc::clone(&tokenizer), SpecialText::Hidden)), "hello");
        assert_eq!(write(Detokenizer::continuing(Arc::clone(&tokenizer), SpecialText::Hidden)), " hello");
    }
}

proptest! {
    #[test]
    fn the_deltas_together_are_the_decoding_of_all_ids(
        tokenizer in any_tokenizer(),
        raw in prop::collection::vec(0u32..520, 0..60),
        hidden in any::<bool>(),
    ) {
        let special = if hidden { SpecialText::Hidden } else { SpecialText::Shown };
        let ids: Vec<_> = raw.into_iter().map(TokenId).collect();
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), special);
        let mut text = String::new();
        for id in &ids {
            text.push_str(&detokenizer.push(*id));
            prop_assert!(detokenizer.pending() <= 3);
        }
        text.push_str(&detokenizer.finish());
        prop_assert_eq!(text, tokenizer.decode(&ids, special));
    }

    /// The text is that of the bytes, however they are cut into tokens.
    #[test]
    fn any_cut_of_any_bytes_gives_the_text_of_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let tokenizer = sentence_piece(gemma_decoder());
        let ids: Vec<_> = bytes.iter().map(|byte| TokenId(3 + u32::from(*byte))).collect();
        prop_assert_eq!(tokenizer.decode(&ids, SpecialText::Hidden), String::from_utf8_lossy(&bytes));
    }
}
