//! `GET /v1/models` and `GET /v1/models/{id}`: what is served, in OpenAI's list shape.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use shoal_common::ids::Name;
use utoipa::ToSchema;

use super::error::{ApiError, ErrorDocument};
use super::path::PathName;
use crate::adapters::{Listing, State as AdapterState};
use crate::app::App;
use crate::catalogue::ServedModel;

/// All served models and adapters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    object: &'static str,
    /// By name.
    data: Vec<Model>,
}

/// A served model, or an adapter.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model {
    /// The name for `model`.
    id: String,
    /// Always `model`.
    #[schema(example = "model")]
    object: &'static str,
    /// Unix seconds at which this router first saw it.
    created: u64,
    /// Always `shoal`.
    #[schema(example = "shoal")]
    owned_by: &'static str,
    /// The base model's name.
    root: String,
    /// For an adapter, its base model; `null` for a model.
    parent: Option<String>,
    /// Longest sequence in tokens, prompt and answer together.
    max_model_len: u32,
    /// Identity of its answers.
    system_fingerprint: String,
}

impl From<&ServedModel> for Model {
    fn from(model: &ServedModel) -> Self {
        Self {
            id: model.card.name.to_string(),
            object: "model",
            created: model.created,
            owned_by: "shoal",
            root: model.card.name.to_string(),
            parent: None,
            max_model_len: model.card.context,
            system_fingerprint: model.card.fingerprint.to_string(),
        }
    }
}

impl Model {
    /// An adapter as a model of its own, where requests may have it and its base model is known.
    fn of_adapter(app: &App, listing: &Listing) -> Option<Self> {
        let version = listing.version.as_ref().filter(|_| listing.state == AdapterState::Ready)?;
        let base = app.catalogue.model(&version.base)?;
        Some(Self {
            id: listing.name.to_string(),
            created: version.created,
            parent: Some(version.base.to_string()),
            system_fingerprint: base.card.fingerprint_with(Some(version.generation)).to_string(),
            ..Self::from(&*base)
        })
    }
}

/// Lists the served models, and the adapters that stand for their base model with them.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = ModelList)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    let models = app.catalogue.models();
    let adapters = app.adapters.list();
    // A name that both have is the model's.
    let adapters = adapters.iter().filter(|adapter| models.iter().all(|model| model.card.name != adapter.name));
    let adapters = adapters.filter_map(|adapter| Model::of_adapter(&app, adapter));
    let data = models.iter().map(|model| Model::from(&**model)).chain(adapters).collect();
    Json(ModelList { object: "list", data })
}

/// Describes one model or adapter. Names may hold slashes.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "models", params(("id" = String, Path, description = "The model's name")),
    responses((status = 200, body = Model), (status = 404, body = ErrorDocument))
)]
pub(super) async fn one(State(app): State<Arc<App>>, PathName(id): PathName) -> Result<Json<Model>, ApiError> {
    // What is no name cannot be echoed, and nothing is served under it.
    let name = Name::new(id).map_err(|_| ApiError::NotFound)?;
    if let Some(model) = app.catalogue.model(&name) {
        return Ok(Json(Model::from(&*model)));
    }
    let adapter = app.adapters.listing(&name).and_then(|listing| Model::of_adapter(&app, &listing));
    adapter.map(Json).ok_or_else(|| app.unknown_model(&name))
}
