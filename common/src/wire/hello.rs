//! The control stream: who a worker is, what it serves, how it is doing; what the router orders it to do.

use serde::{Deserialize, Serialize};

use super::bounded;
use crate::adapter::Geometry;
use crate::fingerprint::Fingerprint;
use crate::ids::{Digest, Generation, Incarnation, LayerRange, Name, Zone};

/// From worker to router on the control stream. The first frame is `Hello`, or `Died` and the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WorkerControl {
    /// Who this worker is; sent once.
    Hello(Box<Hello>),
    /// Load and progress; sent when something changed and at least every [`STATUS_EVERY_MS`].
    Status(Status),
    /// What became of an adapter here; sent for each one that is here after the welcome, and at each change.
    Adapter(AdapterState),
    /// The stages of the model that this worker is the head of, in the order of their layers, itself the first; sent after the
    /// welcome, when one comes or goes, and once a second while they compute. A worker that hosts a whole model has none.
    Stages(#[serde(deserialize_with = "bounded::few::<MAX_STAGES, _, _>")] Vec<StageReport>),
    /// The process of this worker's life has ended without a farewell. Told by the witness that it has left behind, which has its
    /// certificate, on a connection of its own.
    Died(Incarnation),
}

/// From router to worker on the control stream. The first frame is `Welcome` or `Refused`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RouterControl {
    /// The worker may serve.
    Welcome {
        /// This life of the router.
        router: Incarnation,
    },
    /// The worker may not serve on this connection.
    Refused(Refusal),
    /// Take no new groups of this router; finish those that run. Other routers' connections are not touched by it.
    Drain,
    /// Have an adapter ready, or forget it.
    Adapter(AdapterOrder),
    /// Take groups again. Means nothing to a worker that drains because it was told to end.
    Undrain,
}

/// What a router orders a worker to do with an adapter. Groups that run with it are never touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdapterOrder {
    /// Fetch it if it is not here, and have it in memory.
    Load(Generation),
    /// As `Load`, and keep it there whatever else is asked for.
    Pin(Generation),
    /// It may be evicted again.
    Unpin(Generation),
    /// It was removed: let go of it, on disk too, once nothing runs with it.
    Forget(Generation),
}

/// Where an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AdapterTier {
    /// Ready for the next step.
    Memory,
    /// On this machine's disk.
    Disk,
    /// Being fetched or read.
    Loading,
    /// It cannot be used here, and is not tried again.
    Quarantined,
    /// Not here any more.
    Gone,
}

/// An adapter as a worker has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterState {
    /// Which.
    pub generation: Generation,
    /// Where it is.
    pub tier: AdapterTier,
    /// Bytes in memory, or on disk where it is only there; 0 while unknown.
    pub bytes: u64,
    /// Its largest rank; 0 while unknown.
    pub rank: u32,
    /// How long the last load took, fetch included, in milliseconds; absent before the first.
    pub load_ms: Option<u32>,
    /// How long ago a group began with it, in milliseconds; absent where none has.
    pub idle_ms: Option<u32>,
    /// Whether it is kept whatever else is asked for.
    pub pinned: bool,
    /// Why it is quarantined: at most [`AdapterState::MAX_REASON`] bytes.
    pub reason: Option<String>,
}

impl AdapterState {
    /// Longest reason in bytes.
    pub const MAX_REASON: usize = 512;

    /// Cuts a reason to what may be told, at a character.
    pub fn cut_reason(reason: &mut String) {
        let end = (0..=Self::MAX_REASON.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at));
        reason.truncate(end.unwrap_or(0));
    }
}

/// Stages of one model at most.
pub const MAX_STAGES: usize = 64;

/// A stage of a split model, as its head sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReport {
    /// The worker's name.
    pub worker: Name,
    /// Its life, while it is connected; the head's own is always there.
    pub incarnation: Option<Incarnation>,
    /// What the head dials, `host:port`; absent for the head itself.
    pub address: Option<String>,
    /// The layers it hosts.
    pub layers: LayerRange,
    /// Why it is not connected: at most [`AdapterState::MAX_REASON`] bytes.
    pub reason: Option<String>,
    /// Steps that it has computed for this life of the head.
    pub steps: u64,
    /// Microseconds that they took there, without the way.
    pub computing_us: u64,
    /// The share of the last second or so in which it computed, in thousandths.
    pub busy_permille: u16,
}

/// Longest silence of a worker's status, in milliseconds.
pub const STATUS_EVERY_MS: u64 = 250;

