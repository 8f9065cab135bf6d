//! Text to ids and ids to bytes, for one model. The fleet builds one [`Tokenizer`] per tokenizer digest from the bundle
//! that a worker sent, and shares it through an `Arc`. It wraps the `tokenizers` crate for encoding and keeps that crate's
//! panics, truncation and padding away from requests; decoding is a table lookup of our own (see `spelling`).
//!
//! Encoding is CPU work for blocking threads, never for the runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use shoal_common::ids::TokenId;
use shoal_common::wire::blob::{FimTokens, MAX_TOKENIZER_BUNDLE, TokenizerBundle};
use tokenizers::{AddedVocabulary, Model, ModelWrapper, OffsetReferential, OffsetType, PreTokenizer};

use super::bound::LengthBound;
use super::detokenize::{Assembly, SpecialText};
use super::spelling::{Spelling, TokenKind};

/// Most ids a vocabulary may have. The largest public ones have 262,144.
pub(super) const MAX_VOCAB: u32 = 1 << 20;

/// Why text could not be turned into tokens. No variant carries text of a client.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The bundle is larger than any tokenizer is.
    #[error("the tokenizer has more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
    /// `tokenizer.json` is not one.
    #[error("the tokenizer cannot be read")]
    Malformed(#[source] tokenizers::Error),
    /// Tokens could be made, but no text from them.
    #[error("the tokenizer's decoder {kind} is not supported")]
    UnsupportedDecoder {
        /// The decoder's type.
        kind: String,
    },
    /// An id that the model has no row for.
    #[error("token {id} is outside the model's vocabulary of {vocab_size}")]
    OutsideVocabulary {
        /// The id.
        id: TokenId,
        /// Ids are below this.
        vocab_size: u32,
    },
    /// The tokenizer refused this text.
    #[error("the text cannot be tokenized")]
    Encode(#[source] tokenizers::Error),
    /// The tokenizer library panicked. Nothing is shared between calls, so others are unharmed.
    #[error("the tokenizer failed")]
    Panicked,
}

/// Whether special tokens written out in a text (`<|im_end|>`) become those tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They become the tokens.
    Parsed,
    /// They are text like any other.
    AsText,
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The added vocabulary without its special tokens.
    plain: AddedVocabulary,
    spelling: Spelling,
    bound: LengthBound,
    vocab_size: u32,
    bos: Option<TokenId>,
    add_bos: bool,
    eos: Vec<TokenId>,
    document_separator: Option<TokenId>,
    fim: Option<FimTokens>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("bos", &self.bos)
            .field("add_bos", &self.add_bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model with `vocab_size` rows. The bundle comes from a peer: whatever is wrong with it is an
    /// error. Takes about 0.2 s for 50,000 tokens: CPU work, as encoding is.
    pub fn from_bundle(bundle: &TokenizerBundle, vocab_size: u32) -> Result<Self, TokenizerError> {
        check_sizes(bundle, vocab_size)?;
        let inner = unpanicked(|| read_json(&bundle.tokenizer_json))?.map_err(TokenizerError::Malformed)?;
        let spelling = unpanicked(|| spell(&inner, vocab_size))??;
        let bound = LengthBound::of(&inner, &spelling, vocab_size);
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        Ok(Self {
            inner,
            plain,
            spelling,
            bound,
            vocab_size,
            bos: bundle.bos,
            add_bos: bundle.add_bos,
            eos: bundle.eos.clone(),
            document_separator: bundle.document_separator,
            fim: bundle.fim,
        })
    }

    /// The ids of `text`, without a BOS.
    ///
    /// Cost, measured on SmolLM2 with 4 MiB: English 2 s, a single word or a run of spaces 4 s, digits (a piece each) 10 s.
    /// It grows a little faster than the text, and takes up to 200 bytes of memory per byte of text while it runs. There is
    /// no stopping it half-way: ask [`Self::fewest_tokens`] first, and let few run at a time.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>, TokenizerError> {
        let added = match special {
            SpecialTokens::Parsed => self.inner.get_added_vocabulary(),
            SpecialTokens::AsText => &self.plain,
        };
        let ids = unpanicked(|| encode(&self.inner, added, text))?.map_err(TokenizerError::Encode)?;
        match ids.iter().find(|id| id.0 >= self.vocab_size) {
            Some(&id) => Err(TokenizerError::OutsideVocabulary { id, vocab_size: self.vocab_size }),
            None => Ok(ids),
        }
    }

    /// No tokenization of `text` has fewer tokens than this: tells that a text is too long for a context in a millisecond
    /// per 4 MiB. 0 where nothing is known of how this tokenizer splits text.
    pub fn fewest_tokens(&self, text: &str) -> usize {
        self.bound.fewest_tokens(text)
    }

    /// The ids of a prompt, as the reference tokenizer makes them: special tokens parsed, and a BOS in front if the model
    /// wants one and the text does not begin with it.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut ids = self.encode(text, SpecialTokens::Parsed)?;
        if let Some(bos) = self.bos_to_add().filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The ids of a fill-in-the-middle prompt: prefix, suffix, then the token after which the model writes the middle. Special
    /// tokens in the texts are text. `None`: the model was not trained for it.
    pub fn encode_infill(&self, prefix: &str, suffix: &str) -> Result<Option<Vec<TokenId>>, TokenizerError> {
        let Some(fim) = self.fim else { return Ok(None) };
        let mut ids: Vec<_> = self.bos_to_add().into_iter().collect();
        ids.push(fim.prefix);
        ids.extend(self.encode(prefix, SpecialTokens::AsText)?);
        ids.push(fim.suffix);
        ids.extend(self.encode(suffix, SpecialTokens::AsText)?);
        ids.push(fim.middle);
        Ok(Some(ids))
    }

    /// Whether the model has fill-in-the-middle tokens.
    pub fn has_infill(&self) -> bool {
        self.fim.is_some()
    }

    /// The token a text of its own begins with: BOS, or the document separator of a model that has no BOS.
    pub fn document_start(&self) -> Option<TokenId> {
        self.bos.or(self.document_separator)
    }

    /// Whether prompts get a BOS.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The BOS token.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// Tokens that end an answer, ascending.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }

    /// Ids are below this: the model's rows, of which the last may name no token.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Whether `id` is a control token.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.spelling.kind(id) == TokenKind::Special
    }

    /// The text of `ids` from the start of a document. Malformed UTF-8 comes out as U+FFFD, one for each maximal malformed
    /// part; an id that names no token is skipped.
    pub fn decode(&self, ids: &[TokenId], special: SpecialText) -> String {
        let mut assembly = Assembly::at_start(&self.spelling, special);
        let mut text = String::new();
        for id in ids {
            assembly.push(&self.spelling, *id, &mut text);
        }
        assembly.finish(&mut text);
        text
    }

    /// The token's own bytes, which need not be whole characters. A special token's are its literal content; an id that
    /// names no token has none.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.spelling.bytes(id)
    }

    /// The token's name in logprobs: its text, or `bytes:\xe2\x96` where it is not whole characters (the OpenAI convention), or
    /// `token_id:49152` where no token has the id, so that different tokens keep different names.
    pub fn token_label(&self, id: TokenId) -> String {
        if self.spelling.kind(id) == TokenKind::Unnamed {
            return format!("token_id:{id}");
        }
        let bytes = self.token_bytes(id);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |label, byte| format!("{label}\\x{byte:02x}")),
        }
    }

    pub(super) fn spelling(&self) -> &Spelling {
        &self.spelling
    }

    fn bos_to_add(&self) -> Option<TokenId> {
        self.bos.filter(|_| self.add_bos)
    }
}

