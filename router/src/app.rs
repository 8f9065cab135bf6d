//! What every HTTP handler may reach: limits, the catalogue of served models, the metrics and the prompt log. The router
//! builds one [`App`] at start; handlers share it behind an `Arc` and never change it.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use shoal_common::ambient;
use shoal_common::block_hash::CacheSalt;
use shoal_common::config::{ApiConfig, Limits};
use shoal_common::ids::Name;
use shoal_common::shutdown::Shutdown;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::adapters::Registry;
use crate::catalogue::Catalogue;
use crate::dispatch::Dispatcher;
use crate::http::error::{ApiError, BusyReason};
use crate::http::foreign::HostPolicy;
use crate::operations::Operations;
use crate::prompt_log::PromptLog;

/// When to ask a router again that no worker has joined yet: workers dial again within this time.
const FIRST_WORKER_WAIT: Duration = Duration::from_secs(2);

/// Wait for a tokenising thread at most: a prompt takes milliseconds, so a second is a queue of hundreds.
const TEXT_WAIT: Duration = Duration::from_secs(1);

/// Shared by all handlers.
pub struct App {
    /// What a request may cost.
    pub limits: Limits,
    /// Choices in the contract.
    pub api: ApiConfig,
    /// Which host names the server answers to.
    pub hosts: HostPolicy,
    /// Whose cached prefixes requests may meet: one for all, as long as there are no API keys to tell tenants apart.
    pub cache_salt: CacheSalt,
    /// What is served.
    pub catalogue: Arc<dyn Catalogue>,
    /// The adapters.
    pub adapters: Registry,
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Where `log_prompt: true` goes.
    pub prompt_log: PromptLog,
    /// Sends groups to workers.
    pub dispatcher: Dispatcher,
    /// One permit per request that is served: `limits.requests`.
    pub requests: Arc<Semaphore>,
    /// Fires when the drain is over: what still runs is cut.
    pub cut: Shutdown,
    /// Texts that are tokenised at once: one per core is all that helps. See [`App::on_text_thread`].
    pub text_threads: Arc<Semaphore>,
    /// What an operator sees and orders.
    pub operations: Operations,
}

impl App {
    /// What to say of a name that is no model's: the 404 that lists what there is.
    pub fn unknown_model(&self, name: &Name) -> ApiError {
        let served: Vec<Name> = self.catalogue.models().iter().map(|model| model.card.name.clone()).collect();
        if served.is_empty() {
            // Nobody knows yet what this cluster serves: a router that has just started must not say "never".
            return ApiError::Unavailable { retry_after: FIRST_WORKER_WAIT };
        }
        ApiError::ModelNotFound { model: name.clone(), served }
    }

    /// Runs tokenisation off the runtime, on as many threads as [`App::text_threads`] has permits. A caller waits
    /// a second at most and is then told that the router is busy.
    pub async fn on_text_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let busy = |_| ApiError::Busy { retry_after: TEXT_WAIT, reason: BusyReason::Tokenizers };
        let permit = timeout(TEXT_WAIT, Arc::clone(&self.text_threads).acquire_owned()).await.map_err(busy)?;
        // The permit goes with the work: a caller that leaves does not free the thread.
        let done = ambient::off_runtime(move || {
            let _permit = permit;
            work()
        });
        done.await.map_err(|_| ApiError::Internal)
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("limits", &self.limits).field("api", &self.api).finish_non_exhaustive()
    }
}
