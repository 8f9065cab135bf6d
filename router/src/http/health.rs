//! `GET /livez`, `GET /readyz`: whether the process runs, and whether it can answer requests.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::catalogue::Readiness;

/// The state of the server.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `ready` or `not_ready`.
    status: &'static str,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Answers as long as the process runs.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = Health)))]
pub(super) async fn live() -> Json<Health> {
    Json(Health { status: "ok", reason: None })
}

/// 200 if requests can be answered, else 503 and why not.
#[utoipa::path(
    get, path = "/readyz", tag = "health", responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    match app.catalogue.readiness() {
        Readiness::Ready => (StatusCode::OK, Json(Health { status: "ready", reason: None })),
        Readiness::NotReady { reason } => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "not_ready", reason: Some(reason) }))
        }
    }
}
