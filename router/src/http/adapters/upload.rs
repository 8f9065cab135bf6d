//! `PUT /v1/adapters/{id}`: takes an adapter's two files off the wire, and registers them under the name. What is refused
//! whatever the files hold is refused before they are taken.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::HeaderMap;
use axum::http::header::EXPECT;
use serde::Deserialize;
use shoal_common::ids::Name;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::by_request;
use super::document::Adapter;
use super::parts::{Parts, Rules};
use super::refusal::{Places, fault, refusal};
use crate::adapters::intake::Payload;
use crate::adapters::spool::{Spool, SpoolError};
use crate::adapters::{Listing, Order};
use crate::app::App;
use crate::http::body;
use crate::http::error::{ApiError, BusyReason, ErrorDocument, FaultKind, InvalidDocument};
use crate::http::path::PathName;
use crate::resolve::ADAPTER_WAIT;

/// The query of an upload.
#[derive(Debug, Deserialize)]
pub(in crate::http) struct UploadQuery {
    model: Option<String>,
}

/// `PUT /v1/adapters/{id}` as documented.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = UploadedAdapter)]
#[expect(dead_code, reason = "describes the request in /openapi.json; `parts` takes it off the wire")]
pub(in crate::http) struct UploadDoc {
    /// PEFT's configuration.
    #[serde(rename = "adapter_config.json")]
    #[schema(format = Binary)]
    config: String,
    /// PEFT's weights.
    #[serde(rename = "adapter_model.safetensors")]
    #[schema(format = Binary)]
    weights: String,
}

/// Uploads an adapter, or replaces one: requests that run with the old content end with it.
#[utoipa::path(
    put, path = "/v1/adapters/{id}", tag = "adapters",
    params(
        ("id" = String, Path, description = "The adapter's name"),
        ("model" = Option<String>, Query, description = "Its base model; may be left out where there is only one, or where the adapter's configuration names it")
    ),
    request_body(content = UploadDoc, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = Adapter),
        (status = 400, body = ErrorDocument, description = "Not multipart/form-data throughout"),
        (status = 409, body = ErrorDocument, description = "The name is the configuration's or the watched directory's"),
        (status = 413, body = ErrorDocument, description = "More than limits.adapter_bytes"),
        (status = 415, body = ErrorDocument, description = "Not multipart/form-data by its type"),
        (status = 422, body = InvalidDocument, description = "Files that are no usable adapter"),
        (status = 503, body = ErrorDocument, description = "No worker of the base model has joined yet, or too many uploads; see Retry-After")
    )
)]
pub(in crate::http) async fn upload(
    State(app): State<Arc<App>>,
    PathName(id): PathName,
    query: Result<Query<UploadQuery>, QueryRejection>,
    request: Request,
) -> Result<Json<Adapter>, ApiError> {
    let (head, mut body) = request.into_parts();
    let outcome = match admit(&app, id, query, &head.headers).await {
        Ok(admitted) => take(&app, admitted, &mut body).await,
        Err(error) => {
            // Who waits to be told to go on has not begun to send.
            let waits = head.headers.contains_key(EXPECT);
            Err(Refused { error, reading: if waits { Reading::Over } else { Reading::Cut } })
        }
    };
    let word = if outcome.is_ok() { "registered" } else { "refused" };
    metrics::counter!("shoal_adapter_uploads_total", "outcome" => word).increment(1);
    match outcome {
        Ok(listing) => Ok(Json(Adapter::new(&app, listing))),
        Err(Refused { error, reading }) => {
            if reading == Reading::Cut {
                // A client that still sends would otherwise lose the answer with its connection.
                body::linger(&mut body).await;
            }
            Err(error)
        }
    }
}

/// An upload that is not registered.
struct Refused {
    error: ApiError,
    reading: Reading,
}

/// Whether its body was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Over,
    Cut,
}

/// An upload whose body may be taken.
struct Admitted {
    order: Order,
    boundary: String,
    rules: Rules,
    spool: Spool,
}

fn order(id: String, query: Result<Query<UploadQuery>, QueryRejection>) -> Result<Order, ApiError> {
    let name = |text: String, place| Name::new(text).map_err(|bad| fault(place, FaultKind::Pattern, bad.to_string()));
    let places = Places::OF_UPLOAD;
    let Query(query) = query.map_err(|_| fault(places.model, FaultKind::Value, "must be one name"))?;
    let base = query.model.map(|model| name(model, places.model)).transpose()?;
    Ok(by_request(name(id, places.name)?, base))
}

/// Judges everything but the files.
async fn admit(
    app: &App,
    id: String,
    query: Result<Query<UploadQuery>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Admitted, ApiError> {
    let order = order(id, query)?;
    let boundary = body::boundary(headers)?;
    let rules = Rules { limit: app.adapters.adapter_bytes(), patience: app.limits.body_timeout };
    rules.declared(body::declared_length(headers) as u64)?;
    app.adapters.may(&order).map_err(|error| refusal(error, &order.name, &Places::OF_UPLOAD))?;
    let adapters = app.adapters.clone();
    let spool = spawn_blocking(move || adapters.spool()).await.map_err(|_| ApiError::Internal)?;
    let spool = spool.map_err(|error| match error {
        SpoolError::Busy => ApiError::Busy { retry_after: ADAPTER_WAIT, reason: BusyReason::Uploads },
        SpoolError::Io(error) => {
            tracing::error!(%error, "an upload cannot be stored");
            ApiError::Internal
        }
    })?;
    Ok(Admitted { order, boundary, rules, spool })
}

/// Takes the files and registers them.
async fn take(app: &App, admitted: Admitted, body: &mut Body) -> Result<Listing, Refused> {
    let Admitted { order, boundary, rules, spool } = admitted;
    let parts = Parts::receive(body, boundary, rules, spool).await;
    let Parts { config, weights } = parts.map_err(|error| Refused { error, reading: Reading::Cut })?;
    let name = order.name.clone();
    let registered = app.adapters.register(order, Payload::Upload { config, weights }).await;
    registered.map_err(|error| Refused { error: refusal(error, &name, &Places::OF_UPLOAD), reading: Reading::Over })
}
