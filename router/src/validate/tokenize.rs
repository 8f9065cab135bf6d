//! Decodes the bodies of `POST /tokenize` and `POST /detokenize`.

use shoal_common::config::Limits;
use shoal_common::ids::{Name, TokenId};

use super::fields::{Fields, list, name, text, token_ids};
use crate::http::error::{ApiError, FaultKind};
use crate::request::ClientText;

/// Whether a BOS is put before the text, if the model wants one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BosRule {
    /// As before a prompt.
    AsPrompt,
    /// Never.
    Bare,
}

/// `POST /tokenize`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizeRequest {
    /// Whose tokenizer.
    pub model: Name,
    /// What to tokenise; may be empty.
    pub prompt: ClientText,
    /// `add_special_tokens`
    pub bos: BosRule,
}

/// `POST /detokenize`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// Whose tokenizer.
    pub model: Name,
    /// Ids, not yet checked against the vocabulary; may be none, at most `limits.work`.
    pub tokens: Vec<TokenId>,
}

/// Decodes `POST /tokenize`. 400 if it is not strict JSON, 422 with all faults if it breaks a rule.
pub fn tokenize(body: &[u8]) -> Result<TokenizeRequest, ApiError> {
    let mut fields = Fields::parse(body, &["model", "prompt", "add_special_tokens"])?;
    let model = fields.required("model", name);
    let prompt = fields.required("prompt", text);
    let bos = if fields.flag("add_special_tokens", true) { BosRule::AsPrompt } else { BosRule::Bare };
    let ((model, prompt), _) = fields.finish(model.zip(prompt))?;
    Ok(TokenizeRequest { model, prompt: ClientText(prompt), bos })
}

/// Decodes `POST /detokenize`. 400 if it is not strict JSON, 422 with all faults if it breaks a rule.
pub fn detokenize(body: &[u8], limits: &Limits) -> Result<DetokenizeRequest, ApiError> {
    let mut fields = Fields::parse(body, &["model", "tokens"])?;
    let model = fields.required("model", name);
    let tokens =
        fields.required("tokens", list).map(|ids| token_ids(&mut fields, ids, |at| vec!["tokens".into(), at.into()]));
    if tokens.as_ref().is_some_and(|tokens| tokens.len() as u64 > limits.work) {
        fields.fault(["tokens".into()], (FaultKind::TooLong, format!("must hold at most {} tokens", limits.work)));
    }
    let ((model, tokens), _) = fields.finish(model.zip(tokens))?;
    Ok(DetokenizeRequest { model, tokens })
}
