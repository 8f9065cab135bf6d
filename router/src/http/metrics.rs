//! `GET /metrics`: what the process counts, in Prometheus' text format.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::app::App;

/// Upper bounds of the buckets of every time, in seconds: from a router's own work to a long answer.
pub(crate) const SECONDS: [f64; 12] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Says what each metric means, for the `HELP` lines. Those of the worker show where router and worker share a process.
pub(crate) fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    counter!("shoal_http_requests_total", "HTTP requests answered, by route, method and status");
    histogram!("shoal_request_seconds", "Completions from arrival to their end, in seconds");
    counter!("shoal_prompt_tokens_total", "Prompt tokens of completions");
    counter!("shoal_completion_tokens_total", "Tokens generated, all candidates counted");
    counter!("shoal_route_total", "Groups sent to a worker, by the reason it was chosen");
    counter!("shoal_replays_total", "Groups that went on elsewhere because their worker was lost");
    counter!("shoal_replays_refused_total", "Groups that were given up when their worker was lost, by reason");
    counter!("shoal_worker_stalls_total", "Times that a worker's engine stood still, by worker");
    counter!("shoal_workers_refused_total", "Connections of workers that were not taken");
    counter!("shoal_prompt_log_dropped_total", "Lines that the prompt log had no room for");
    counter!("shoal_prompt_log_failed_total", "Lines that the prompt log could not write");
    counter!("shoal_adapter_uploads_total", "Uploads of adapters, by outcome");
    counter!("shoal_adapter_blob_bytes_total", "Bytes of adapters sent to workers");
    counter!("shoal_adapter_hints_total", "Workers that asked who is nearer, by whether the router or peers are");
    counter!("shoal_adapter_hints_in_vain_total", "Adapters fetched here though nearer peers were named");
    counter!("shoal_adapter_blobs_not_found_total", "Adapters that workers asked for and that are not here");
    gauge!("shoal_adapters", "Adapters registered, by state");
    gauge!("shoal_replicas", "Workers connected");
    gauge!("shoal_worker_sequences_running", "Sequences that hold KV, by worker");
    gauge!("shoal_worker_groups_waiting", "Groups that wait for room, by worker");
    gauge!("shoal_worker_tokens_queued", "Tokens still to be computed at most, by worker");
    gauge!("shoal_worker_kv_tokens_used", "Tokens of KV in blocks that sequences hold, by worker");
    gauge!("shoal_worker_prefix_tokens_looked_up", "Tokens looked for in the prefix cache since the start, by worker");
    gauge!("shoal_worker_prefix_tokens_cached", "Tokens found in the prefix cache since the start, by worker");
    gauge!("shoal_worker_sequences_preempted", "Sequences that gave their KV to others since the start, by worker");
    gauge!("shoal_stage_connected", "1 where a stage of a split model is connected to its head, by head and stage");
    gauge!("shoal_stage_steps", "Steps that a stage has computed since its head started, by head and stage");
    gauge!("shoal_stage_computing_seconds", "Time that they took there, by head and stage");
    gauge!("shoal_stage_busy_share", "Share of the last second in which a stage computed, by head and stage");
    counter!("shoal_worker_steps_total", "Steps of the engine");
    histogram!("shoal_worker_step_seconds", "Steps of the engine, in seconds");
    counter!("shoal_worker_tokens_total", "Tokens computed, by phase");
    counter!("shoal_worker_prefix_lookup_tokens_total", "Tokens looked for in the prefix cache");
    counter!("shoal_worker_prefix_hit_tokens_total", "Tokens found in the prefix cache");
    counter!("shoal_worker_preemptions_total", "Sequences that gave their KV to others and were computed again");
    counter!("shoal_worker_adapter_acquires_total", "Groups that asked for an adapter, by where it was");
    counter!("shoal_worker_adapter_loads_total", "Adapters fetched or read into memory, by outcome");
    counter!("shoal_worker_adapter_fetches_total", "Adapters fetched, by from whom");
    counter!("shoal_worker_adapter_fetch_failures_total", "Adapters not fetched, by from whom and why");
    counter!("shoal_worker_adapters_lent_total", "Adapters that other workers asked for, by outcome");
    histogram!("shoal_worker_adapter_load_seconds", "Adapters fetched or read into memory, in seconds");
    counter!("shoal_worker_adapter_evictions_total", "Adapters that made room for others, by tier");
    counter!("shoal_worker_groups_failed_total", "Groups given up, by reason");
}

/// All metrics of the process.
#[utoipa::path(
    get, path = "/metrics", tag = "health", responses((status = 200, body = String, content_type = "text/plain; version=0.0.4"))
)]
pub(super) async fn render(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}
