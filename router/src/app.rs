//! What every HTTP handler may reach: limits, the catalogue of served models, the metrics and the prompt log. The router
//! builds one [`App`] at start; handlers share it behind an `Arc` and never change it.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use shoal_common::config::{ApiConfig, Limits};
use shoal_common::ids::Name;
use shoal_common::shutdown::Shutdown;
use shoal_common::wire::hello::ModelCard;
use tokio::sync::Semaphore;

use crate::dispatch::Dispatcher;
use crate::http::foreign::HostPolicy;
use crate::prompt_log::PromptLog;
use crate::text::Tokenizer;
use crate::text::pool::TextPool;

/// A model that clients may ask for.
#[derive(Debug)]
pub struct ServedModel {
    /// As its workers describe it.
    pub card: ModelCard,
    /// Its text.
    pub tokenizer: Arc<Tokenizer>,
    /// Unix seconds at which this router first saw it.
    pub created: u64,
}

/// Whether requests can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// At least one model has a worker that takes groups.
    Ready,
    /// None has, or the router is draining.
    NotReady {
        /// Which, in words for `/readyz`.
        reason: &'static str,
    },
}

/// What is served. Implemented over the fleet's snapshot: a call reads memory and never waits.
pub trait Catalogue: Send + Sync {
    /// All models, by name.
    fn models(&self) -> Vec<Arc<ServedModel>>;

    /// One model.
    fn model(&self, name: &Name) -> Option<Arc<ServedModel>>;

    /// Whether requests can be answered.
    fn readiness(&self) -> Readiness;
}

/// Shared by all handlers.
pub struct App {
    /// What a request may cost.
    pub limits: Limits,
    /// Choices in the contract.
    pub api: ApiConfig,
    /// Which host names the server answers to.
    pub hosts: HostPolicy,
    /// What is served.
    pub catalogue: Arc<dyn Catalogue>,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Where `log_prompt: true` goes.
    pub prompt_log: PromptLog,
    /// Sends groups to workers.
    pub dispatcher: Dispatcher,
    /// Where tokenisation runs.
    pub texts: TextPool,
    /// One permit per request that is served: `limits.requests`.
    pub requests: Arc<Semaphore>,
    /// Fires when the drain is over: what still runs is cut.
    pub cut: Shutdown,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("limits", &self.limits).field("api", &self.api).finish_non_exhaustive()
    }
}