/// Runs `work` of the tokenizer library, which panics on some malformed input.
fn unpanicked<T>(work: impl FnOnce() -> T) -> Result<T, TokenizerError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| TokenizerError::Panicked)
}

fn check_sizes(bundle: &TokenizerBundle, vocab_size: u32) -> Result<(), TokenizerError> {
    if bundle.tokenizer_json.len() as u64 > MAX_TOKENIZER_BUNDLE {
        return Err(TokenizerError::TooLarge { what: "bytes", limit: MAX_TOKENIZER_BUNDLE as usize });
    }
    if vocab_size > MAX_VOCAB {
        return Err(TokenizerError::TooLarge { what: "tokens", limit: MAX_VOCAB as usize });
    }
    let fim = bundle.fim.iter().flat_map(|fim| [fim.prefix, fim.suffix, fim.middle]);
    let named = bundle.eos.iter().copied().chain(bundle.bos).chain(bundle.document_separator).chain(fim);
    match named.into_iter().find(|id| id.0 >= vocab_size) {
        Some(id) => Err(TokenizerError::OutsideVocabulary { id, vocab_size }),
        None => Ok(()),
    }
}

fn read_json(json: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some()
    {
        // A training device that draws at random: with it one prompt would have many tokenizations.
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        inner.with_model(bpe);
    }
    Ok(inner)
}

fn spell(inner: &tokenizers::Tokenizer, vocab_size: u32) -> Result<Spelling, TokenizerError> {
    let decoder = serde_json::to_value(inner.get_decoder()).unwrap_or(Value::Null);
    let added = inner.get_added_tokens_decoder();
    Spelling::build(&decoder, vocab_size, |id| {
        let special = added.get(&id).is_some_and(|token| token.special);
        let kind = if special { TokenKind::Special } else { TokenKind::Text };
        inner.id_to_token(id).map(|text| (text, kind))
    })
}

/// The crate's own pipeline up to the ids. Its truncation, padding and post-processor are left out: they are settings of
/// whoever trained the tokenizer, and a prompt must not be cut by them.
fn encode(inner: &tokenizers::Tokenizer, added: &AddedVocabulary, text: &str) -> tokenizers::Result<Vec<TokenId>> {
    let mut pieces = added.extract_and_normalize(inner.get_normalizer(), text);
    if let Some(splitter) = inner.get_pre_tokenizer() {
        splitter.pre_tokenize(&mut pieces)?;
    }
    inner.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
    let pieces = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
    Ok(pieces.iter().filter_map(|piece| piece.2.as_ref()).flatten().map(|token| TokenId(token.id)).collect())
}
