//! `[[replica]]`: the rules of a model that is split over workers. Called by `check` once models and workers are known; what only
//! the model's files can tell (how many layers there are) is for whoever reads them.

use config::ValueKind;

use super::hosts::Host;
use super::report::Report;
use super::section::{Section, describe, nearest};
use super::workers::{Workers, is_host_and_port};
use super::{ModelConfig, ModelSource, ReplicaConfig, Scope, StageConfig, WorkerConfig};
use crate::ids::{LayerRange, Name};
use crate::wire::hello::MAX_STAGES;

/// Layers of a model at most, as its reader believes them.
const MAX_LAYERS: i64 = 1024;

/// What the rules look at beside the section.
struct Known<'a> {
    models: &'a [ModelConfig],
    workers: &'a Workers,
    scope: &'a Scope,
}

impl Known<'_> {
    /// The worker, where nothing is wrong with it, and its host.
    fn worker(&self, name: &Name) -> Option<(&WorkerConfig, Host)> {
        let at = self.workers.whole.iter().position(|worker| worker.name == *name)?;
        let is_same_list = self.workers.whole.len() == self.workers.hosts.workers.len();
        let host = self.workers.hosts.workers.get(at).filter(|_| is_same_list);
        Some((&self.workers.whole[at], host.cloned().unwrap_or(Host::Here)))
    }
}

/// Every `[[replica]]`.
pub(super) fn replicas(
    root: &Section<'_>,
    models: &[ModelConfig],
    workers: &Workers,
    scope: &Scope,
    report: &mut Report,
) -> Vec<ReplicaConfig> {
    let known = Known { models, workers, scope };
    let (mut names, mut taken) = (Vec::new(), Vec::new());
    let sections = root.sections("replica", &["name", "model", "stages"], report);
    let read = |section: &Section<'_>| {
        let stages = stages(section, &known, &mut taken, report);
        let replica = replica(section, stages, &known, report)?;
        if names.contains(&replica.name) {
            let reason = format!("\"{}\" is taken by another one", replica.name);
            section.fault("name", reason, "give each its own name; without one it is its first worker's", report);
        }
        names.push(replica.name.clone());
        Some(replica)
    };
    sections.iter().filter_map(read).collect()
}

fn replica(
    section: &Section<'_>,
    stages: Vec<StageConfig>,
    known: &Known<'_>,
    report: &mut Report,
) -> Option<ReplicaConfig> {
    let name = section.name("name", report);
    let wanted = section.name("model", report);
    let head = &stages.first()?.worker;
    let model = wanted.or_else(|| Some(known.worker(head)?.0.model.clone()))?;
    models_agree(section, &model, &stages, known, report);
    let source = known.models.iter().find(|known| known.name == model).map(|model| &model.source);
    if stages.len() > 1 && matches!(source, Some(ModelSource::Scripted(_))) {
        let remedy = "name one stage, or leave the [[replica]] out: each worker hosts the whole of it";
        section.fault("stages", "the scripted test engine has no layers to split", remedy, report);
    }
    Some(ReplicaConfig { name: name.unwrap_or_else(|| head.clone()), model, stages })
}

fn models_agree(section: &Section<'_>, model: &Name, stages: &[StageConfig], known: &Known<'_>, report: &mut Report) {
    for stage in stages {
        let hosted = known.worker(&stage.worker).map(|(worker, _)| &worker.model);
        if let Some(hosted) = hosted.filter(|hosted| *hosted != model) {
            let reason = format!("is \"{model}\", and worker \"{}\" hosts \"{hosted}\"", stage.worker);
            let remedy = "give the replica and all of its workers the same model";
            section.fault("model", reason, remedy, report);
        }
    }
}

/// The stages of one replica; `taken` are the workers that others have.
fn stages(section: &Section<'_>, known: &Known<'_>, taken: &mut Vec<Name>, report: &mut Report) -> Vec<StageConfig> {
    let tables = section.sections("stages", &["worker", "layers", "address"], report);
    if tables.is_empty() {
        let remedy =
            "name its workers in the order of their layers: stages = [{ worker = \"alpha\", layers = [0, 12] }, ...]";
        section.fault("stages", "a replica needs workers", remedy, report);
    } else if tables.len() > MAX_STAGES {
        let reason = format!("are {}, and {MAX_STAGES} are possible", tables.len());
        section.fault("stages", reason, "split the model over fewer workers", report);
    }
    let mut stages = Vec::new();
    let mut head = None;
    for table in &tables {
        let (worker, layers) = (worker(table, known, taken, report), layers(table, report));
        let Some(worker) = worker else { continue };
        let address = match &head {
            None => no_address(table, report),
            Some(head) => address(table, (&worker, head), known, report),
        };
        head.get_or_insert_with(|| worker.clone());
        stages.push(StageConfig { worker, layers, address });
    }
    // With a stage missing, every one after it would be at fault.
    if stages.len() == tables.len() {
        in_order(section, &tables, &stages, known, report);
    }
    stages
}

