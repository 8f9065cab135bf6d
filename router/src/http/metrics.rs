//! `GET /metrics`: what the process counts, in Prometheus' text format.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use metrics_exporter_prometheus::PrometheusHandle;

/// All metrics of the process.
#[utoipa::path(
    get, path = "/metrics", tag = "health", responses((status = 200, body = String, content_type = "text/plain; version=0.0.4"))
)]
pub(crate) async fn render(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}
