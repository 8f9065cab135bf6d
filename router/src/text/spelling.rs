//! How a model's tokens are spelt: the bytes each token stands for, and what happens to a space at the start of a text.
//! Built once per tokenizer from its `decoder`, read for every token. It knows two families, which are those of language
//! models: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece (`▁` for a space, `<0xNN>` for a byte).
//! It never guesses: a decoder outside them is refused.

use serde::Deserialize;
use serde_json::Value;
use shoal_common::ids::TokenId;

use super::tokenizer::TokenizerError;

/// Most bytes that all tokens of a vocabulary may be spelt with. 262,144 tokens of Gemma take 2 MB.
const MAX_TABLE_BYTES: usize = 64 << 20;

/// Longest replacement of a `Replace` step in bytes: real ones are one space, longer ones would multiply the table.
const MAX_REPLACEMENT_BYTES: usize = 8;

/// What a decoder does with spaces at the very start of a text, where SentencePiece puts one that nobody wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeadingSpace {
    /// Nothing is removed.
    Kept,
    /// At most this many spaces are removed from the start of the text.
    CutFromText(usize),
    /// All spaces in front of the first token are removed.
    CutFromFirstToken,
}

/// What an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// No token has this id: a padding row of the model's vocabulary.
    Unnamed,
    /// A piece of text.
    Text,
    /// A control token (`<|im_end|>`), hidden from answers.
    Special,
}

/// The bytes of every id in `[0, vocab_size)`.
pub(super) struct Spelling {
    pub(super) leading: LeadingSpace,
    bytes: Vec<u8>,
    /// `ends[id]`: where the bytes of `id` end; they begin where those of `id - 1` end.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
}

impl Spelling {
    /// Spells the ids below `vocab_size`; `token(id)` is the id's string in the tokenizer's own alphabet.
    pub(super) fn build(
        decoder: &Value,
        vocab_size: u32,
        token: impl Fn(u32) -> Option<(String, TokenKind)>,
    ) -> Result<Self, TokenizerError> {
        let (alphabet, leading) = read_decoder(decoder)?;
        let mut spelling = Self { leading, bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new() };
        for id in 0..vocab_size {
            let kind = match token(id) {
                Some((text, kind)) => {
                    alphabet.spell(&text, &mut spelling.bytes);
                    kind
                }
                None => TokenKind::Unnamed,
            };
            if spelling.bytes.len() > MAX_TABLE_BYTES {
                return Err(TokenizerError::TooLarge { what: "bytes in its tokens", limit: MAX_TABLE_BYTES });
            }
            spelling.ends.push(spelling.bytes.len() as u32);
            spelling.kinds.push(kind);
        }
        Ok(spelling)
    }

    /// The id's own bytes; none for an id that names no token.
    pub(super) fn bytes(&self, id: TokenId) -> &[u8] {
        let Some(&end) = self.ends.get(id.index()) else { return &[] };
        let begin = if id.index() == 0 { 0 } else { self.ends[id.index() - 1] };
        &self.bytes[begin as usize..end as usize]
    }

    /// What the id stands for.
    pub(super) fn kind(&self, id: TokenId) -> TokenKind {
        self.kinds.get(id.index()).copied().unwrap_or(TokenKind::Unnamed)
    }
}

/// The alphabet a vocabulary is written in.
enum Alphabet {
    /// Each character is one byte, by GPT-2's table.
    Bytes,
    /// Text with replacements; `<0xNN>` is a byte if `byte_tokens` says so.
    Text { replace: Vec<(String, String)>, byte_tokens: bool },
}

impl Alphabet {
    fn spell(&self, token: &str, out: &mut Vec<u8>) {
        match self {
            Self::Bytes => {
                let begin = out.len();
                for character in token.chars() {
                    let Some(byte) = byte_of(character) else {
                        // As the reference does: a token with any foreign character is meant literally.
                        out.truncate(begin);
                        out.extend_from_slice(token.as_bytes());
                        return;
                    };
                    out.push(byte);
                }
            }
            Self::Text { byte_tokens: true, .. } if byte_token(token).is_some() => out.extend(byte_token(token)),
            Self::Text { replace, .. } => {
                let mut text = token.to_owned();
                for (from, to) in replace {
                    text = text.replace(from, to);
                }
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// The byte that a character of GPT-2's byte alphabet stands for: printable Latin-1 stands for itself, the other 68 bytes
/// follow in order from U+0100.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte of a `<0xNN>` token.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let two_digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if two_digits { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// One step of a tokenizer.json's `decoder`.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Step {
    ByteLevel,
    Metaspace { replacement: char, prepend_scheme: PrependScheme },
    Replace { pattern: Pattern, content: String },
    ByteFallback,
    Fuse,
    Strip { content: char, start: usize, stop: usize },
    Sequence { decoders: Vec<Step> },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PrependScheme {
    Always,
    First,
    Never,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(#[expect(dead_code, reason = "named so that it can be refused")] String),
}

fn flatten(step: Step, into: &mut Vec<Step>) {
    match step {
        Step::Sequence { decoders } => decoders.into_iter().for_each(|step| flatten(step, into)),
        step => into.push(step),
    }
}

fn read_decoder(decoder: &Value) -> Result<(Alphabet, LeadingSpace), TokenizerError> {
    let unsupported = || TokenizerError::UnsupportedDecoder { kind: kind_of(decoder) };
    let mut steps = Vec::new();
    flatten(Step::deserialize(decoder).map_err(|_| unsupported())?, &mut steps);
    match steps.as_slice() {
        [Step::ByteLevel] => Ok((Alphabet::Bytes, LeadingSpace::Kept)),
        [Step::Metaspace { replacement, prepend_scheme }] => {
            let leading = match prepend_scheme {
                PrependScheme::Always | PrependScheme::First => LeadingSpace::CutFromFirstToken,
                PrependScheme::Never => LeadingSpace::Kept,
            };
            let replace = vec![(replacement.to_string(), " ".to_owned())];
            Ok((Alphabet::Text { replace, byte_tokens: false }, leading))
        }
        steps => sentence_piece(steps).ok_or_else(unsupported),
    }
}

/// `Replace* ByteFallback? (Fuse Strip?)?`, the decoder of every SentencePiece model converted to tokenizer.json.
fn sentence_piece(mut steps: &[Step]) -> Option<(Alphabet, LeadingSpace)> {
    let mut replace = Vec::new();
    while let [Step::Replace { pattern: Pattern::String(from), content }, rest @ ..] = steps {
        if from.is_empty() || content.len() > MAX_REPLACEMENT_BYTES {
            return None;
        }
        replace.push((from.clone(), content.clone()));
        steps = rest;
    }
    let byte_tokens = matches!(steps, [Step::ByteFallback, ..]);
    if byte_tokens {
        steps = &steps[1..];
    }
    let leading = match steps {
        [] if byte_tokens || !replace.is_empty() => LeadingSpace::Kept,
        [Step::Fuse] => LeadingSpace::Kept,
        [Step::Fuse, Step::Strip { content: ' ', start, stop: 0 }] => LeadingSpace::CutFromText(*start),
        _ => return None,
    };
    Some((Alphabet::Text { replace, byte_tokens }, leading))
}

/// Names the decoder for the error: `WordPiece`, or `Sequence[Replace, CTC]`.
fn kind_of(decoder: &Value) -> String {
    let name = |value: &Value| value["type"].as_str().unwrap_or("none").to_owned();
    match decoder["decoders"].as_array() {
        Some(steps) => format!("Sequence[{}]", steps.iter().map(name).collect::<Vec<_>>().join(", ")),
        None => name(decoder),
    }
}
