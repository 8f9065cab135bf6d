//! What the command line says on top of file and environment, and for which part of the cluster. Filled by the binary,
//! read by [`super::load`]; values are as typed, so that their faults are reported with all others.

use std::path::PathBuf;

use super::Exposure;

/// Flags that override file and environment; `None` leaves a setting as it was.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The part of the cluster this process is.
    pub scope: Scope,
    /// `--listen`, over `router.listen`.
    pub listen: Option<String>,
    /// `--quic`, over `router.quic`.
    pub quic: Option<String>,
    /// `--insecure`, over `router.insecure`.
    pub exposure: Option<Exposure>,
    /// `--data-dir`, over `router.data_dir`.
    pub data_dir: Option<PathBuf>,
    /// `--adapters`, over `router.adapters`.
    pub adapters: Option<PathBuf>,
    /// `--model` or `--scripted`: the only model, in place of every `[[model]]` and `[[worker]]`.
    pub model: Option<ModelFlag>,
    /// `--workers`: this many workers for each model, in place of every `[[worker]]`.
    pub workers: Option<u32>,
    /// `--slots`, over the `slots` of every worker.
    pub slots: Option<u32>,
    /// `--threads`, over the `threads` of every worker.
    pub threads: Option<u32>,
}

/// The model named by flags.
#[derive(Clone, Debug)]
pub struct ModelFlag {
    /// `--model-name`; absent: made from the path.
    pub name: Option<String>,
    /// Its weights.
    pub source: ModelFlagSource,
}

/// Where the weights of a [`ModelFlag`] come from.
#[derive(Clone, Debug)]
pub enum ModelFlagSource {
    /// `--model PATH`
    Path(PathBuf),
    /// `--scripted`, with default settings.
    Scripted,
}

/// The part of a cluster that a process is. One file describes the whole cluster and is the same on every machine, so
/// only what this part needs must exist here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// `shoal check`: every rule, every model file.
    #[default]
    Whole,
    /// `shoal plan`: every rule, but neither certificates nor model files: those are on the hosts.
    Plan,
    /// `shoal dev`: as `Whole`, with at least one model; workers are made up where none are named.
    Dev,
    /// `shoal router`: certificates, no model files.
    Router,
    /// `shoal worker --name`: certificates, this worker's model file.
    Worker(String),
}
