//! An adapter as JSON.

use serde::Serialize;
use shoal_common::config::Pinning;
use shoal_common::wire::hello::AdapterTier;
use utoipa::ToSchema;

use crate::adapters::{Listing, WorkerAdapter};
use crate::app::App;

/// All adapters.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AdapterList {
    /// Always `list`.
    #[schema(example = "list")]
    object: &'static str,
    /// By name.
    data: Vec<Adapter>,
}

/// An adapter: a name, what it points at, and where that is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Adapter {
    /// The name for `peft`, or for `model`.
    id: String,
    /// Always `adapter`.
    #[schema(example = "adapter")]
    object: &'static str,
    /// Its base model; `null` while that is not known.
    model: Option<String>,
    /// `ready`, `pending` (it waits for a worker of its base model, or for its turn) or `quarantined`.
    state: &'static str,
    /// Why it is not ready. For one that is ready: why its newest files are not what is served.
    reason: Option<String>,
    /// Who registered it: `api`, `directory` (the watched one) or `config`.
    source: &'static str,
    /// Whether workers keep it in memory, whatever else is asked for.
    pinned: bool,
    /// Identity of its content, in hex; `null` where there is none that can be used.
    generation: Option<String>,
    /// What the name pointed at before.
    previous: Option<String>,
    /// Largest rank of an update.
    rank: Option<u32>,
    /// Bytes of its two files.
    bytes: Option<u64>,
    /// Unix seconds at which the name was pointed at this content.
    created: Option<u64>,
    /// Identity of the answers with it; `null` while no worker of the base model has joined.
    system_fingerprint: Option<String>,
    /// Where it is, and where its previous content still is.
    workers: Vec<AdapterOnWorker>,
}

/// An adapter on one worker, as that last told.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AdapterOnWorker {
    /// Which worker.
    worker: String,
    /// Which content.
    generation: String,
    /// `memory`, `disk`, `loading`, `quarantined` or `gone`.
    tier: &'static str,
    /// Bytes in memory, or on disk where it is only there.
    bytes: u64,
    /// Its largest rank; 0 while unknown.
    rank: u32,
    /// How long its last load took, in milliseconds.
    load_ms: Option<u32>,
    /// How long before the worker's last word a request began with it, in milliseconds.
    idle_ms: Option<u32>,
    /// Whether it is kept there whatever else is asked for.
    pinned: bool,
    /// Why it cannot be used there.
    reason: Option<String>,
}

impl AdapterList {
    pub(super) fn new(app: &App) -> Self {
        let data = app.adapters.list().into_iter().map(|listing| Adapter::new(app, listing)).collect();
        Self { object: "list", data }
    }
}

impl Adapter {
    pub(super) fn new(app: &App, listing: Listing) -> Self {
        let version = listing.version.as_ref();
        let fingerprint = version.and_then(|version| {
            let base = app.catalogue.model(&version.base)?;
            Some(base.card.fingerprint_with(Some(version.generation)).to_string())
        });
        let generations = version.map(|version| version.generation).into_iter().chain(listing.previous);
        let workers = generations.flat_map(|generation| app.adapters.residency(generation));
        Self {
            id: listing.name.to_string(),
            object: "adapter",
            model: listing.base.map(String::from),
            state: listing.state.as_str(),
            reason: listing.reason,
            source: listing.source.as_str(),
            pinned: listing.pinning == Pinning::Pinned,
            generation: version.map(|version| version.generation.to_string()),
            previous: listing.previous.map(|generation| generation.to_string()),
            rank: version.map(|version| version.rank),
            bytes: version.map(|version| version.bytes),
            created: version.map(|version| version.created),
            system_fingerprint: fingerprint,
            workers: workers.map(AdapterOnWorker::from).collect(),
        }
    }
}

impl From<WorkerAdapter> for AdapterOnWorker {
    fn from(WorkerAdapter { worker, state }: WorkerAdapter) -> Self {
        let tier = match state.tier {
            AdapterTier::Memory => "memory",
            AdapterTier::Disk => "disk",
            AdapterTier::Loading => "loading",
            AdapterTier::Quarantined => "quarantined",
            AdapterTier::Gone => "gone",
        };
        Self {
            worker: worker.to_string(),
            generation: state.generation.to_string(),
            tier,
            bytes: state.bytes,
            rank: state.rank,
            load_ms: state.load_ms,
            idle_ms: state.idle_ms,
            pinned: state.pinned,
            reason: state.reason,
        }
    }
}
