//! The requests to a router. Blocking: there is nothing else to do meanwhile.

use std::time::Duration;

use shoal_common::ids::Name;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::document::{Cluster, ErrorDocument};

/// For a router to answer: it only reads memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Longest answer in bytes: some thousand workers.
const MAX_ANSWER: u64 = 16 << 20;

/// Why a router could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperateError {
    #[error("{0} is no URL of a router: write it as http://127.0.0.1:8080")]
    BadUrl(String),
    #[error("the router at {url} cannot be reached")]
    Unreachable { url: String, source: Box<ureq::Error> },
    #[error("the router at {url} answers {status}: {message}")]
    Refused { url: String, status: StatusCode, message: String },
    #[error("what answers at {url} is no router of this version")]
    NotARouter { url: String, source: serde_json::Error },
    #[error("{0} serves: the order to drain was taken back")]
    NotDraining(Name),
    #[error("requests still ran on {worker} after {} s; it goes on draining", .within.as_secs())]
    StillRunning { worker: Name, within: Duration },
}

/// What a worker can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Drain,
    Undrain,
}

/// A router's HTTP address.
pub(super) struct Router {
    agent: Agent,
    url: String,
}

impl Router {
    /// The router at `url`; the path of OpenAI's base URLs (`/v1`) may follow.
    pub(super) fn new(url: &str) -> Result<Self, OperateError> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/');
        let has_scheme =
            ["http://", "https://"].iter().any(|scheme| base.len() > scheme.len() && base.starts_with(scheme));
        if !has_scheme {
            return Err(OperateError::BadUrl(url.to_owned()));
        }
        let agent = Agent::config_builder()
            .timeout_global(Some(ANSWER_WITHIN))
            .http_status_as_error(false)
            // The router is near; and through a proxy it would not take orders.
            .proxy(None)
            .build()
            .new_agent();
        Ok(Self { agent, url: base.to_owned() })
    }

    /// The cluster as it sees it.
    pub(super) fn cluster(&self) -> Result<Cluster, OperateError> {
        let answer = self.agent.get(format!("{}/v1/cluster", self.url)).call();
        self.read(answer)
    }

    /// Orders a worker.
    pub(super) fn order(&self, worker: &Name, order: Order) -> Result<(), OperateError> {
        let verb = match order {
            Order::Drain => "drain",
            Order::Undrain => "undrain",
        };
        // All that a name can hold and a path component cannot.
        let worker = worker.as_str().replace('/', "%2F");
        let answer = self.agent.post(format!("{}/v1/cluster/workers/{worker}/{verb}", self.url)).send_empty();
        self.read::<serde_json::Value>(answer).map(drop)
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<T, OperateError> {
        let unreachable = |source| OperateError::Unreachable { url: self.url.clone(), source: Box::new(source) };
        let mut answer = answer.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string().map_err(unreachable)?;
        if !status.is_success() {
            let message =
                serde_json::from_str(&text).map_or_else(|_| "no reason given".to_owned(), ErrorDocument::message);
            return Err(OperateError::Refused { url: self.url.clone(), status, message });
        }
        serde_json::from_str(&text).map_err(|source| OperateError::NotARouter { url: self.url.clone(), source })
    }
}
