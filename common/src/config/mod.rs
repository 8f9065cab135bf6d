//! `cluster.toml`: the settings of a whole cluster in types that are right by construction. [`load`] merges the file, the
//! environment (`SHOAL__SECTION__KEY`) and flags, and reports every fault together, with file, key and reason. The only
//! place that reads the environment for settings.
//!
//! 1. `overrides`: what flags say, and which part of the cluster this process is.
//! 2. `source`: file, environment and flags merged into one tree of values that remember who said them.
//! 3. `section`: typed getters over one table of the tree.
//! 4. `settings`: what becomes of the sections. `check`, `models`, `workers`, `peering`, `replicas`, `adapters`, `hosts`: the rules.
//! 5. `report`, `fault`: what is wrong, where, and what to do.

mod adapters;
mod check;
mod fault;
mod hosts;
mod limits;
mod models;
mod overrides;
mod peering;
mod replicas;
mod report;
mod section;
mod settings;
mod source;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use fault::{ConfigError, Fault, Place};
pub use hosts::{Destination, Host};
pub use limits::Limits;
pub use overrides::{ModelFlag, ModelFlagSource, Overrides, Scope};
pub use settings::{
    AdapterConfig, ApiConfig, ClusterConfig, Engine, Exposure, Faults, HostConfig, ModelConfig, ModelSource,
    PeerListen, Peering, Pinning, PromptLogPolicy, Quant, ReplicaConfig, RouterConfig, Script, StageConfig, Timers,
    UsageChunk, WorkerConfig,
};

use crate::ids::Name;

/// Reads the configuration: the flags in `overrides` over `SHOAL__SECTION__KEY` variables over the TOML file at `path`.
/// No file is as good as an empty one.
///
/// # Errors
/// Every fault there is, together.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
    load_with(path, overrides, &std::env::vars_os().collect())
}

/// A variable of the environment that is no setting of the cluster, such as an access token. Empty is as good as unset.
#[expect(clippy::disallowed_methods, reason = "the ban leads here")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// [`load`] with the environment as an argument.
fn load_with(path: Option<&Path>, overrides: &Overrides, variables: &source::Variables) -> Result<Config, ConfigError> {
    let directory = |name: &str| {
        let value = variables.iter().find(|(variable, _)| variable == name).map(|(_, value)| PathBuf::from(value));
        // The XDG rules: what is not an absolute path is as good as unset.
        value.filter(|path| path.is_absolute())
    };
    let home = directory("HOME");
    // A service may have neither; its data is the machine's.
    let data_home = directory("XDG_DATA_HOME").or_else(|| home.as_ref().map(|home| home.join(".local/share")));
    let data_dir = data_home.unwrap_or_else(|| PathBuf::from("/var/lib")).join("shoal");
    let mut report = report::Report::new(path, home);
    let root = source::merge(overrides, variables, &mut report);
    let config = root.map(|root| check::cluster(&root, &overrides.scope, data_dir, &mut report));
    report.finish(config)
}

/// A whole cluster, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names, certificates and timers that all roles share.
    pub cluster: ClusterConfig,
    /// The router.
    pub router: RouterConfig,
    /// The workers, in file order; names are unique.
    pub workers: Vec<WorkerConfig>,
    /// The models that are split over workers; no worker is in two of them, and their names are unique.
    pub replicas: Vec<ReplicaConfig>,
    /// The models; names are unique.
    pub models: Vec<ModelConfig>,
    /// The adapters that the file names; names are unique, and no model's.
    pub adapters: Vec<AdapterConfig>,
    /// What a request may cost.
    pub limits: Limits,
    /// Choices in the HTTP contract.
    pub api: ApiConfig,
    /// Where all that runs.
    pub hosts: HostConfig,
}

impl Config {
    /// The worker of that name.
    pub fn worker(&self, name: &str) -> Option<&WorkerConfig> {
        self.workers.iter().find(|worker| worker.name.as_str() == name)
    }

    /// The replica that worker `name` is a stage of, and which one; absent: the worker hosts a whole model.
    pub fn stage_of(&self, name: &Name) -> Option<(&ReplicaConfig, usize)> {
        let place = |replica: &ReplicaConfig| replica.stages.iter().position(|stage| stage.worker == *name);
        self.replicas.iter().find_map(|replica| Some((replica, place(replica)?)))
    }

    /// The workers of `name`'s zone that send their adapters to others, and what is dialled for it.
    pub fn neighbours(&self, name: &Name) -> BTreeMap<Name, String> {
        let Some(zone) = self.worker(name.as_str()).and_then(|worker| worker.peering.zone.as_ref()) else {
            return BTreeMap::new();
        };
        let others = self.workers.iter().filter(|other| other.name != *name);
        let near = others.filter(|other| other.peering.zone.as_ref() == Some(zone));
        near.filter_map(|other| Some((other.name.clone(), other.peering.listen.as_ref()?.address.clone()))).collect()
    }

    /// The model of that name; every worker's is here.
    pub fn model(&self, name: &Name) -> Option<&ModelConfig> {
        self.models.iter().find(|model| model.name == *name)
    }
}
