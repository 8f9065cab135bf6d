//! Makes a `tokenizer.json` and the special tokens out of a GGUF file's metadata: byte-level BPE (`gpt2`) and
//! SentencePiece BPE (`llama`, in `spm`). Which text gives which ids must come out exactly as with the tokenizer the file
//! was converted from.

use std::collections::HashMap;

use serde_json::{Value, json};
use shoal_common::ids::TokenId;
use shoal_common::wire::blob::{FimTokens, TokenizerBundle};

use super::header::Header;
use super::pre_tokenizer::{PreTokenizer, byte_level};
use super::spm;
use super::value::{Array, Value as Metadata};
use crate::weights::bundle;
use crate::weights::error::{TokenizerFault, WeightsError};

/// Longest token in bytes. Those in use stay below 300; finding the merges of one takes the square of its length.
const MAX_TOKEN: usize = 1024;

/// Control tokens that end an answer, whatever the file says of them: of Llama 3 and Qwen, whose files name one or two of their
/// ends where the original's `generation_config.json` has a list. llama.cpp takes them so, too.
/// <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp> (`special_eog_ids`)
const ENDS: [&str; 5] = ["<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>"];

/// What a token is for, by its number in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// The tokens of a file, by id.
pub(super) struct Vocabulary<'a> {
    pub(super) texts: Vec<&'a str>,
    pub(super) kinds: Vec<TokenKind>,
    pub(super) ids: HashMap<&'a str, u32>,
}

/// The parts of a `tokenizer.json` that differ between kinds of tokenizers.
pub(super) struct Pipeline {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
    pub(super) adds_bos: bool,
}

/// Makes the bundle for a model with `vocab` rows of embedding.
pub(super) fn bundle(header: &Header<'_>, vocab: usize) -> Result<TokenizerBundle, WeightsError> {
    let vocabulary = Vocabulary::read(header, vocab)?;
    let pipeline = match header.required("tokenizer.ggml.model", "UTF-8 text", Metadata::text)? {
        "gpt2" => byte_level_bpe(header, &vocabulary)?,
        "llama" => spm::pipeline(header, &vocabulary)?,
        other => return Err(TokenizerFault::UnknownKind(other.to_owned()).into()),
    };
    let id = |key| special_id(header, &vocabulary, key);
    let bos = id("tokenizer.ggml.bos_token_id")?;
    let eos = id("tokenizer.ggml.eos_token_id")?;
    let named = [eos, id("tokenizer.ggml.eot_token_id")?, id("tokenizer.ggml.eom_token_id")?];
    let known = if matches!(header.text("tokenizer.ggml.pre")?, Some("llama-bpe" | "qwen2")) { &ENDS[..] } else { &[] };
    let ends = named.into_iter().flatten().chain(known.iter().filter_map(|text| vocabulary.control(text)));
    let adds_bos = header.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(pipeline.adds_bos);
    let by_text = |text: &str| vocabulary.ids.get(text).copied().map(TokenId);
    bundle::finish(TokenizerBundle {
        tokenizer_json: tokenizer_json(&vocabulary, pipeline),
        bos,
        add_bos: adds_bos && bos.is_some(),
        eos: bundle::ascending(ends),
        document_separator: bundle::document_separator(by_text, bos, eos),
        fim: fim(header, &vocabulary)?.or_else(|| bundle::fim_by_name(by_text)),
        chat_template: header.text("tokenizer.chat_template")?.map(str::to_owned),
    })
}

impl<'a> Vocabulary<'a> {
    fn read(header: &Header<'a>, vocab: usize) -> Result<Self, WeightsError> {
        let texts = texts(header.required("tokenizer.ggml.tokens", "an array", array)?, "tokenizer.ggml.tokens")?;
        if texts.len() > vocab {
            let list = "tokenizer.ggml.tokens";
            return Err(TokenizerFault::Length { list, found: texts.len(), expected: vocab }.into());
        }
        let mut ids = HashMap::new();
        for (text, id) in texts.iter().zip(0u32..) {
            if text.len() > MAX_TOKEN {
                return Err(TokenizerFault::TokenTooLong { token: id, limit: MAX_TOKEN }.into());
            }
            if let Some(first) = ids.insert(*text, id) {
                return Err(TokenizerFault::SameText { first, second: id }.into());
            }
        }
        let kinds = token_kinds(header, texts.len())?;
        Ok(Self { texts, kinds, ids })
    }

    /// The control token with this text.
    fn control(&self, text: &str) -> Option<TokenId> {
        let id = self.ids.get(text).copied()?;
        (self.kinds[id as usize] == TokenKind::Control).then_some(TokenId(id))
    }

    /// Tokens that are recognised in text as they stand, before any cutting, and the unknown token.
    fn added(&self) -> impl Iterator<Item = Value> {
        self.texts.iter().zip(&self.kinds).enumerate().filter_map(|(id, (text, kind))| {
            let special = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
            };
            Some(json!({
                "id": id, "content": text, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }))
        })
    }
}

