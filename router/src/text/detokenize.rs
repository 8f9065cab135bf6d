//! Ids to text, one token at a time. `choice` owns one [`Detokenizer`] per branch. Every delta is whole characters, and the
//! deltas with the final flush are the decoding of all ids together. It holds at most three bytes and never looks back,
//! so a token costs its own length and nothing more.

use std::sync::Arc;

use shoal_common::ids::TokenId;

use super::spelling::{LeadingSpace, Spelling, TokenKind};
use super::tokenizer::Tokenizer;

/// What becomes of special tokens in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// They leave no trace.
    Hidden,
    /// They are written as their literal content (`<|im_end|>`).
    Shown,
}

/// Decodes a growing sequence of tokens.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    assembly: Assembly,
}

impl Detokenizer {
    /// For ids that begin a text: a leading space that only the tokenizer put there is cut, as the reference does.
    pub fn new(tokenizer: Arc<Tokenizer>, special: SpecialText) -> Self {
        let assembly = Assembly::at_start(tokenizer.spelling(), special);
        Self { tokenizer, assembly }
    }

    /// For ids that go on from other text, as a completion does from its prompt: every space is meant.
    pub fn continuing(tokenizer: Arc<Tokenizer>, special: SpecialText) -> Self {
        Self { tokenizer, assembly: Assembly::in_text(special) }
    }

    /// The text that `id` completes: possibly none, if its last character is not yet whole.
    pub fn push(&mut self, id: TokenId) -> String {
        let mut delta = String::new();
        self.assembly.push(self.tokenizer.spelling(), id, &mut delta);
        delta
    }

    /// Ends the text: an unfinished character comes out as U+FFFD.
    pub fn finish(&mut self) -> String {
        let mut delta = String::new();
        self.assembly.finish(&mut delta);
        delta
    }

    /// Bytes of an unfinished character that are held back, 0 to 3.
    pub fn pending(&self) -> usize {
        self.assembly.pending.len()
    }
}

/// The bytes of tokens put together into characters.
#[derive(Debug)]
pub(super) struct Assembly {
    special: SpecialText,
    leading: LeadingSpace,
    /// The beginning of a character, empty between characters.
    pending: Vec<u8>,
}

impl Assembly {
    /// At the start of a text.
    pub(super) fn at_start(spelling: &Spelling, special: SpecialText) -> Self {
        Self { special, leading: spelling.leading, pending: Vec::new() }
    }

    /// Within a text.
    fn in_text(special: SpecialText) -> Self {
        Self { special, leading: LeadingSpace::Kept, pending: Vec::new() }
    }

    /// Appends to `out` the characters that `id` completes.
    pub(super) fn push(&mut self, spelling: &Spelling, id: TokenId, out: &mut String) {
        match (spelling.kind(id), self.special) {
            (TokenKind::Unnamed, _) | (TokenKind::Special, SpecialText::Hidden) => return,
            (TokenKind::Text, _) | (TokenKind::Special, SpecialText::Shown) => {}
        }
        let bytes = self.cut_leading_space(spelling.bytes(id));
        self.pending.extend_from_slice(bytes);
        let whole = append_characters(&self.pending, out);
        self.pending.drain(..whole);
    }

    /// Appends U+FFFD if a character was left unfinished.
    pub(super) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn cut_leading_space<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let spaces = bytes.iter().take_while(|byte| **byte == b' ').count();
        let (cut, next) = match self.leading {
            LeadingSpace::Kept => (0, LeadingSpace::Kept),
            LeadingSpace::CutFromFirstToken => (spaces, LeadingSpace::Kept),
            LeadingSpace::CutFromText(left) => {
                let cut = spaces.min(left);
                let only_spaces = cut == bytes.len();
                (cut, if only_spaces { LeadingSpace::CutFromText(left - cut) } else { LeadingSpace::Kept })
            }
        };
        self.leading = next;
        &bytes[cut..]
    }
}

/// Appends the whole characters of `bytes`, each maximal malformed part as one U+FFFD (the Unicode recommendation, and what
/// the reference does). Returns how many bytes that took; the rest may still become a character.
fn append_characters(bytes: &[u8], out: &mut String) -> usize {
    let mut rest = bytes;
    loop {
        let error = match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                return bytes.len();
            }
            Err(error) => error,
        };
        let (valid, malformed) = rest.split_at(error.valid_up_to());
        out.push_str(std::str::from_utf8(valid).expect("the error says that it is valid up to here"));
        let Some(len) = error.error_len() else { return bytes.len() - malformed.len() };
        out.push(char::REPLACEMENT_CHARACTER);
        rest = &malformed[len..];
    }
}
