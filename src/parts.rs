//! Which part of its model each worker of a configuration hosts, and whom it dials for the rest. Called by `roles` and `dev`
//! before anything is loaded.

use anyhow::Context;
use shoal_common::config::{Config, ReplicaConfig};
use shoal_common::ids::{LayerRange, Name};
use shoal_worker::model::Layers;
use shoal_worker::stage::Member;

/// What a worker hosts, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A whole model.
    Whole(Layers),
    /// The first layers; these members have the others.
    Head(Layers, Vec<Member>),
    /// Other layers than the first.
    Stage(Layers),
}

impl Place {
    pub(crate) fn layers(&self) -> Layers {
        match self {
            Self::Whole(layers) | Self::Head(layers, _) | Self::Stage(layers) => *layers,
        }
    }
}

/// The place of `worker`. The stages' addresses must be known.
pub(crate) fn place(config: &Config, worker: &Name) -> anyhow::Result<Place> {
    let Some((replica, at)) = config.stage_of(worker) else { return Ok(Place::Whole(Layers::All)) };
    let Some(ranges) = layers(config, replica)? else { return Ok(Place::Whole(Layers::All)) };
    let hosted = |range: &LayerRange| Layers::Part { hosted: *range, of: ranges.last().map_or(0, |last| last.end) };
    Ok(match (at, &ranges[1..]) {
        (0, []) => Place::Whole(hosted(&ranges[0])),
        (0, others) => Place::Head(hosted(&ranges[0]), members(replica, others)?),
        (at, _) => Place::Stage(hosted(&ranges[at])),
    })
}

fn members(replica: &ReplicaConfig, ranges: &[LayerRange]) -> anyhow::Result<Vec<Member>> {
    let others = replica.stages.iter().skip(1).zip(ranges);
    let member = |(stage, layers): (&shoal_common::config::StageConfig, &LayerRange)| {
        let address = stage.address.clone().with_context(|| format!("stage {} has no address", stage.worker))?;
        Ok(Member { worker: stage.worker.clone(), address, layers: *layers })
    };
    others.map(member).collect()
}

/// The layers of every stage, as they are written, or else as they are planned. Nothing for a single stage that names none: it
/// has all there are.
pub(crate) fn layers(config: &Config, replica: &ReplicaConfig) -> anyhow::Result<Option<Vec<LayerRange>>> {
    let written: Option<Vec<LayerRange>> = replica.stages.iter().map(|stage| stage.layers).collect();
    match written {
        Some(written) => Ok(Some(written)),
        None if replica.stages.len() == 1 => Ok(None),
        None => {
            let _ = config;
            anyhow::bail!("the layers of replica {} cannot be planned", replica.name)
        }
    }
}
