//! The document of `GET /v1/cluster`, from a snapshot of the fleet and the operator's books. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use shoal_common::ids::Name;
use shoal_common::quic::Protocol;
use shoal_common::wire::hello::{Status, WorkerState};
use utoipa::ToSchema;

use super::stage::Stage;
use crate::catalogue::ServedModel;
use crate::fleet::Replica;
use crate::fleet::pulse::Health;
use crate::operations::Operations;
use crate::operations::drains::Duty;
use crate::operations::incidents::{Event, Incident};

/// The cluster as one router sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Cluster {
    /// Always `cluster`.
    #[schema(example = "cluster")]
    object: &'static str,
    /// The cluster's name.
    name: String,
    /// The router that answers.
    router: Router,
    /// Every worker that is connected, by name.
    workers: Vec<Worker>,
    /// Every model seen since the router started, by name.
    models: Vec<Model>,
    /// What went wrong with workers lately, the latest first; 64 at most.
    incidents: Vec<Trouble>,
}

/// The router that answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ClusterRouter)]
pub(super) struct Router {
    /// This life of it.
    incarnation: String,
    /// Version of its binary.
    build: &'static str,
    /// The versions of the protocol that it speaks with workers, the newest first.
    protocol: String,
    /// Seconds since it started.
    uptime_s: u64,
}

/// How a worker stands with this router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = WorkerState)]
pub(super) enum State {
    /// It has just connected, and not said yet how it is: takes nothing for this moment.
    Joining,
    /// Takes groups.
    Ready,
    /// Takes nothing new; groups of this router still run.
    Draining,
    /// Takes nothing new, and nothing of this router runs on it.
    Drained,
    /// A part of its model is away: takes nothing until that is back.
    Incomplete,
    /// Its engine stands still: it is given nothing until that moves again.
    Stuck,
    /// Its connection is gone, and will be forgotten in a moment.
    Gone,
}

/// A worker that is connected.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ClusterWorker)]
pub(in crate::http) struct Worker {
    /// Its name, as in its certificate.
    name: String,
    /// This life of it.
    incarnation: String,
    /// Version of its binary.
    build: String,
    /// Where its connection comes from; `null` in tests only.
    address: Option<String>,
    /// The version of the protocol that its connection speaks, the highest that both know; `null` in tests only.
    protocol: Option<String>,
    /// Whether it takes groups.
    state: State,
    /// Whether this router has told it to drain. A worker that was told to end drains without that.
    drain_ordered: bool,
    /// What it hosts, with its stages, if it has any.
    model: HostedModel,
    /// The stages that the model is split into, in the order of their layers, this worker the first; none where it hosts all of
    /// it.
    stages: Vec<Stage>,
    /// Its load; `null` before its first report.
    load: Option<Load>,
    /// What it can hold.
    capacity: Capacity,
    /// Tokens of this router's groups on it that are not done, at most.
    outstanding_tokens: u64,
    /// Milliseconds since it was heard of.
    heard_ms: u64,
    /// Milliseconds since its decode loop was seen to turn: it stands still only when the loop does.
    progress_ms: u64,
    /// What last went wrong with a worker of this name, if anything is remembered.
    last_error: Option<Trouble>,
}

/// A model on a worker.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HostedModel {
    /// Its name.
    name: String,
    /// BLAKE3 of its weights and configuration.
    weights: String,
    /// BLAKE3 of its tokenizer.
    tokenizer: String,
    /// Identity of its answers.
    fingerprint: String,
    /// How it is computed.
    numerics: String,
    /// First layer that is hosted, and one past the last.
    layers: [u32; 2],
    /// Layers of the whole model.
    layer_count: u32,
}

/// Load and progress of a worker, all routers' groups together.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerLoad)]
pub(super) struct Load {
    /// Sequences that hold KV.
    running: u32,
    /// Groups that wait for room.
    waiting: u32,
    /// Tokens still to be computed, at most.
    queued_tokens: u64,
    /// Tokens of KV in blocks that sequences hold.
    kv_used: u64,
    /// Tokens a second over the last seconds.
    tokens_per_second: u32,
    /// Tokens looked for in the prefix cache since the start.
    looked_up_tokens: u64,
    /// How many of them were found.
    cached_tokens: u64,
    /// Sequences that gave their KV to others since the start.
    preemptions: u64,
    /// Turns of the decode loop since the start.
    progress: u64,
}

/// What a worker can hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerCapacity)]
pub(super) struct Capacity {
    /// Sequences at once.
    slots: u32,
    /// Groups at once, running and waiting.
    groups: u32,
    /// Tokens of KV.
    kv_tokens: u64,
}

/// A model of the cluster.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ClusterModel)]
pub(super) struct Model {
    /// Its name.
    name: String,
    /// Identity of its answers.
    fingerprint: String,
    /// BLAKE3 of its weights and configuration.
    weights: String,
    /// Layers.
    layer_count: u32,
    /// Longest sequence in tokens.
    context: u32,
    /// Workers that host it.
    workers: usize,
    /// Those of them that take groups.
    ready: usize,
}

/// Something that went wrong with a worker.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ClusterIncident)]
pub(super) struct Trouble {
    /// `refused`: a connection was not taken. `lost`: one that was taken ended.
    event: &'static str,
    /// The worker, where its certificate said who it is.
    worker: Option<String>,
    /// Where it came from, the last time.
    address: String,
    /// A word for programs: `duplicate_name`, `model_mismatch`, `bad_tokenizer`, `incomplete_model`, `certificate`, `version`,
    /// `protocol`, `timeout`, `shutdown`, `connection`.
    cause: &'static str,
    /// A sentence for people.
    why: String,
    /// What to do about it, where that is known.
    advice: Option<&'static str>,
    /// How often in a row.
    times: u64,
    /// Seconds since the last time.
    seconds_ago: u64,
}

