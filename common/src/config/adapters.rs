//! `[[adapter]]` and where a router takes adapters from by path. Called by `check` once the models are known; never opens a
//! file: a bad adapter keeps no router from starting.

use std::path::PathBuf;

use config::ValueKind;

use super::hosts::is_elsewhere;
use super::models::required_name;
use super::report::Report;
use super::section::{Section, describe, nearest};
use super::{AdapterConfig, Pinning, Scope};
use crate::ids::Name;

/// Every `[[adapter]]`.
pub(super) fn adapters(root: &Section<'_>, models: &[Name], report: &mut Report) -> Vec<AdapterConfig> {
    let sections = root.sections("adapter", &["name", "path", "model", "pin"], report);
    let mut names = Vec::new();
    let read = |section: &Section<'_>| {
        let name = required_name(section, "requests ask for an adapter by its name", &mut names, report);
        if name.as_ref().is_some_and(|name| models.contains(name)) {
            let remedy = "give the adapter a name of its own: requests may put either into `model`";
            section.fault("name", "is the name of a model", remedy, report);
        }
        if section.value("path").is_none() {
            let remedy = "set path to the directory with adapter_config.json and adapter_model.safetensors";
            section.fault("path", "is missing: an adapter needs files", remedy, report);
        }
        let path = section.path("path", report);
        let model = base_model(section, models, report);
        let pinning = if section.truth("pin", report) == Some(true) { Pinning::Pinned } else { Pinning::Evictable };
        Some(AdapterConfig { name: name?, path: path?, model, pinning })
    };
    sections.iter().filter_map(read).collect()
}

/// The base model: the one it names, or the only one. A router's file may name none, and then the fleet decides.
fn base_model(section: &Section<'_>, models: &[Name], report: &mut Report) -> Option<Name> {
    if section.value("model").is_none() {
        match models {
            [] => {}
            [only] => return Some(only.clone()),
            several => {
                let reason = format!("is missing, and there are {} models to choose from", several.len());
                section.fault("model", reason, "set model to the name of one [[model]]", report);
            }
        }
    }
    let name = section.name("model", report)?;
    if !models.is_empty() && !models.contains(&name) {
        let names: Vec<&str> = models.iter().map(Name::as_str).collect();
        let remedy = match nearest(name.as_str(), &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("add a [[model]] of that name, or name one of: {}", names.join(", ")),
        };
        section.fault("model", format!("there is no model \"{name}\""), remedy, report);
    }
    Some(name)
}

/// `router.adapters`, which must be there wherever a router runs.
pub(super) fn watched(router: &Section<'_>, scope: &Scope, report: &mut Report) -> Option<PathBuf> {
    let path = router.path("adapters", report)?;
    let is_here = match scope {
        Scope::Dev | Scope::Router => true,
        Scope::Whole => {
            !matches!(&router.value("host").map(|host| &host.kind), Some(ValueKind::String(host)) if is_elsewhere(host))
        }
        Scope::Worker(_) | Scope::Plan => false,
    };
    if is_here && !path.is_dir() {
        let remedy = "make it; every directory in it is an adapter of that name";
        router.fault("adapters", format!("there is no directory {}", path.display()), remedy, report);
    }
    Some(path)
}

/// `router.adapter_paths`
pub(super) fn paths(router: &Section<'_>, report: &mut Report) -> Vec<PathBuf> {
    let remedy = "write a list of directories, such as adapter_paths = [\"/srv/adapters\"]";
    let Some(value) = router.value("adapter_paths") else { return Vec::new() };
    let ValueKind::Array(elements) = &value.kind else {
        router.fault("adapter_paths", format!("is {}, not a list", describe(value)), remedy, report);
        return Vec::new();
    };
    let mut paths = Vec::new();
    for (i, element) in elements.iter().enumerate() {
        match &element.kind {
            ValueKind::String(text) if !text.is_empty() => paths.push(report.resolve(text, element)),
            _ => {
                let key = format!("{}[{i}]", router.key("adapter_paths"));
                report.fault(element, &key, format!("{} is no path", describe(element)), remedy);
            }
        }
    }
    paths
}
