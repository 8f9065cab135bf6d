//! What the sections of `cluster.toml` become: values that are right by construction. The rules that make them are beside
//! this, a file for each section.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::hosts::Host;
use crate::ids::{LayerRange, Name, Zone};

/// Where the parts of the cluster run. For whoever starts them; a process itself does not ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// `cluster.remote_dir`: on every host, where binary, settings, certificates and logs are; `~/` is the home directory there.
    pub dir: String,
    /// `router.host`
    pub router: Host,
    /// `host` of the workers, in their order.
    pub workers: Vec<Host>,
}

/// `[cluster]`
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The cluster's name; certificates carry it.
    pub name: Name,
    /// Directory with `ca.pem` and, for each role, `NAME.pem` and `NAME.key`, as `shoal cert` writes them. Absent: only
    /// `shoal dev`, which makes its own authority in memory.
    pub pki: Option<PathBuf>,
    /// Timers of the QUIC links.
    pub timers: Timers,
}

/// `[cluster.timers]`: between router and worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Between keep-alive packets on an idle link.
    pub keep_alive: Duration,
    /// Silence after which a peer is taken for dead.
    pub idle: Duration,
    /// For a connection attempt.
    pub connect: Duration,
    /// Standstill of a worker's engine after which its requests go on elsewhere, at least: a slow one has 20 of its steps.
    pub stall: Duration,
    /// For running requests to finish after a drain began.
    pub drain: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(250),
            idle: Duration::from_secs(2),
            connect: Duration::from_secs(2),
            stall: Duration::from_secs(1),
            drain: Duration::from_secs(30),
        }
    }
}

/// `[router]`
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// HTTP address. Anything but loopback needs `insecure` until keys exist.
    pub listen: SocketAddr,
    /// QUIC address that workers dial.
    pub quic: SocketAddr,
    /// Serve HTTP without keys on a non-loopback address.
    pub exposure: Exposure,
    /// Where the prompt log and the adapters live, and what workers keep unless they have a directory of their own.
    pub data_dir: PathBuf,
    /// Whether `log_prompt: true` requests are written to the prompt log, or the field is refused.
    pub prompt_log: PromptLogPolicy,
    /// A directory that is watched: each directory in it is an adapter of that name.
    pub adapters: Option<PathBuf>,
    /// Directories within which a request may register an adapter by its path, beside the watched one.
    pub adapter_paths: Vec<PathBuf>,
    /// Where it is. It is nearest to the workers of its zone, and to those that have none.
    pub zone: Option<Zone>,
}

/// Whether the HTTP address may be reached from other machines without keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Only loopback addresses are bound.
    LoopbackOnly,
    /// The operator said `--insecure`.
    Insecure,
}

/// What `log_prompt: true` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptLogPolicy {
    /// The prompt and the request's facts are appended to the prompt log.
    Allowed,
    /// The request is answered, nothing is written.
    Off,
}

/// `[[worker]]`
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Name, as in its certificate.
    pub name: Name,
    /// The model it hosts; one of [`Config::models`](super::Config::models).
    pub model: Name,
    /// Routers it dials, `host:port`; names are resolved again at each attempt. At least one.
    pub routers: Vec<String>,
    /// Sequences that run at once.
    pub slots: u32,
    /// Groups accepted at once, running and waiting.
    pub groups: u32,
    /// Tokens of KV over all sequences, in whole blocks of 16, cached prefixes included; absent: from the memory of the
    /// machine.
    pub kv_tokens: Option<u64>,
    /// Tokens computed in one step at most. While streams run, the engine puts fewer beside them, so that none stutters.
    pub step_tokens: u32,
    /// Compute threads; absent: one per core.
    pub threads: Option<u32>,
    /// Adapters in memory at once; 0: this worker takes none. Absent: as many as groups, so that what bounds them is their
    /// bytes, and no group waits for the end of another that has the last slot.
    pub adapter_slots: u32,
    /// Bytes of adapters in memory at once; absent: from the memory of the machine.
    pub adapter_bytes: Option<u64>,
    /// Bytes of adapter files on disk at once.
    pub adapter_disk_bytes: u64,
    /// Where its adapter files are; of this worker alone.
    pub data_dir: PathBuf,
    /// Where it listens for the first stage of its replica, over QUIC. Only a stage that is not the first needs it.
    pub stage_listen: Option<SocketAddr>,
    /// Bytes that a part of a model may take of its memory, KV included. For planning layers.
    pub memory: Option<u64>,
    /// How fast it computes a layer, beside the other workers. For planning layers.
    pub speed: u32,
    /// Whom it fetches adapters from beside the router, and who fetches them from it.
    pub peering: Peering,
    /// Where its process serves `GET /metrics`, over HTTP. Absent: nowhere. In dev mode the router's shows it all.
    pub metrics: Option<SocketAddr>,
}

