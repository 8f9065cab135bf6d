//! What a router answers, as far as it is used here. Fields of later versions are passed over.

use serde::Deserialize;

/// `GET /v1/cluster`
#[derive(Debug, Deserialize)]
pub(super) struct Cluster {
    pub(super) name: String,
    pub(super) router: RouterFacts,
    pub(super) workers: Vec<Worker>,
    pub(super) incidents: Vec<Incident>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RouterFacts {
    pub(super) incarnation: String,
    pub(super) build: String,
    pub(super) protocol: String,
    pub(super) uptime_s: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) incarnation: String,
    pub(super) build: String,
    pub(super) address: Option<String>,
    pub(super) state: String,
    pub(super) model: Model,
    pub(super) load: Option<Load>,
    pub(super) capacity: Capacity,
    pub(super) progress_ms: u64,
    #[serde(default)]
    pub(super) stages: Vec<Stage>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Stage {
    pub(super) worker: String,
    pub(super) state: String,
    pub(super) incarnation: Option<String>,
    pub(super) address: Option<String>,
    pub(super) layers: [u32; 2],
    pub(super) reason: Option<String>,
    pub(super) busy: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) layers: [u32; 2],
}

#[derive(Debug, Deserialize)]
pub(super) struct Load {
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) kv_used: u64,
    pub(super) tokens_per_second: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Capacity {
    pub(super) kv_tokens: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Incident {
    pub(super) event: String,
    pub(super) worker: Option<String>,
    pub(super) address: String,
    pub(super) cause: String,
    pub(super) why: String,
    pub(super) advice: Option<String>,
    pub(super) times: u64,
    pub(super) seconds_ago: u64,
}

/// The body of an error.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorDocument {
    error: ErrorBody,
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    message: String,
}

impl ErrorDocument {
    pub(super) fn message(self) -> String {
        self.error.message
    }
}
