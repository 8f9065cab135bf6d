//! The prompts of a request as token ids. Runs on a blocking thread: a body of 4 MiB takes seconds.

use shoal_common::ids::TokenId;

use super::{Tokenizer, TokenizerError};
use crate::plan::TokenisedPrompt;
use crate::request::{CompletionRequest, PromptInput};

/// Why a prompt has no ids.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The model has neither a BOS nor a document separator to begin with.
    #[error("this model cannot begin without a prompt")]
    NoDocumentStart,
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Turns every prompt of `request` into ids, at least one each.
pub fn tokenise(tokenizer: &Tokenizer, request: &CompletionRequest) -> Result<Vec<TokenisedPrompt>, PromptError> {
    let suffix = request.suffix.as_ref().map(|suffix| suffix.0.as_str());
    request.prompts.iter().map(|prompt| tokenise_one(tokenizer, prompt, suffix)).collect()
}

fn tokenise_one(
    tokenizer: &Tokenizer,
    prompt: &PromptInput,
    suffix: Option<&str>,
) -> Result<TokenisedPrompt, PromptError> {
    let text = match prompt {
        PromptInput::Tokens(ids) => return Ok(TokenisedPrompt { ids: ids.0.clone(), added: 0, text: None }),
        PromptInput::DocumentStart => "",
        PromptInput::Text(text) => &text.0,
    };
    let infill = suffix.map(|suffix| tokenizer.encode_infill(text, suffix)).transpose()?.flatten();
    let (ids, added) = match infill {
        // A BOS, if there is one, and the token that announces the prefix.
        Some(ids) => (ids, 1 + usize::from(tokenizer.add_bos() && tokenizer.bos().is_some())),
        None if text.is_empty() => (Vec::new(), 0),
        None => (tokenizer.encode_prompt(text)?, usize::from(adds_bos(tokenizer, text))),
    };
    let text = Some(text.to_owned());
    if ids.is_empty() {
        // Also where a text vanishes in the tokenizer: some vocabularies lack a few control characters.
        let start: TokenId = tokenizer.document_start().ok_or(PromptError::NoDocumentStart)?;
        return Ok(TokenisedPrompt { ids: vec![start], added: 1, text });
    }
    Ok(TokenisedPrompt { ids, added, text })
}

/// Whether the tokenizer puts a BOS before `text` that is not there already.
fn adds_bos(tokenizer: &Tokenizer, text: &str) -> bool {
    let written = |bos| text.as_bytes().starts_with(tokenizer.token_bytes(bos));
    tokenizer.add_bos() && tokenizer.bos().is_some_and(|bos| !written(bos))
}
