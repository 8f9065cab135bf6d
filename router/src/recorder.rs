//! What a process counts: its one recorder, with the metrics' names and meanings, and [`MetricsServer`] for a process that
//! serves nothing else over HTTP. Where a router runs, its own `GET /metrics` shows them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shoal_common::config::Limits;
use shoal_common::shutdown;
use tokio::net::TcpListener;

use crate::http::foreign::{self, HostPolicy};
use crate::http::metrics::render;
use crate::http::server;
use crate::run::RouterError;

/// Upper bounds of the buckets of every time, in seconds: from a router's own work to a long answer.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Some thousand samples of 8 bytes come together in between on a busy machine.
const FOLD_SAMPLES_EVERY: Duration = Duration::from_secs(5);

/// Connections that ask for metrics at once: a scraper or two, and somebody who looks.
const CONNECTIONS: usize = 16;

/// The process's metrics recorder: one, however many parts run in it.
pub(crate) fn recorder() -> Result<PrometheusHandle, RouterError> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        // Buckets, not quantiles: those of several routers cannot be added up.
        let recorder = PrometheusBuilder::new().set_buckets(&SECONDS).ok()?.install_recorder().ok()?;
        describe();
        Some(recorder)
    };
    RECORDER.get_or_init(install).clone().ok_or(RouterError::Metrics)
}

/// Folds the samples of histograms into their buckets now and then: the recorder keeps each one until somebody asks for the
/// metrics, and that may be nobody.
pub(crate) async fn fold_samples(metrics: PrometheusHandle) -> Infallible {
    let mut ticks = tokio::time::interval(FOLD_SAMPLES_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

/// `GET /metrics` by itself, for a worker's process.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    metrics: PrometheusHandle,
}

impl MetricsServer {
    /// Listens at `address`. What the process counts from now on is kept.
    ///
    /// # Errors
    /// The address is taken, or not this machine's; the process has another recorder.
    pub async fn bind(address: SocketAddr) -> Result<Self, RouterError> {
        let listener = TcpListener::bind(address).await.map_err(|source| RouterError::Http { address, source })?;
        Ok(Self { listener, metrics: recorder()? })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket's own.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped. On loopback, web pages of elsewhere are refused as a router refuses them.
    ///
    /// # Errors
    /// The socket's own, before anything is answered.
    pub async fn serve(self) -> std::io::Result<Infallible> {
        let hosts = HostPolicy::for_address(self.address()?);
        let paths = Router::new()
            .route("/metrics", get(render))
            .layer(from_fn_with_state(hosts, foreign::refuse))
            .with_state(self.metrics.clone());
        let limits = Limits { connections: CONNECTIONS, ..Limits::default() };
        let (_open, never) = shutdown::channel();
        tokio::select! {
            () = server::serve(self.listener, paths, &limits, Duration::ZERO, never) => unreachable!("nobody shuts it down"),
            never = fold_samples(self.metrics) => match never {},
        }
    }
}

/// Says what each metric means, for the `HELP` lines: those of the router, then those of a worker.
fn describe() {
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
    counter!(
        "shoal_adapter_orders_dropped_total",
        "Orders about adapters that a worker was not told, as it has many waiting"
    );
    counter!("shoal_adapter_loads_ahead_total", "Workers told to load an adapter before anybody asks them for it");
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_process_without_a_router_shows_what_it_counts_and_nothing_else() {
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.address().unwrap();
        let _serving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(server.serve()));
        metrics::counter!("shoal_worker_steps_total").increment(1);
        let answer = get(address, "/metrics", "localhost").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("\n# HELP shoal_worker_steps_total Steps of the engine\n"), "{answer}");
        assert!(get(address, "/v1/models", "localhost").await.starts_with("HTTP/1.1 404"));
        assert!(get(address, "/metrics", "evil.example").await.starts_with("HTTP/1.1 403"));
    }
}
