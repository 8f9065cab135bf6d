//! What the tokenizers of all file formats have in common: special tokens known by name, and the size a router takes.

use shoal_common::ids::TokenId;
use shoal_common::wire::blob::{FimTokens, MAX_TOKENIZER_BUNDLE, TokenizerBundle};

use super::error::{TokenizerFault, WeightsError};

/// Names of fill-in-the-middle tokens: prefix, suffix, middle.
const FIM_NAMES: [[&str; 3]; 6] = [
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ["<PRE>", "<SUF>", "<MID>"],
];

/// Separates documents in the training data of the GPT-2 family and its heirs.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Fill-in-the-middle tokens by their usual names, if the model has all three.
pub(super) fn fim_by_name(find: impl Fn(&str) -> Option<TokenId>) -> Option<FimTokens> {
    FIM_NAMES.iter().find_map(|&[prefix, suffix, middle]| {
        Some(FimTokens { prefix: find(prefix)?, suffix: find(suffix)?, middle: find(middle)? })
    })
}

/// What begins a document where the model has no BOS: `<|endoftext|>`, or else the token that ended the one before.
pub(super) fn document_separator(
    find: impl Fn(&str) -> Option<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
) -> Option<TokenId> {
    find(END_OF_TEXT).or_else(|| eos.filter(|_| bos.is_none()))
}

/// Sorted, each once.
pub(super) fn ascending(tokens: impl IntoIterator<Item = TokenId>) -> Vec<TokenId> {
    tokens.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// Refuses a bundle that no router would take.
pub(super) fn finish(bundle: TokenizerBundle) -> Result<TokenizerBundle, WeightsError> {
    /// Room for everything that is neither the tokenizer nor the template.
    const REST: usize = 4096;
    let template = bundle.chat_template.as_ref().map_or(0, String::len);
    let bytes = (bundle.tokenizer_json.len() + template + REST) as u64;
    let limit = MAX_TOKENIZER_BUNDLE;
    if bytes > limit { Err(TokenizerFault::TooLarge { bytes, limit }.into()) } else { Ok(bundle) }
}
