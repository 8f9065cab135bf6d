//! The models that are split over workers: who hosts which layers, and what each part takes. Called by `shoal check` and `shoal
//! plan --stages`; reads the model's files where they are here, and starts nothing: what only a run can tell is said so.

use indicatif::HumanBytes;
use shoal_common::config::{Config, Engine, ReplicaConfig, StageConfig, WorkerConfig};
use shoal_common::ids::{LayerRange, Name};
use shoal_worker::cpu;
use shoal_worker::weights::ModelFile;

use crate::parts::{self, PartsError};

/// What is wrong with a replica.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicaFault {
    #[error(transparent)]
    Unplanned(#[from] PartsError),
    #[error("replica {replica}: its stages host {planned} layers, the model has {has}; write layers up to {has}")]
    OtherLayers { replica: Name, planned: u32, has: usize },
}

/// What a stage takes, in bytes, and of the time of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Takes {
    pub(crate) weights: u64,
    pub(crate) kv: u64,
    /// Hundredths, by bytes of weights over the worker's `speed`.
    pub(crate) share: u64,
}

/// A stage as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned<'a> {
    pub(crate) stage: &'a StageConfig,
    /// Nothing where they are left out and the model is not here.
    pub(crate) layers: Option<LayerRange>,
    /// Nothing where the model is not here.
    pub(crate) takes: Option<Takes>,
}

/// The stages of a replica, and for how many tokens of KV that is.
#[derive(Debug)]
pub(crate) struct Stages<'a> {
    pub(crate) stages: Vec<Planned<'a>>,
    /// Nothing where the model is not here.
    kv_tokens: Option<u64>,
}

/// Plans a replica as its workers will. Where the model is not on this machine, the layers are as they are written.
pub(crate) fn plan<'a>(config: &Config, replica: &'a ReplicaConfig) -> Result<Stages<'a>, ReplicaFault> {
    let file = config.model(&replica.model).and_then(|model| model.files());
    match file.and_then(|(path, engine)| Some((ModelFile::open(path).ok()?, engine))) {
        Some(model) => of_file(config, replica, &model),
        None => Ok(as_written(replica)),
    }
}

fn as_written(replica: &ReplicaConfig) -> Stages<'_> {
    let planned = |stage| Planned { stage, layers: stage.layers, takes: None };
    Stages { stages: replica.stages.iter().map(planned).collect(), kv_tokens: None }
}

fn of_file<'a>(
    config: &Config,
    replica: &'a ReplicaConfig,
    (file, engine): &(ModelFile, Engine),
) -> Result<Stages<'a>, ReplicaFault> {
    let has = file.config.layers;
    let all = || vec![LayerRange { begin: 0, end: u32::try_from(has).unwrap_or(u32::MAX) }];
    let ranges = parts::layers(config, replica)?.unwrap_or_else(all);
    let planned = ranges.last().map_or(0, |last| last.end);
    if planned as usize != has {
        return Err(ReplicaFault::OtherLayers { replica: replica.name.clone(), planned, has });
    }
    let tokens = parts::kv_tokens(config, replica, file);
    let costs = cpu::costs(file, *engine, tokens);
    let workers = replica.stages.iter().zip(&ranges);
    let shares =
        shares(workers.clone().map(|(stage, range)| (costs.weights(*range), config.worker(stage.worker.as_str()))));
    let planned = |((stage, range), share): ((&'a StageConfig, &LayerRange), u64)| {
        let takes = Takes { weights: costs.weights(*range), kv: costs.kv(*range), share };
        Planned { stage, layers: Some(*range), takes: Some(takes) }
    };
    Ok(Stages { stages: workers.zip(shares).map(planned).collect(), kv_tokens: Some(tokens) })
}

/// A line for the replica, one for each stage, and one for what is not known before it runs; without line breaks.
pub(super) fn lines(config: &Config, replica: &ReplicaConfig) -> Result<Vec<String>, ReplicaFault> {
    let Stages { stages, kv_tokens } = plan(config, replica)?;
    let is_written = replica.stages.iter().all(|stage| stage.layers.is_some());
    let how = if is_written || kv_tokens.is_none() { "" } else { ", layers planned" };
    let kv = kv_tokens.map_or_else(String::new, |tokens| format!(", KV for {tokens} tokens"));
    let head = config.worker(replica.head().as_str());
    let mut lines = vec![format!("{}: {} in {} stages{how}{kv}", replica.name, replica.model, stages.len())];
    lines.extend(stages.iter().map(|stage| line(config, stage)));
    lines.push(measured(head.is_some_and(|head| head.kv_tokens.is_some())));
    Ok(lines)
}

fn line(config: &Config, Planned { stage, layers, takes }: &Planned<'_>) -> String {
    let layers = layers.map_or_else(|| "layers as planned there".to_owned(), shown);
    let memory = config.worker(stage.worker.as_str()).and_then(|worker| worker.memory);
    let of = memory.map_or_else(String::new, |memory| format!(" of {}", HumanBytes(memory)));
    let takes = takes.as_ref().map_or_else(String::new, |Takes { weights, kv, share }| {
        format!(", {} and {} of KV{of}, {share} % of a step", HumanBytes(*weights), HumanBytes(*kv))
    });
    format!("{}: {layers}{takes}{}", stage.worker, dialled(stage))
}

/// What no file tells.
fn measured(kv: bool) -> String {
    let kv = if kv { "" } else { "the KV, as kv_tokens of the head is not set (a quarter of what it may take then); " };
    format!(
        "known once it runs: {kv}whether each stage may take its part; the time of a step, and how many are under way at once \
         (see `shoal status`)"
    )
}

/// The layers as people count them.
fn shown(LayerRange { begin, end }: LayerRange) -> String {
    format!("layers {begin} to {} ({})", end - 1, end - begin)
}

fn dialled(stage: &StageConfig) -> String {
    stage.address.as_ref().map_or_else(String::new, |address| format!(", dialled at {address}"))
}

/// Each stage's share of the time of a step, in hundredths, by bytes over speed.
fn shares<'a>(stages: impl Iterator<Item = (u64, Option<&'a WorkerConfig>)>) -> Vec<u64> {
    let times: Vec<f64> =
        stages.map(|(bytes, worker)| bytes as f64 / f64::from(worker.map_or(1, |worker| worker.speed))).collect();
    let all: f64 = times.iter().sum();
    times.iter().map(|time| (100.0 * time / all).round() as u64).collect()
}
