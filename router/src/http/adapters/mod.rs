//! `/v1/adapters`: what there is, and how a request registers, replaces and removes it. One file each: by a path of the server
//! ([`register`]), by an upload ([`upload`], whose body [`parts`] takes off the wire), as vLLM does it ([`vllm`]).
//! [`document`] is how an adapter is told, [`refusal`] why it is not taken.

pub(super) mod document;
pub(super) mod parts;
mod refusal;
pub(super) mod register;
pub(super) mod upload;
pub(super) mod vllm;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use shoal_common::config::Pinning;
use shoal_common::ids::Name;
use utoipa::ToSchema;

use self::document::{Adapter, AdapterList};
use self::refusal::{Places, refusal};
use super::error::{ApiError, ErrorDocument};
use super::path::PathName;
use crate::adapters::{Order, Origin, Source};
use crate::app::App;

/// The answer of `DELETE /v1/adapters/{id}`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RemovedAdapter {
    /// Its name.
    id: String,
    /// Always `adapter`.
    #[schema(example = "adapter")]
    object: &'static str,
    /// Always `true`. Requests that run with it go on.
    deleted: bool,
}

/// Lists the adapters, those that cannot be used too, with the reason.
#[utoipa::path(get, path = "/v1/adapters", tag = "adapters", responses((status = 200, body = AdapterList)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<AdapterList> {
    Json(AdapterList::new(&app))
}

/// Describes one adapter. Names may hold slashes.
#[utoipa::path(
    get, path = "/v1/adapters/{id}", tag = "adapters", params(("id" = String, Path, description = "The adapter's name")),
    responses((status = 200, body = Adapter), (status = 404, body = ErrorDocument))
)]
pub(super) async fn one(State(app): State<Arc<App>>, PathName(id): PathName) -> Result<Json<Adapter>, ApiError> {
    let name = known_name(id)?;
    let listing = app.adapters.listing(&name);
    let listing = listing.ok_or(ApiError::AdapterNotFound { adapter: name, param: "id" })?;
    Ok(Json(Adapter::new(&app, listing)))
}

/// Removes an adapter that a request registered.
#[utoipa::path(
    delete, path = "/v1/adapters/{id}", tag = "adapters", params(("id" = String, Path, description = "The adapter's name")),
    responses(
        (status = 200, body = RemovedAdapter),
        (status = 404, body = ErrorDocument),
        (status = 409, body = ErrorDocument, description = "The adapter comes from the configuration or the watched directory")
    )
)]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    PathName(id): PathName,
) -> Result<Json<RemovedAdapter>, ApiError> {
    let name = known_name(id)?;
    remove_by_request(&app, &name, &Places::OF_UPLOAD).await?;
    Ok(Json(RemovedAdapter { id: name.to_string(), object: "adapter", deleted: true }))
}

async fn remove_by_request(app: &App, name: &Name, places: &Places) -> Result<(), ApiError> {
    app.adapters.remove(name.clone(), Source::Api).await.map_err(|error| refusal(error, name, places))
}

/// What is no name cannot be echoed, and there is no adapter of it.
fn known_name(id: String) -> Result<Name, ApiError> {
    Name::new(id).map_err(|_| ApiError::NotFound)
}

/// The order of a request.
fn by_request(name: Name, base: Option<Name>) -> Order {
    Order { name, origin: Origin { source: Source::Api, pinning: Pinning::Evictable, stamp: None }, base }
}

#[cfg(test)]
mod tests;
