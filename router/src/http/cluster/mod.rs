//! `GET /v1/cluster`: the cluster as this router sees it; `POST /v1/cluster/workers/{id}/drain` and `.../undrain`: orders to
//! a worker. What is told is in [`document`], who may order in [`super::operator`].

mod document;
mod stage;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use shoal_common::ambient;
use shoal_common::ids::Name;
use utoipa::ToSchema;

use super::error::{ApiError, ErrorDocument};
use super::operator::Operator;
use super::path::PathName;
use crate::app::App;
use crate::operations::drains::Duty;
use document::{Cluster, Worker};

/// What became of an order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ordered {
    /// The worker as it is now: it follows within a moment, and is `drained` once nothing of this router runs on it.
    worker: Option<Worker>,
}

/// The cluster as this router sees it: its workers with their load, its models, and what went wrong with workers lately.
#[utoipa::path(get, path = "/v1/cluster", tag = "cluster", responses((status = 200, body = Cluster)))]
pub(super) async fn show(State(app): State<Arc<App>>) -> Json<Cluster> {
    Json(Cluster::of(&app.operations, ambient::now()))
}

/// Gives a worker no more groups of this router; what runs goes on to its end. Other routers are not concerned. The order
/// stands until it is taken back or the worker is started again. Taken from the router's own machine only.
#[utoipa::path(
    post, path = "/v1/cluster/workers/{id}/drain", tag = "cluster",
    params(("id" = String, Path, description = "The worker's name; a slash in it is %2F")),
    responses(
        (status = 200, body = Ordered),
        (status = 403, body = ErrorDocument, description = "Not from the router's own machine"),
        (status = 404, body = ErrorDocument, description = "No such worker is connected")
    )
)]
pub(super) async fn drain(
    operator: Operator,
    State(app): State<Arc<App>>,
    PathName(id): PathName,
) -> Result<Json<Ordered>, ApiError> {
    order(operator, &app, id, Duty::Drain)
}

/// Takes a drain back: the worker gets groups again.
#[utoipa::path(
    post, path = "/v1/cluster/workers/{id}/undrain", tag = "cluster",
    params(("id" = String, Path, description = "The worker's name; a slash in it is %2F")),
    responses(
        (status = 200, body = Ordered),
        (status = 403, body = ErrorDocument, description = "Not from the router's own machine"),
        (status = 404, body = ErrorDocument, description = "No such worker is connected")
    )
)]
pub(super) async fn undrain(
    operator: Operator,
    State(app): State<Arc<App>>,
    PathName(id): PathName,
) -> Result<Json<Ordered>, ApiError> {
    order(operator, &app, id, Duty::Serve)
}

fn order(_by: Operator, app: &App, id: String, duty: Duty) -> Result<Json<Ordered>, ApiError> {
    // What is no name cannot be echoed, and no worker has it.
    let worker = Name::new(id).map_err(|_| ApiError::NotFound)?;
    let operations = &app.operations;
    operations.drains.order(&worker, duty).map_err(|_| {
        let connected = operations.view.now().replicas.iter().map(|replica| replica.worker.clone()).collect();
        ApiError::WorkerNotFound { worker: worker.clone(), connected }
    })?;
    tracing::info!(%worker, ?duty, "a worker was ordered");
    let shown = Cluster::of(operations, ambient::now()).worker(&worker);
    Ok(Json(Ordered { worker: shown }))
}
