//! The adapters that the configuration and the watched directory have, checked as the router checks them. Called by `shoal
//! check`, once the models' widths are known; reads every adapter's files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use shoal_common::adapter::Geometry;
use shoal_common::config::{Config, Pinning};
use shoal_common::ids::Name;
use shoal_router::adapters::base::{self, NoBase};
use shoal_router::adapters::intake::{Payload, Unusable};
use shoal_router::adapters::scan;

/// What is wrong with an adapter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterFault {
    #[error("cannot be used")]
    Unusable(#[from] Unusable),
    #[error(transparent)]
    NoBase(#[from] NoBase),
    #[error("it has the name of a model")]
    NameOfModel,
    #[error("its name is none for an adapter: {}", shoal_common::ids::BadName)]
    BadName,
    #[error("the directory cannot be read")]
    Unreadable(#[source] std::io::Error),
}

/// A place with an adapter in it.
struct Place {
    path: PathBuf,
    base: Option<Name>,
    pinning: Pinning,
}

/// A line for each adapter, and what is wrong with the others, by name and path.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) lines: Vec<String>,
    pub(super) faults: Vec<(String, PathBuf, AdapterFault)>,
}

/// Checks all of them. Models without an entry in `widths` could not be read: their own fault is told, and their adapters are
/// only listed.
pub(super) fn check(config: &Config, widths: &BTreeMap<Name, Geometry>) -> Found {
    let mut found = Found::default();
    let models: BTreeSet<Name> = config.models.iter().map(|model| model.name.clone()).collect();
    for (name, place) in places(config, &mut found) {
        match line(&name, &place, &models, (widths, config.limits.adapter_bytes)) {
            Ok(line) => found.lines.push(line),
            Err(fault) => found.faults.push((name.to_string(), place.path, fault)),
        }
    }
    found
}

/// Every place by name; a name that both have is the configuration's.
fn places(config: &Config, found: &mut Found) -> BTreeMap<Name, Place> {
    let mut places = BTreeMap::new();
    if let Some(directory) = &config.router.adapters {
        match scan::scan(directory) {
            Ok(scan) => {
                let of = |path| Place { path, base: None, pinning: Pinning::Evictable };
                places.extend(scan.found.into_iter().map(|(name, path)| (name, of(path))));
                let strange = scan.strange.into_iter();
                found.faults.extend(strange.map(|name| (name.clone(), directory.join(name), AdapterFault::BadName)));
            }
            Err(error) => found.faults.push(("*".to_owned(), directory.clone(), AdapterFault::Unreadable(error))),
        }
    }
    places.extend(config.adapters.iter().map(|adapter| {
        let place = Place { path: adapter.path.clone(), base: adapter.model.clone(), pinning: adapter.pinning };
        (adapter.name.clone(), place)
    }));
    places
}

fn line(
    name: &Name,
    place: &Place,
    models: &BTreeSet<Name>,
    (widths, limit): (&BTreeMap<Name, Geometry>, u64),
) -> Result<String, AdapterFault> {
    if models.contains(name) {
        return Err(AdapterFault::NameOfModel);
    }
    let files = Payload::Directory(place.path.clone()).read(limit)?;
    let base = base::choose(place.base.as_ref(), base::made_for(&files.config).as_deref(), models)?;
    let pinned = if place.pinning == Pinning::Pinned { ", pinned" } else { "" };
    let Some(geometry) = widths.get(&base) else { return Ok(format!("{name}: for {base}, not checked{pinned}")) };
    let facts = files.check(geometry)?;
    Ok(format!("{name}: for {base}, rank {}, {}{pinned}", facts.rank, HumanBytes(facts.bytes)))
}

/// Where the adapters come from, for the router's line.
pub(super) fn watched(directory: Option<&Path>) -> String {
    directory.map(|directory| format!(", adapters in {}", directory.display())).unwrap_or_default()
}
