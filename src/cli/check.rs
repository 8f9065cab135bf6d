//! The flags of `shoal check`, and its help.

use std::path::PathBuf;

use clap::Args;
use shoal_common::config::{ModelFlag, ModelFlagSource, Overrides, Scope};
use shoal_common::ids::Name;

pub(super) const CHECK_HELP: &str = "\
Reads the configuration as the other commands do, with the same environment, and the model files as a worker does, and \
starts nothing. Says who hosts what, what it takes of memory, and which adapters there are. Exit code 0: it is good. 1: it is not, and every fault is \
on stderr with its place, its reason and what to do.

Examples:
  shoal check --config cluster.toml
  shoal check --worker alpha                                 what this worker needs, on its own machine
  shoal check --model SmolLM2-135M-Instruct.Q4_1.gguf
  shoal check --model ./my-model-directory --ppl text.txt    what quantisation costs on this text";

/// What `shoal check` looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything, as far as it is on this machine.
    Whole,
    /// What the router needs.
    Router,
    /// What this worker needs.
    Worker(Name),
}

/// `shoal check`
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Check this model (a GGUF file or a Hugging Face directory) instead of a configuration
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// Check what this worker needs on this machine: its model files and its certificate
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "router"])]
    worker: Option<Name>,
    /// Check what the router needs on this machine: its certificate
    #[arg(long, conflicts_with = "model")]
    router: bool,
    /// Print the perplexity of this text, with the engine that serves and with the reference engine
    #[arg(long, value_name = "TEXT FILE")]
    pub(crate) ppl: Option<PathBuf>,
}

impl Check {
    /// What the flags say over the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        let source = self.model.clone().map(ModelFlagSource::Path);
        let model = source.map(|source| ModelFlag { name: None, source });
        let scope = match self.part() {
            Part::Router => Scope::Router,
            Part::Worker(name) => Scope::Worker(name.to_string()),
            Part::Whole if model.is_some() => Scope::Dev,
            Part::Whole => Scope::Whole,
        };
        Overrides { scope, model, ..Overrides::default() }
    }

    /// Which part of the cluster is looked at.
    pub(crate) fn part(&self) -> Part {
        match &self.worker {
            Some(name) => Part::Worker(name.clone()),
            None if self.router => Part::Router,
            None => Part::Whole,
        }
    }
}
