//! How few tokens a text can become, told from its bytes alone. `plan` asks before it tokenises: a text that cannot fit a
//! model's context is refused in milliseconds, where tokenising 4 MiB of it takes seconds. It never guesses: where a
//! tokenizer may drop or shrink text in ways not known here, the answer is zero.

use serde_json::Value;
use shoal_common::ids::TokenId;
use tokenizers::ModelWrapper;

use super::spelling::{Spelling, byte_of};

/// The most by which NFC or NFKC divides the UTF-8 length of a text: `𝐀` is 4 bytes and becomes `A`, three Hangul jamo are
/// 9 bytes and become a syllable of 3.
const UNICODE_SHRINK: usize = 4;

/// The bound of one tokenizer.
pub(super) struct LengthBound {
    /// Most bytes of a text that one token can stand for; 0 where that is unknown.
    longest: usize,
    /// Bytes that always end up in some token. Others may vanish: the vocabulary has no token for them, or a special token
    /// swallows the space around it.
    counted: [bool; 256],
}

impl LengthBound {
    /// Reads the bound off a tokenizer and its spelling.
    pub(super) fn of(inner: &tokenizers::Tokenizer, spelling: &Spelling, vocab_size: u32) -> Self {
        let longest = (0..vocab_size).map(|id| spelling.bytes(TokenId(id)).len()).max().unwrap_or(0);
        let shrink = shrink_of(&as_json(&inner.get_normalizer()));
        match shrink.zip(counted_bytes(inner)) {
            Some((shrink, counted)) => Self { longest: longest * shrink, counted },
            None => Self { longest: 0, counted: [false; 256] },
        }
    }

    /// No tokenization of `text` has fewer tokens than this.
    pub(super) fn fewest_tokens(&self, text: &str) -> usize {
        let counted = text.bytes().filter(|byte| self.counted[usize::from(*byte)]).count();
        if self.longest == 0 { 0 } else { counted.div_ceil(self.longest) }
    }
}

fn as_json(part: &impl serde::Serialize) -> Value {
    serde_json::to_value(part).unwrap_or(Value::Bool(false))
}

/// By how much a normalizer may divide the length of a text; `None` if nothing is known of it.
fn shrink_of(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("Prepend" | "ByteLevel") => Some(1),
        Some("NFC" | "NFKC") => Some(UNICODE_SHRINK),
        Some("Replace") => {
            let (from, to) = (normalizer["pattern"]["String"].as_str()?, normalizer["content"].as_str()?);
            (to.len() >= from.len()).then_some(1)
        }
        // Unicode forms do not add up, but the product of their factors is a safe bound.
        Some("Sequence") => normalizer["normalizers"].as_array()?.iter().map(shrink_of).product(),
        _ => None,
    }
}

/// Whether the splitter passes on every byte it is given, in whatever pieces.
fn keeps_text(splitter: &Value) -> bool {
    match splitter["type"].as_str() {
        None => splitter.is_null(),
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split" | "Punctuation") => splitter["behavior"] != "Removed",
        Some("Sequence") => splitter["pretokenizers"].as_array().is_some_and(|parts| parts.iter().all(keeps_text)),
        Some(_) => false,
    }
}

/// Whether the splitter writes text in GPT-2's byte alphabet.
fn is_byte_level(splitter: &Value) -> bool {
    match splitter["type"].as_str() {
        Some("ByteLevel") => true,
        Some("Sequence") => splitter["pretokenizers"].as_array().is_some_and(|parts| parts.iter().any(is_byte_level)),
        _ => false,
    }
}

/// The bytes that always end up in some token; `None` if text of any length may become one unknown token.
fn counted_bytes(inner: &tokenizers::Tokenizer) -> Option<[bool; 256]> {
    let ModelWrapper::BPE(bpe) = inner.get_model() else { return None };
    let splitter = as_json(&inner.get_pre_tokenizer());
    if !keeps_text(&splitter) {
        return None;
    }
    let named = |token: &str| tokenizers::Model::token_to_id(bpe, token).is_some();
    let mut counted = [false; 256];
    if is_byte_level(&splitter) {
        let known = ('\0'..='\u{143}').filter(|character| named(&character.to_string())).filter_map(byte_of);
        known.for_each(|byte| counted[usize::from(byte)] = true);
    } else if bpe.byte_fallback && (0..=255).all(|byte: u8| named(&format!("<0x{byte:02X}>"))) {
        counted = [true; 256];
    } else {
        return None;
    }
    if inner.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip) {
        // ASCII white space, and whatever may be part of other white space.
        (0..=255_u8).filter(|byte| *byte <= b' ' || *byte >= 0x80).for_each(|byte| counted[usize::from(byte)] = false);
    }
    Some(counted)
}