/// How a worker shares adapters with others. By default it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peering {
    /// Where it is: workers of one zone are nearer to each other than to a router of another.
    pub zone: Option<Zone>,
    /// Where others of its zone fetch from it, over QUIC.
    pub listen: Option<PeerListen>,
}

/// See [`Peering`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerListen {
    /// What it binds.
    pub at: SocketAddr,
    /// What others dial, `host:port`; names are resolved again at each attempt.
    pub address: String,
}

/// `[[replica]]`: a model that is split by layers over workers. Workers in none host a whole model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// For people; without one, the head's.
    pub name: Name,
    /// The model; that of each of its workers.
    pub model: Name,
    /// In the order of their layers. The first is the head: it serves the routers and dials the others. At least one.
    pub stages: Vec<StageConfig>,
}

impl ReplicaConfig {
    /// The worker that serves the routers.
    pub fn head(&self) -> &Name {
        &self.stages[0].worker
    }
}

/// A worker's part of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageConfig {
    /// The worker's name.
    pub worker: Name,
    /// The layers it hosts: from 0 and without a gap over the stages. Absent in all of them: to be planned.
    pub layers: Option<LayerRange>,
    /// What the head dials, `host:port`; names are resolved again at each attempt. Absent for the head itself, and in dev mode.
    pub address: Option<String>,
}

/// `[[model]]`
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Name that clients use.
    pub name: Name,
    /// Where the weights come from.
    pub source: ModelSource,
}

impl ModelConfig {
    /// Where its files are and what computes with them; `None` for the scripted engine.
    pub fn files(&self) -> Option<(&Path, Engine)> {
        match &self.source {
            ModelSource::Files { path, engine } => Some((path, *engine)),
            ModelSource::Scripted(_) => None,
        }
    }
}

/// Where a model's weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// Files of weights.
    Files {
        /// A GGUF file or a Hugging Face directory.
        path: PathBuf,
        /// What computes with them.
        engine: Engine,
    },
    /// The scripted test engine: tokens are a hash of what came before.
    Scripted(Script),
}

/// What computes with a model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Our own kernels: quantised weights, int8 activations.
    Cpu(Quant),
    /// candle in f32: slow, what the other is tested against.
    Reference,
}

impl Default for Engine {
    fn default() -> Self {
        Self::Cpu(Quant::default())
    }
}

/// What weights of F32, F16 and BF16 become when they are loaded; those that are quantised in the file stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Quant {
    /// 8 bits and a scale for each 32 weights.
    #[default]
    Q8_0,
    /// 4 bits and a scale for each 32 weights.
    Q4_0,
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}

/// Settings of the scripted test engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// Time one step takes.
    pub step: Duration,
    /// A run of the engine is told from another by it: part of the weights' digest.
    pub salt: u64,
    /// Longest sequence in tokens.
    pub context: u32,
    /// One position in this many, on average, is likely to end the answer; absent: none. Part of the weights' digest.
    pub eos_every: Option<NonZeroU32>,
    /// Whether texts in a prompt can make a step fail or hang, or end the process.
    pub faults: Faults,
    /// How long a step hangs that is to hang.
    pub hang: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            step: Duration::from_millis(10),
            salt: 0,
            context: 4096,
            eos_every: NonZeroU32::new(64),
            faults: Faults::Off,
            hang: Duration::from_secs(60),
        }
    }
}

/// Whether the scripted test engine plays faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Faults {
    /// Never: a prompt is only a prompt.
    #[default]
    Off,
    /// A prompt with a trigger text fails or hangs its step, or ends the process.
    On,
}

/// `[[adapter]]`
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// Name that clients use.
    pub name: Name,
    /// A directory with `adapter_config.json` and `adapter_model.safetensors`.
    pub path: PathBuf,
    /// Its base model; absent only where the file names no model.
    pub model: Option<Name>,
    /// Whether workers must keep it in memory.
    pub pinning: Pinning,
}

/// Whether workers of the base model may let go of an adapter that nobody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pinning {
    /// When its room is needed.
    #[default]
    Evictable,
    /// Never.
    Pinned,
}

/// `[api]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ApiConfig {
    /// Where a stream's usage goes.
    pub usage_chunk: UsageChunk,
}

/// Where a stream's usage goes when `stream_options.include_usage` asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UsageChunk {
    /// On the last chunk that carries content.
    #[default]
    Octo,
    /// On one more chunk with `choices: []`.
    OpenAi,
}
