//! Which part of its model each worker of a configuration hosts, and whom it dials for the rest. Called by `roles` and `dev`
//! before anything is loaded.

use anyhow::Context;
use shoal_common::config::{Config, ReplicaConfig, StageConfig, WorkerConfig};
use shoal_common::ids::{LayerRange, Name};
use shoal_worker::cpu;
use shoal_worker::model::Layers;
use shoal_worker::stage::Member;
use shoal_worker::stage::split::{self, NoCut, Room};
use shoal_worker::weights::{ModelFile, WeightsError};

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
    let member = |(stage, layers): (&StageConfig, &LayerRange)| {
        let address = stage.address.clone().with_context(|| format!("stage {} has no address", stage.worker))?;
        Ok(Member { worker: stage.worker.clone(), address, layers: *layers })
    };
    others.map(member).collect()
}

/// The layers of every stage, as they are written, or else as they are planned. Nothing for a single stage that names none: it
/// has all there are.
pub(crate) fn layers(config: &Config, replica: &ReplicaConfig) -> Result<Option<Vec<LayerRange>>, PartsError> {
    let written: Option<Vec<LayerRange>> = replica.stages.iter().map(|stage| stage.layers).collect();
    match written {
        None if replica.stages.len() == 1 => Ok(None),
        None => planned(config, replica).map(Some),
        written => Ok(written),
    }
}

/// Reads the model, whose files must be here; what the workers have is in the configuration, so that every machine plans the
/// same.
fn planned(config: &Config, replica: &ReplicaConfig) -> Result<Vec<LayerRange>, PartsError> {
    let unplanned = |why| PartsError { replica: replica.name.clone(), why };
    let source = config.model(&replica.model).and_then(|model| model.files());
    let (path, engine) = source.ok_or_else(|| unplanned(Why::NoFiles))?;
    let file = ModelFile::open(path).map_err(|error| unplanned(Why::Unreadable(Box::new(error))))?;
    let workers: Vec<_> = replica.stages.iter().filter_map(|stage| config.worker(stage.worker.as_str())).collect();
    let room = |worker: &&WorkerConfig| Room { memory: worker.memory.unwrap_or(u64::MAX), speed: worker.speed };
    let rooms: Vec<Room> = workers.iter().map(room).collect();
    let cut = split::cut(&cpu::costs(&file, engine, kv_tokens(config, replica, &file)), &rooms);
    cut.map_err(|no| {
        unplanned(match no {
            NoCut::FitsOne(at) => Why::FitsOne(replica.stages[at].worker.clone()),
            no => Why::NoCut(no),
        })
    })
}

/// What the head keeps, as far as the configuration says: else one sequence of the longest.
pub(crate) fn kv_tokens(config: &Config, replica: &ReplicaConfig, file: &ModelFile) -> u64 {
    config.worker(replica.head().as_str()).and_then(|head| head.kv_tokens).unwrap_or(file.config.context as u64)
}

/// Layers that are left out cannot be planned.
#[derive(Debug, thiserror::Error)]
#[error("the layers of replica {replica} cannot be planned")]
pub(crate) struct PartsError {
    replica: Name,
    #[source]
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("its model has no files")]
    NoFiles,
    #[error("its model cannot be read")]
    Unreadable(#[source] Box<WeightsError>),
    #[error(
        "{0} has room for the whole model, and what fits on one worker is not split: remove the [[replica]], and each of its workers hosts all of it; or write layers"
    )]
    FitsOne(Name),
    #[error(transparent)]
    NoCut(NoCut),
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shoal_common::config::{Overrides, Scope, load};

    use super::*;

    /// Two workers of the tiny model with so much memory each, and stages as they are written.
    fn config(memory: u64, stages: &str) -> Config {
        let dir = tempfile::tempdir().expect("a directory");
        let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/tiny/gguf/tiny-q8_0.gguf"));
        let worker = |name: &str| {
            format!(
                "[[worker]]\nname = \"{name}\"\nkv_tokens = 16\nmemory = {memory}\nstage_listen = \"127.0.0.1:9\"\n"
            )
        };
        let text = format!(
            "[[model]]\nname = \"m\"\npath = \"{}\"\n{}{}[[replica]]\nstages = [{stages}]\n",
            model.display(),
            worker("a"),
            worker("b")
        );
        let file = dir.path().join("cluster.toml");
        std::fs::write(&file, text).expect("the file");
        load(Some(&file), &Overrides { scope: Scope::Plan, ..Overrides::default() }).expect("nothing is wrong")
    }

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    const LEFT_OUT: &str = "{ worker = \"a\" }, { worker = \"b\" }";

    #[test]
    fn the_head_dials_the_others_and_each_hosts_its_layers() {
        let config = config(1, "{ worker = \"b\", layers = [0, 3] }, { worker = \"a\", layers = [3, 4] }");
        let part = |begin, end| Layers::Part { hosted: LayerRange { begin, end }, of: 4 };
        let Place::Head(layers, members) = place(&config, &name("b")).expect("a place") else {
            panic!("b is the head")
        };
        assert_eq!((layers, members.len(), members[0].address.as_str()), (part(0, 3), 1, "127.0.0.1:9"));
        assert_eq!(place(&config, &name("a")).expect("a place"), Place::Stage(part(3, 4)));
        assert_eq!(place(&config, &name("other")).expect("a place"), Place::Whole(Layers::All));
    }

    #[test]
    fn one_stage_is_a_whole_model() {
        for (stages, layers) in [
            ("{ worker = \"a\" }", Layers::All),
            ("{ worker = \"a\", layers = [0, 4] }", Layers::Part { hosted: LayerRange { begin: 0, end: 4 }, of: 4 }),
        ] {
            assert_eq!(place(&config(1, stages), &name("a")).expect("a place"), Place::Whole(layers));
        }
    }

    #[test]
    fn layers_that_are_left_out_are_planned_and_what_fits_on_one_is_not_split() {
        let of = |memory| {
            let config = config(memory, LEFT_OUT);
            layers(&config, &config.replicas[0])
        };
        let file = config(1, LEFT_OUT).models[0].files().map(|(path, engine)| (ModelFile::open(path), engine));
        let Some((Ok(file), engine)) = file else { panic!("it is a model") };
        let whole = cpu::costs(&file, engine, 16).bytes(LayerRange { begin: 0, end: 4 });
        let planned = of(whole - 1).expect("a plan").expect("it has two stages");
        assert_eq!((planned.len(), planned[0].begin, planned[1].end), (2, 0, 4));
        let why = |memory| format!("{:#}", anyhow::Error::from(of(memory).expect_err("no plan")));
        assert!(why(whole).contains("a has room for the whole model"), "{}", why(whole));
        assert!(why(whole / 4).contains("cannot be cut so that each part fits"), "{}", why(whole / 4));
    }
}
