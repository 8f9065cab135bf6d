//! `POST /tokenize` and `POST /detokenize`: a model's tokenizer by itself, with the rules of a completion's prompt.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use shoal_common::ids::TokenId;
use utoipa::ToSchema;

use super::body::JsonBody;
use super::error::{ApiError, ErrorDocument, FaultKind, FieldFault, InvalidDocument};
use crate::app::App;
use crate::resolve;
use crate::text::{SpecialText, SpecialTokens, Tokenizer, TokenizerError};
use crate::validate::{self, BosRule, TokenizeRequest};

/// `POST /tokenize` as documented.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TokenizeRequest)]
#[expect(dead_code, reason = "describes the request in /openapi.json; `validate` decodes it")]
pub(super) struct TokenizeRequestDoc {
    /// Whose tokenizer; an adapter has its base model's.
    model: String,
    /// Special tokens written out in it become those tokens.
    prompt: String,
    /// Put a BOS in front if the model wants one.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
}

/// The answer of `POST /tokenize`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tokenized {
    /// Token ids.
    #[schema(value_type = Vec<u32>)]
    tokens: Vec<TokenId>,
    /// How many.
    count: usize,
    /// Longest sequence of the model in tokens.
    max_model_len: u32,
}

/// `POST /detokenize` as documented.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = DetokenizeRequest)]
#[expect(dead_code, reason = "describes the request in /openapi.json; `validate` decodes it")]
pub(super) struct DetokenizeRequestDoc {
    /// Whose tokenizer.
    model: String,
    /// Token ids.
    tokens: Vec<u32>,
}

/// The answer of `POST /detokenize`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Detokenized {
    /// The text, special tokens written out.
    prompt: String,
}

/// Turns text into token ids.
#[utoipa::path(
    post, path = "/tokenize", tag = "text", request_body = TokenizeRequestDoc,
    responses((status = 200, body = Tokenized), (status = 404, body = ErrorDocument), (status = 422, body = InvalidDocument))
)]
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Tokenized>, ApiError> {
    let request = validate::tokenize(&body)?;
    let model = resolve::base(&app, &request.model)?;
    let tokenizer = Arc::clone(&model.tokenizer);
    let tokens =
        app.on_text_thread(move || encode(&tokenizer, &request)).await?.map_err(|error| untokenisable(&error))?;
    Ok(Json(Tokenized { count: tokens.len(), tokens, max_model_len: model.card.context }))
}

fn encode(tokenizer: &Tokenizer, request: &TokenizeRequest) -> Result<Vec<TokenId>, TokenizerError> {
    match request.bos {
        BosRule::AsPrompt => tokenizer.encode_prompt(&request.prompt.0),
        BosRule::Bare => tokenizer.encode(&request.prompt.0, SpecialTokens::Parsed),
    }
}

fn untokenisable(error: &TokenizerError) -> ApiError {
    tracing::warn!(%error, "a text could not be tokenised");
    ApiError::Internal
}

/// Turns token ids into text.
#[utoipa::path(
    post, path = "/detokenize", tag = "text", request_body = DetokenizeRequestDoc,
    responses((status = 200, body = Detokenized), (status = 404, body = ErrorDocument), (status = 422, body = InvalidDocument))
)]
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Detokenized>, ApiError> {
    let request = validate::detokenize(&body, &app.limits)?;
    let model = resolve::base(&app, &request.model)?;
    if let Some(place) = request.tokens.iter().position(|id| id.0 >= model.card.vocab_size) {
        let rule = format!("must be below {}, the size of the vocabulary", model.card.vocab_size);
        return Err(ApiError::invalid(FieldFault::new(["tokens".into(), place.into()], FaultKind::TooLarge, rule)));
    }
    let tokenizer = Arc::clone(&model.tokenizer);
    let prompt = app.on_text_thread(move || tokenizer.decode(&request.tokens, SpecialText::Shown)).await?;
    Ok(Json(Detokenized { prompt }))
}