fn worker(table: &Section<'_>, known: &Known<'_>, taken: &mut Vec<Name>, report: &mut Report) -> Option<Name> {
    if table.value("worker").is_none() {
        table.fault("worker", "is missing: a stage is a worker", "set worker to the name of a [[worker]]", report);
    }
    let name = table.name("worker", report)?;
    let names: Vec<&str> = known.workers.names.iter().map(Name::as_str).collect();
    if !names.contains(&name.as_str()) {
        let remedy = match nearest(name.as_str(), &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "add a [[worker]] of that name".to_owned(),
        };
        table.fault("worker", format!("there is no worker \"{name}\""), remedy, report);
        return None;
    }
    if taken.contains(&name) {
        let remedy = "a worker hosts one part of one replica: name another, or add a [[worker]]";
        table.fault("worker", format!("\"{name}\" is a stage already"), remedy, report);
        return None;
    }
    taken.push(name.clone());
    Some(name)
}

/// `layers = [first, one past the last]`
fn layers(table: &Section<'_>, report: &mut Report) -> Option<LayerRange> {
    let value = table.value("layers")?;
    let remedy = "write the first layer and one past the last, counted from 0: layers = [0, 12] are twelve";
    let ValueKind::Array(elements) = &value.kind else {
        table.fault("layers", format!("is {}, not a list", describe(value)), remedy, report);
        return None;
    };
    let bounds: Vec<Option<i64>> = elements.iter().map(|element| element.clone().into_int().ok()).collect();
    match bounds[..] {
        [Some(begin), Some(end)] if 0 <= begin && begin < end && end <= MAX_LAYERS => {
            Some(LayerRange { begin: begin as u32, end: end as u32 })
        }
        _ => {
            let written: Vec<String> = elements.iter().map(describe).collect();
            table.fault("layers", format!("[{}] are no layers", written.join(", ")), remedy, report);
            None
        }
    }
}

fn no_address(table: &Section<'_>, report: &mut Report) -> Option<String> {
    if table.value("address").is_some() {
        table.fault("address", "is of no use: the first stage dials the others", "remove it", report);
    }
    None
}

/// What the head dials: what is written here, else where the worker listens.
fn address(
    table: &Section<'_>,
    (worker, head): (&Name, &Name),
    known: &Known<'_>,
    report: &mut Report,
) -> Option<String> {
    let written = table.text("address", report);
    if let Some(text) = written.filter(|text| !is_host_and_port(text)) {
        let remedy = "write host:port, such as address = \"gpu2.lan:8444\"";
        table.fault("address", format!("{text:?} is not host:port"), remedy, report);
        return None;
    }
    // In dev mode any free port of this machine will do.
    let ((worker, host), (_, head_host)) = (known.worker(worker)?, known.worker(head)?);
    if worker.peering.listen.is_some() {
        let reason = format!("worker \"{}\" has a peer_listen, and serves nobody but its head", worker.name);
        table.fault("worker", reason, "remove peer_listen of the [[worker]]: adapters come from the head", report);
    }
    if *known.scope == Scope::Dev {
        return None;
    }
    let Some(listen) = worker.stage_listen else {
        let reason = format!("worker \"{}\" has no stage_listen, and its head could not dial it", worker.name);
        let remedy = "set stage_listen of the [[worker]] to an address on its network, such as \"10.0.0.3:8444\"";
        table.fault("worker", reason, remedy, report);
        return None;
    };
    if let Some(text) = written {
        return Some(text.to_owned());
    }
    if listen.ip().is_unspecified() || listen.port() == 0 {
        let reason = format!("is missing, and stage_listen = {listen} is no address that can be dialled");
        table.fault("address", reason, "set it to what the first stage dials: host:port", report);
    } else if listen.ip().is_loopback() && host != head_host {
        let reason = format!(
            "is missing, and stage_listen = {listen} of worker \"{}\" on {host} cannot be dialled from {head_host}",
            worker.name
        );
        table.fault("address", reason, "set stage_listen to the worker's address on its network", report);
    }
    Some(listen.to_string())
}

/// The layers of all stages, or of none: without a gap, from the first layer on.
fn in_order(
    section: &Section<'_>,
    tables: &[Section<'_>],
    stages: &[StageConfig],
    known: &Known<'_>,
    report: &mut Report,
) {
    let written = tables.iter().filter(|table| table.value("layers").is_some()).count();
    if written == 0 {
        return can_be_planned(stages, known, tables, report);
    }
    if written < tables.len() {
        let remedy = "give every stage its layers, or none: then they are planned";
        section.fault("stages", "some stages have layers and some have none", remedy, report);
        return;
    }
    let mut next = 0;
    for (table, stage) in tables.iter().zip(stages) {
        let Some(LayerRange { begin, end }) = stage.layers else { return };
        if begin != next {
            let gap = if begin > next { "leaves out layers" } else { "overlaps with the stage before" };
            let reason = format!("[{begin}, {end}] {gap}: layer {next} is next");
            table.fault("layers", reason, format!("begin with layer {next}: layers = [{next}, ...]"), report);
        }
        next = end;
    }
}

/// Planned layers are the same on every machine, so what they are planned from must be in the file.
fn can_be_planned(stages: &[StageConfig], known: &Known<'_>, tables: &[Section<'_>], report: &mut Report) {
    for (stage, table) in stages.iter().zip(tables).filter(|_| stages.len() > 1) {
        if known.worker(&stage.worker).is_some_and(|(worker, _)| worker.memory.is_none()) {
            let reason = format!("are left out, and worker \"{}\" does not say what memory it has", stage.worker);
            let remedy = "set `memory` of the [[worker]] (bytes for the model; `speed`, too, where workers differ), or write layers";
            table.fault("layers", reason, remedy, report);
        }
    }
}
