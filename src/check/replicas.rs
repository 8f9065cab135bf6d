//! The models that are split over workers: who hosts which layers, and what each part takes. Called by `shoal check`; reads the
//! model's files where they are here.

use indicatif::HumanBytes;
use shoal_common::config::{Config, ReplicaConfig, StageConfig, WorkerConfig};
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

/// A line for the replica and one for each stage, without line breaks. Where the model is not on this machine, the layers are
/// as they are written.
pub(super) fn lines(config: &Config, replica: &ReplicaConfig) -> Result<Vec<String>, ReplicaFault> {
    let file = config.model(&replica.model).and_then(|model| model.files());
    let file = file.and_then(|(path, engine)| Some((ModelFile::open(path).ok()?, engine)));
    let mut lines = vec![format!("{}: {} in {} stages", replica.name, replica.model, replica.stages.len())];
    let Some((file, engine)) = file else {
        lines.extend(replica.stages.iter().map(|stage| {
            let layers = stage.layers.map_or_else(|| "layers as planned there".to_owned(), shown);
            format!("{}: {layers}{}", stage.worker, dialled(stage))
        }));
        return Ok(lines);
    };
    let Some(ranges) = parts::layers(config, replica)? else { return Ok(lines) };
    let (planned, has) = (ranges.last().map_or(0, |last| last.end), file.config.layers);
    if planned as usize != has {
        return Err(ReplicaFault::OtherLayers { replica: replica.name.clone(), planned, has });
    }
    let tokens = parts::kv_tokens(config, replica, &file);
    let costs = cpu::costs(&file, engine, tokens);
    let how = if replica.stages.iter().all(|stage| stage.layers.is_some()) { "" } else { ", layers planned" };
    lines[0] += &format!("{how}, KV for {tokens} tokens");
    let workers = replica.stages.iter().zip(&ranges);
    let shares =
        shares(workers.clone().map(|(stage, range)| (costs.weights(*range), config.worker(stage.worker.as_str()))));
    lines.extend(workers.zip(shares).map(|((stage, range), share)| {
        let memory = config.worker(stage.worker.as_str()).and_then(|worker| worker.memory);
        let of = memory.map_or_else(String::new, |memory| format!(" of {}", HumanBytes(memory)));
        let (weights, kv) = (HumanBytes(costs.weights(*range)), HumanBytes(costs.kv(*range)));
        format!(
            "{}: {}, {weights} and {kv} of KV{of}, {share} % of a step{}",
            stage.worker,
            shown(*range),
            dialled(stage)
        )
    }));
    Ok(lines)
}

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