impl Cluster {
    /// All of it, at `now`.
    pub(super) fn of(operations: &Operations, now: Instant) -> Self {
        let snapshot = operations.view.now();
        let incidents = operations.incidents.latest();
        let worker = |replica: &Arc<Replica>| {
            let last_error = incidents.iter().find(|incident| incident.worker.as_ref() == Some(&replica.worker));
            let last_error = last_error.map(|incident| Trouble::of(incident, now));
            Worker { last_error, ..Worker::of(replica, operations.drains.duty(&replica.worker), now) }
        };
        Self {
            object: "cluster",
            name: operations.cluster.to_string(),
            router: Router::of(operations, now),
            workers: snapshot.replicas.iter().map(worker).collect(),
            models: models(&snapshot.models, &snapshot.replicas),
            incidents: incidents.iter().map(|incident| Trouble::of(incident, now)).collect(),
        }
    }

    /// One worker alone.
    pub(super) fn worker(self, name: &Name) -> Option<Worker> {
        self.workers.into_iter().find(|worker| worker.name == name.as_str())
    }
}

impl Router {
    fn of(operations: &Operations, now: Instant) -> Self {
        Self {
            incarnation: operations.router.to_string(),
            build: env!("CARGO_PKG_VERSION"),
            protocol: Protocol::ROUTER.to_string(),
            uptime_s: now.saturating_duration_since(operations.started).as_secs(),
        }
    }
}

impl Worker {
    fn of(replica: &Replica, duty: Duty, now: Instant) -> Self {
        let millis = |since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        let connection = replica.line.connection();
        Self {
            name: replica.worker.to_string(),
            incarnation: replica.incarnation.to_string(),
            build: replica.build.clone(),
            address: connection.map(|connection| connection.remote_address().to_string()),
            protocol: connection.and_then(spoken),
            state: state(replica, duty),
            drain_ordered: duty == Duty::Drain,
            model: HostedModel::from(&*replica.model),
            stages: replica.stages.iter().map(Stage::from).collect(),
            load: replica.status.as_ref().map(Load::from),
            capacity: Capacity {
                slots: replica.capacity.slots,
                groups: replica.capacity.groups,
                kv_tokens: replica.capacity.kv_tokens,
            },
            outstanding_tokens: replica.outstanding.tokens(),
            heard_ms: millis(replica.heard()),
            progress_ms: millis(replica.advanced()),
            last_error: None,
        }
    }
}

fn spoken(connection: &quinn::Connection) -> Option<String> {
    Protocol::ROUTER.picked(connection).map(|version| Protocol::ROUTER.spelled(version))
}

/// A worker is drained only once it has said that it drains: until then it may still be given groups.
fn state(replica: &Replica, duty: Duty) -> State {
    let says = |state| replica.status.is_some_and(|status| status.state == state);
    let says_so = says(WorkerState::Draining);
    if replica.line.is_closed() {
        State::Gone
    } else if replica.vital.last().health == Health::Stuck {
        State::Stuck
    } else if says_so && replica.outstanding.tokens() == 0 {
        State::Drained
    } else if says_so || duty == Duty::Drain {
        State::Draining
    } else if says(WorkerState::Incomplete) {
        State::Incomplete
    } else if replica.status.is_none() {
        State::Joining
    } else {
        State::Ready
    }
}

impl From<&ServedModel> for HostedModel {
    fn from(model: &ServedModel) -> Self {
        let card = &model.card;
        Self {
            name: card.name.to_string(),
            weights: card.weights.to_string(),
            tokenizer: card.tokenizer.to_string(),
            fingerprint: card.fingerprint.to_string(),
            numerics: card.numerics_class.clone(),
            layers: [card.layers.begin, card.layers.end],
            layer_count: card.layer_count,
        }
    }
}

impl From<&Status> for Load {
    fn from(status: &Status) -> Self {
        Self {
            running: status.running,
            waiting: status.waiting,
            queued_tokens: status.queued_tokens,
            kv_used: status.kv_used,
            tokens_per_second: status.tokens_per_second,
            looked_up_tokens: status.looked_up_tokens,
            cached_tokens: status.cached_tokens,
            preemptions: status.preemptions,
            progress: status.progress,
        }
    }
}

fn models(models: &BTreeMap<Name, Arc<ServedModel>>, replicas: &[Arc<Replica>]) -> Vec<Model> {
    let of = |model: &Arc<ServedModel>| {
        let hosts = || replicas.iter().filter(|replica| replica.model.card.name == model.card.name);
        Model {
            name: model.card.name.to_string(),
            fingerprint: model.card.fingerprint.to_string(),
            weights: model.card.weights.to_string(),
            layer_count: model.card.layer_count,
            context: model.card.context,
            workers: hosts().count(),
            ready: hosts().filter(|replica| replica.takes_groups()).count(),
        }
    };
    models.values().map(of).collect()
}

impl Trouble {
    fn of(incident: &Incident, now: Instant) -> Self {
        Self {
            event: match incident.event {
                Event::Refused => "refused",
                Event::Lost => "lost",
            },
            worker: incident.worker.as_ref().map(Name::to_string),
            address: incident.address.to_string(),
            cause: incident.cause.as_str(),
            why: incident.why.clone(),
            advice: incident.advice,
            times: incident.times,
            seconds_ago: now.saturating_duration_since(incident.last).as_secs(),
        }
    }
}