/// Why a router does not take a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another live worker has this name.
    #[error("a worker of this name is connected already")]
    DuplicateName,
    /// The name in `Hello` is not the one in the certificate.
    #[error("the certificate is not for this worker's name")]
    WrongCertificate,
    /// A model of this name is served with other weights or another tokenizer.
    #[error("the model {model} is served with weights {expected} here, this worker has {got}")]
    ModelMismatch {
        /// The model's name.
        model: Name,
        /// Digest the router has for it.
        expected: Digest,
        /// Digest the worker offered.
        got: Digest,
    },
    /// The tokenizer bundle could not be fetched or used.
    #[error("the worker's tokenizer cannot be used: {0}")]
    BadTokenizer(String),
    /// The worker hosts part of a model only, and the router has no plan for it.
    #[error("the worker does not host a whole model")]
    IncompleteModel,
}

impl Refusal {
    /// What an operator can do about it.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::DuplicateName => {
                "stop the other worker of this name, or give this one a name and a certificate of its own"
            }
            Self::WrongCertificate => "issue a certificate for the name that cluster.toml gives this worker",
            Self::ModelMismatch { .. } => {
                "give all workers of this model the same files and settings, or give this one's another name; a changed \
                 model is taken once no worker serves the old one"
            }
            Self::BadTokenizer(_) => "see that the model's tokenizer is whole and of this model",
            Self::IncompleteModel => "have this worker host the whole model",
        }
    }
}

/// Who a worker is and what it serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The worker's name, the same as in its certificate.
    pub worker: Name,
    /// This life of the worker.
    pub incarnation: Incarnation,
    /// Version of the binary, for people.
    pub build: String,
    /// What it can hold.
    pub capacity: Capacity,
    /// The model it serves.
    pub model: ModelCard,
    /// Where it is; absent: nobody is nearer to it than the router.
    pub locality: Option<Locality>,
}

/// Where a worker is, for the sake of what it fetches and of what others fetch from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locality {
    /// Workers of one zone are nearer to each other than to a router of another.
    pub zone: Zone,
    /// Whether others may fetch from it.
    pub lending: Lending,
}

/// To whom a worker sends its adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lending {
    /// It does not listen.
    Nobody,
    /// Workers of its cluster.
    Workers,
}

/// What a worker can hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Sequences that run at once.
    pub slots: u32,
    /// Tokens of KV over all sequences.
    pub kv_tokens: u64,
    /// Groups accepted, running and waiting together; more are answered `Busy`.
    pub groups: u32,
    /// Adapters in memory at once.
    pub adapter_slots: u32,
    /// Bytes of adapters in memory at once.
    pub adapter_bytes: u64,
}

/// A model as a worker serves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Name clients use.
    pub name: Name,
    /// BLAKE3 of weights and configuration.
    pub weights: Digest,
    /// BLAKE3 of the encoded [`TokenizerBundle`](super::blob::TokenizerBundle).
    pub tokenizer: Digest,
    /// Identity of the base model's answers.
    pub fingerprint: Fingerprint,
    /// Arithmetic in words, for example `reference-f32`.
    pub numerics_class: String,
    /// Layers hosted.
    pub layers: LayerRange,
    /// Layers of the whole model.
    pub layer_count: u32,
    /// Rows of the output head.
    pub vocab_size: u32,
    /// Longest sequence in tokens, prompt and output together.
    pub context: u32,
    /// Widths of the linear layers, which adapters must fit.
    pub geometry: Geometry,
}

impl ModelCard {
    /// Identity of the answers with an adapter, or of the base model's.
    pub fn fingerprint_with(&self, adapter: Option<Generation>) -> Fingerprint {
        match adapter {
            None => self.fingerprint,
            Some(_) => Fingerprint::new(self.weights, adapter, self.tokenizer, &self.numerics_class),
        }
    }
}

/// Whether a worker takes groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// Takes groups.
    Ready,
    /// Finishes what runs, takes nothing new.
    Draining,
    /// A part of its model is away: it computes nothing and takes nothing until that is back.
    Incomplete,
}

/// Load and progress of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether it takes groups.
    pub state: WorkerState,
    /// Turns of the decode loop so far, idle ones too: it stands still only when the loop does.
    pub progress: u64,
    /// Sequences that hold KV.
    pub running: u32,
    /// Groups that wait for room.
    pub waiting: u32,
    /// Tokens still to compute for all groups, at most (prompt and `max_tokens`).
    pub queued_tokens: u64,
    /// Tokens of KV in blocks that sequences hold; what is only cached is not counted.
    pub kv_used: u64,
    /// Tokens a second over the last seconds, prefill and decode together; 0 while unknown.
    pub tokens_per_second: u32,
    /// Tokens looked for in the prefix cache since the worker's start: all of a sequence when it starts, and again when it
    /// goes on after it was preempted.
    pub looked_up_tokens: u64,
    /// How many of them were found, and so not computed.
    pub cached_tokens: u64,
    /// Sequences that had to give their KV to others and were computed again.
    pub preemptions: u64,
}
