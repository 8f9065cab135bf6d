//! How a refusal looks on the wire: as the body of a response, with its headers, in the shapes that OctoAI's clients and
//! OpenAI's read. Only [`ApiError`] makes these.

use std::borrow::Cow;

use axum::Json;
use axum::http::HeaderMap;
use axum::http::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{ApiError, FieldFault, Loc, retry_seconds};

/// The JSON object that OpenAI's clients read under `error`; OctoAI's read the same fields beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// A sentence for people.
    pub message: String,
    /// Who has to act: `invalid_request_error`, `not_found_error`, `overloaded_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field, as in `prompt[3]`.
    pub param: Option<String>,
    /// A word for programs.
    pub code: &'static str,
}

/// The body of every error but 422: the same facts for both families of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ErrorDocument {
    /// Always `error`.
    #[schema(example = "error")]
    object: &'static str,
    /// The same facts as OctoAI's clients read them.
    #[serde(flatten)]
    octo: ErrorBody,
    /// The same facts as OpenAI's clients read them.
    error: ErrorBody,
}

/// The body of a 422.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct InvalidDocument {
    /// All faults, as OctoAI's clients read them.
    detail: Vec<FaultDocument>,
    /// The first fault, as OpenAI's clients read it.
    error: ErrorBody,
}

/// One fault of a 422.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FaultDocument {
    /// From `body` down to the element: names and indices.
    #[schema(value_type = Vec<Object>)]
    loc: Vec<Loc>,
    /// The rule.
    msg: Cow<'static, str>,
    /// Which kind of rule.
    #[serde(rename = "type")]
    kind: &'static str,
}

impl From<&FieldFault> for FaultDocument {
    fn from(fault: &FieldFault) -> Self {
        Self { loc: fault.loc.clone(), msg: fault.msg.clone(), kind: fault.kind.as_str() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_seconds(wait)));
        }
        // What is left of such a body is not worth reading, so the connection cannot be used again.
        if matches!(self, Self::RequestTimeout { .. } | Self::TooLarge { .. }) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let error = self.body();
        match &self {
            Self::Invalid(faults) => {
                let detail = faults.iter().map(FaultDocument::from).collect();
                (self.status(), headers, Json(InvalidDocument { detail, error })).into_response()
            }
            _ => {
                let document = ErrorDocument { object: "error", octo: error.clone(), error };
                (self.status(), headers, Json(document)).into_response()
            }
        }
    }
}
