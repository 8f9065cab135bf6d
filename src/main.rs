//! The binary: parses the command line, loads the configuration, starts the part that is asked for and turns its end into
//! an exit code. The composition root, nothing else: router and worker meet here only.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod cert;
mod check;
mod cli;
mod pull;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use shoal_common::config::{self, Config, Overrides};

use cli::{Cli, Command, Global};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shoal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Check => return check(&load(&cli.global, &Overrides::default())?),
        Command::Cert { command } => cert::run(command)?,
        Command::Pull(order) => pull(order)?,
        Command::Dev(_) | Command::Router(_) | Command::Worker(_) => {
            anyhow::bail!("this build holds no router and no worker")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without --config, the file that lies in the working directory, which must be there.
fn load(global: &Global, overrides: &Overrides) -> Result<Config, config::ConfigError> {
    let path = global.config.clone().unwrap_or_else(|| PathBuf::from("cluster.toml"));
    config::load(Some(&path), overrides)
}

/// The plan goes to stdout, what is wrong with the model files to stderr.
fn check(config: &Config) -> anyhow::Result<ExitCode> {
    let (plan, faults) = check::plan(config);
    print!("{plan}");
    let good = faults.is_empty();
    for fault in faults {
        eprintln!("shoal: {:#}", anyhow::Error::from(fault));
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The path is the last line on stdout, for scripts.
fn pull(flags: &cli::Pull) -> anyhow::Result<()> {
    let order = pull::Order {
        repo: pull::RepoId::new(&flags.repo)?,
        revision: pull::Revision::new(&flags.revision)?,
        file: flags.file.clone(),
        dir: flags.dir.clone(),
    };
    let hub = pull::Hub::from_environment(config::variable(&flags.token_env))?;
    let path = pull::pull(&hub, &order)?;
    let path: &Path = &path;
    println!("{}", std::path::absolute(path).context("the working directory is gone")?.display());
    Ok(())
}