fn token_kinds(header: &Header<'_>, tokens: usize) -> Result<Vec<TokenKind>, WeightsError> {
    let list = "tokenizer.ggml.token_type";
    let Some(types) = header.optional(list, "an array", array)? else {
        return Ok(vec![TokenKind::Normal; tokens]);
    };
    same_length(list, types.len(), tokens)?;
    let kind = |value: Metadata<'_>| value.unsigned().and_then(TokenKind::from_number);
    let expected = "an array of token types from 1 to 6";
    let wrong = || WeightsError::Setting { key: list.to_owned(), expected };
    types.values().map(|value| value.ok().and_then(kind).ok_or_else(wrong)).collect()
}

pub(super) fn array<'a>(value: &Metadata<'a>) -> Option<Array<'a>> {
    value.array().cloned()
}

pub(super) fn same_length(list: &'static str, found: usize, expected: usize) -> Result<(), TokenizerFault> {
    if found == expected { Ok(()) } else { Err(TokenizerFault::Length { list, found, expected }) }
}

fn texts<'a>(list: Array<'a>, name: &'static str) -> Result<Vec<&'a str>, TokenizerFault> {
    let text = |value: Result<Metadata<'a>, _>| value.ok().and_then(|value| value.text());
    list.values().map(|value| text(value).ok_or(TokenizerFault::NotUtf8(name))).collect()
}

fn special_id(
    header: &Header<'_>,
    vocabulary: &Vocabulary<'_>,
    key: &'static str,
) -> Result<Option<TokenId>, WeightsError> {
    let Some(id) = header.optional(key, "a token id", Metadata::unsigned)? else { return Ok(None) };
    match u32::try_from(id) {
        Ok(known) if (known as usize) < vocabulary.texts.len() => Ok(Some(TokenId(known))),
        _ => Err(TokenizerFault::UnknownToken { key, token: id.to_string() }.into()),
    }
}

/// Fill-in-the-middle tokens where the file names them outright, by current or older keys.
fn fim(header: &Header<'_>, vocabulary: &Vocabulary<'_>) -> Result<Option<FimTokens>, WeightsError> {
    const KEYS: [[&str; 3]; 2] = [
        ["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.fim_mid_token_id"],
        ["tokenizer.ggml.prefix_token_id", "tokenizer.ggml.suffix_token_id", "tokenizer.ggml.middle_token_id"],
    ];
    for [prefix, suffix, middle] in KEYS {
        let id = |key| special_id(header, vocabulary, key);
        if let (Some(prefix), Some(suffix), Some(middle)) = (id(prefix)?, id(suffix)?, id(middle)?) {
            return Ok(Some(FimTokens { prefix, suffix, middle }));
        }
    }
    Ok(None)
}

fn byte_level_bpe(header: &Header<'_>, vocabulary: &Vocabulary<'_>) -> Result<Pipeline, WeightsError> {
    let name = header.text("tokenizer.ggml.pre")?.ok_or(TokenizerFault::NoPreTokenizer)?;
    let rule = PreTokenizer::named(name).ok_or_else(|| TokenizerFault::UnknownPreTokenizer(name.to_owned()))?;
    let list = header.required("tokenizer.ggml.merges", "an array", array)?;
    let merges = texts(list, "tokenizer.ggml.merges")?;
    let pairs = merges.iter().enumerate().map(|(rank, merge)| pair(vocabulary, rank, merge));
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    Ok(Pipeline {
        normalizer: rule.normalizer(),
        pre_tokenizer: rule.pre_tokenizer(),
        decoder: byte_level(true),
        model: bpe_model(vocabulary, &pairs, json!({ "ignore_merges": rule.ignore_merges })),
        adds_bos: rule.adds_bos,
    })
}

/// The two halves of a merge rule, which the file keeps as one text with a space between them. A half may begin with a
/// space itself.
fn pair<'a>(vocabulary: &Vocabulary<'_>, rank: usize, merge: &'a str) -> Result<(&'a str, &'a str), TokenizerFault> {
    let first = merge.chars().next().map_or(0, char::len_utf8);
    let space = merge[first..].find(' ').ok_or(TokenizerFault::BadMerge(rank))?;
    let (left, right) = (&merge[..first + space], &merge[first + space + 1..]);
    let joined = [left, right].concat();
    let known = [left, right, &joined].iter().all(|part| vocabulary.ids.contains_key(part));
    if known { Ok((left, right)) } else { Err(TokenizerFault::BadMerge(rank)) }
}

/// A BPE `model` of `tokenizer.json`; `settings` are those that differ from the plainest.
pub(super) fn bpe_model(vocabulary: &Vocabulary<'_>, merges: &[(&str, &str)], settings: Value) -> Value {
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocabulary.ids, "merges": merges,
    });
    if let (Value::Object(model), Value::Object(settings)) = (&mut model, settings) {
        model.extend(settings);
    }
    model
}

fn tokenizer_json(vocabulary: &Vocabulary<'_>, pipeline: Pipeline) -> Vec<u8> {
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added().collect::<Vec<_>>(),
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": null,
        "decoder": pipeline.decoder,
        "model": pipeline.model,
    });
    document.to_string().into_bytes()
}
