//! `POST /v1/adapters`: registers an adapter from a directory of the server, if its operator has listed that.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use shoal_common::ids::Name;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::by_request;
use super::document::Adapter;
use super::refusal::{Places, fault, refusal};
use crate::adapters::Listing;
use crate::adapters::intake::Payload;
use crate::app::App;
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ErrorDocument, FaultKind, InvalidDocument};
use crate::validate::{self, RegisterRequest};

/// `POST /v1/adapters` as documented.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RegisterRequest)]
#[expect(dead_code, reason = "describes the request in /openapi.json; `validate` decodes it")]
pub(in crate::http) struct RegisterRequestDoc {
    /// The adapter's name.
    name: String,
    /// A PEFT directory of the server, within `router.adapters` or `router.adapter_paths`.
    path: String,
    /// Its base model; may be left out where there is only one, or where the adapter's configuration names it.
    model: Option<String>,
}

/// Registers an adapter from a directory of the server, or points its name at what is there now.
#[utoipa::path(
    post, path = "/v1/adapters", tag = "adapters", request_body = RegisterRequestDoc,
    responses(
        (status = 200, body = Adapter),
        (status = 409, body = ErrorDocument, description = "The name is the configuration's or the watched directory's"),
        (status = 422, body = InvalidDocument, description = "A path that is not listed, or files that are no usable adapter"),
        (status = 503, body = ErrorDocument, description = "No worker of the base model has joined yet; see Retry-After")
    )
)]
pub(in crate::http) async fn register(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Adapter>, ApiError> {
    let RegisterRequest { name, path, model } = validate::register(&body)?;
    let listing = from_path(&app, (name, model), path, &Places::OF_REGISTER).await?;
    Ok(Json(Adapter::new(&app, listing)))
}

/// Registers the adapter at `path` of this machine.
pub(super) async fn from_path(
    app: &App,
    (name, model): (Name, Option<Name>),
    path: String,
    places: &Places,
) -> Result<Listing, ApiError> {
    let allowed = app.adapters.allowed().clone();
    let resolved = spawn_blocking(move || allowed.resolve(&path)).await.map_err(|_| ApiError::Internal)?;
    let path = resolved.map_err(|refused| fault(places.files, FaultKind::Value, refused.to_string()))?;
    let registered = app.adapters.register(by_request(name.clone(), model), Payload::Directory(path)).await;
    registered.map_err(|error| refusal(error, &name, places))
}
