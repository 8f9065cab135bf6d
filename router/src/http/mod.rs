//! The HTTP side of the router: [`router`] says which path is answered where, the files beside it do one thing each.
//!
//! A request passes, from the outside in: [`server`] (sockets, header limits), [`trace`] (id, span, count), [`foreign`]
//! (loopback only: whose page sent it), then its handler, which takes the body through [`body`] and `validate`. Whatever
//! goes wrong is an [`error::ApiError`].

mod adapters;
pub mod body;
mod cluster;
pub mod completions;
pub mod error;
pub mod fault;
pub mod foreign;
mod health;
pub(crate) mod metrics;
mod models;
pub mod openapi;
pub mod operator;
mod path;
pub mod report;
pub mod request_doc;
pub mod schema;
pub mod server;
pub mod sse;
mod tokenize;
pub mod trace;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

use self::error::ApiError;
use crate::app::App;

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/cluster", get(cluster::show))
        .route("/v1/cluster/workers/{id}/drain", post(cluster::drain))
        .route("/v1/cluster/workers/{id}/undrain", post(cluster::undrain))
        .route("/v1/adapters", get(adapters::list).post(adapters::register::register))
        .route("/v1/adapters/{*id}", get(adapters::one).put(adapters::upload::upload).delete(adapters::remove))
        .route("/v1/load_lora_adapter", post(adapters::vllm::load))
        .route("/v1/unload_lora_adapter", post(adapters::vllm::unload))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::render).with_state(app.metrics.clone()))
        .route("/openapi.json", get(openapi::serve))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(from_fn_with_state(app.hosts, foreign::refuse))
        .layer(from_fn(trace::follow))
        .with_state(app)
}

#[cfg(test)]
pub(crate) mod tests;
