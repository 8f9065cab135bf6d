//! The tokenizer of a Hugging Face directory: `tokenizer.json` as it is, special tokens from `generation_config.json`,
//! `config.json` and `tokenizer_config.json` in that order, the chat template from `chat_template.jinja` or
//! `tokenizer_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use shoal_common::ids::TokenId;
use shoal_common::wire::blob::{MAX_TOKENIZER_BUNDLE, TokenizerBundle};

use super::bundle;
use super::bytes::read_small;
use super::error::{TokenizerFault, WeightsError};
use super::hf::parse;
use super::hf_config::{HfConfig, MAX_CONFIG, OneOrMany, SpecialIds};

/// Largest `tokenizer_config.json` in bytes: it may repeat every added token and hold a chat template.
const MAX_TOKENIZER_CONFIG: u64 = 8 << 20;
/// Largest chat template in bytes.
const MAX_TEMPLATE: u64 = 1 << 20;

/// `tokenizer.json`, as far as it is looked at here.
#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    post_processor: Option<Value>,
    /// Must be there; routers read it.
    #[serde(rename = "model")]
    _model: IgnoredAny,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// `tokenizer_config.json`
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    chat_template: Option<ChatTemplate>,
}

/// A token, by its text or with settings around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Detailed { content: String },
}

impl TokenText {
    fn as_str(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Detailed { content: text } => text,
        }
    }
}

/// One chat template, or several of which one is named `default`.
#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplate {
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(all) => all.into_iter().find(|named| named.name == "default").map(|named| named.template),
        }
    }
}

/// Makes the bundle for a model with `vocab` rows of embedding.
pub(super) fn bundle(directory: &Path, config: &HfConfig, vocab: usize) -> Result<TokenizerBundle, WeightsError> {
    let path = directory.join("tokenizer.json");
    let missing = || WeightsError::Read { path: path.clone(), source: std::io::ErrorKind::NotFound.into() };
    let tokenizer_json = read_small(&path, MAX_TOKENIZER_BUNDLE)?.ok_or_else(missing)?;
    let tokenizer: TokenizerJson = parse(&path, &tokenizer_json)?;
    let generation: SpecialIds = read_config(directory, "generation_config.json", MAX_CONFIG)?;
    let settings: TokenizerConfig = read_config(directory, "tokenizer_config.json", MAX_TOKENIZER_CONFIG)?;
    let special = Special { tokenizer: &tokenizer, vocab };
    let by_text = |text: &str| special.find(text);

    let prepended = tokenizer.post_processor.as_ref().and_then(prepended_token);
    let add_bos = settings.add_bos_token.unwrap_or_else(|| prepended.is_some());
    let bos_ids = [generation.bos_token_id.as_ref(), config.special.bos_token_id.as_ref()];
    let named_bos = special.ids("bos_token_id", &bos_ids, settings.bos_token.as_ref())?.first().copied();
    // What the tokenizer itself puts first is the BOS, whatever the settings say.
    let bos = prepended.filter(|_| add_bos).and_then(by_text).or(named_bos);
    let eos_ids = [generation.eos_token_id.as_ref(), config.special.eos_token_id.as_ref()];
    let eos = special.ids("eos_token_id", &eos_ids, settings.eos_token.as_ref())?;
    bundle::finish(TokenizerBundle {
        bos,
        add_bos: add_bos && bos.is_some(),
        document_separator: bundle::document_separator(by_text, bos, eos.first().copied()),
        eos: bundle::ascending(eos),
        fim: bundle::fim_by_name(by_text),
        chat_template: chat_template(directory, settings)?,
        tokenizer_json,
    })
}

fn read_config<T: Default + serde::de::DeserializeOwned>(
    directory: &Path,
    name: &str,
    limit: u64,
) -> Result<T, WeightsError> {
    let path = directory.join(name);
    read_small(&path, limit)?.map_or_else(|| Ok(T::default()), |content| parse(&path, &content))
}

/// Finds special tokens by text, and by id with a check.
struct Special<'a> {
    tokenizer: &'a TokenizerJson,
    vocab: usize,
}

impl Special<'_> {
    fn find(&self, text: &str) -> Option<TokenId> {
        self.tokenizer.added_tokens.iter().find(|token| token.content == text).map(|token| TokenId(token.id))
    }

    /// The ids of the first file that names any, or of the text that stands in for them.
    fn ids(
        &self,
        key: &'static str,
        files: &[Option<&OneOrMany>],
        text: Option<&TokenText>,
    ) -> Result<Vec<TokenId>, WeightsError> {
        let ids: Vec<TokenId> = match files.iter().flatten().next() {
            Some(ids) => ids.as_slice().iter().copied().map(TokenId).collect(),
            None => text.and_then(|text| self.find(text.as_str())).into_iter().collect(),
        };
        match ids.iter().find(|id| id.index() >= self.vocab) {
            Some(id) => Err(TokenizerFault::UnknownToken { key, token: id.to_string() }.into()),
            None => Ok(ids),
        }
    }
}

/// The special token that a template post-processor, alone or in a sequence, puts before a single text.
fn prepended_token(post_processor: &Value) -> Option<&str> {
    match post_processor.get("type")?.as_str()? {
        "TemplateProcessing" => post_processor.get("single")?.get(0)?.get("SpecialToken")?.get("id")?.as_str(),
        "Sequence" => post_processor.get("processors")?.as_array()?.iter().find_map(prepended_token),
        _ => None,
    }
}

fn chat_template(directory: &Path, settings: TokenizerConfig) -> Result<Option<String>, WeightsError> {
    match read_small(&directory.join("chat_template.jinja"), MAX_TEMPLATE)? {
        Some(content) => match String::from_utf8(content) {
            Ok(template) => Ok(Some(template)),
            Err(_) => Err(TokenizerFault::NotUtf8("chat_template.jinja").into()),
        },
        None => Ok(settings.chat_template.and_then(ChatTemplate::into_default)),
    }
}
