//! The binary: parses the command line, loads the configuration, starts the part that is asked for and turns its end into
//! an exit code. The composition root, nothing else: router and worker meet here only.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod bench;
mod cert;
mod check;
mod cli;
mod dev;
mod operate;
mod parts;
mod plan;
mod pull;
mod roles;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use shoal_common::config::{self, Config, Overrides, Scope};
use shoal_common::shutdown::{self, Shutdown};
use shoal_common::telemetry;

use cli::{Cli, Command, Global, LogFormat};

/// Stopped at once by a second signal: what a shell gives a process that Ctrl-C ended.
const STOPPED_AT_ONCE: i32 = 130;

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
        Command::Check(flags) => return check(&cli.global, flags),
        Command::Cert { command } => cert::run(command)?,
        Command::Status(flags) => print!("{}", operate::status(&flags.router.url, flags.form())?),
        Command::Drain(flags) => drain(flags)?,
        Command::Plan(flags) => {
            let config = load(&cli.global, &Overrides { scope: Scope::Plan, ..Overrides::default() })?;
            let here = rustix::system::uname();
            let stages = if flags.stages { plan::stages(&config)? } else { String::new() };
            print!("{}{stages}", plan::lines(&config, &here.nodename().to_string_lossy())?);
        }
        Command::Pull(order) => pull(order)?,
        Command::Bench(flags) => bench(flags)?,
        Command::Dev(flags) => {
            // Dev mode reads a file only where one is named: the example that lies about is not the model that is meant.
            let config = config::load(cli.global.config.as_deref(), &flags.overrides())?;
            serve(&cli.global, |shutdown| dev::run(config, shutdown))?;
        }
        Command::Router(flags) => {
            let config = load(&cli.global, &flags.overrides())?;
            serve(&cli.global, |shutdown| roles::router(config, &flags.name, shutdown))?;
        }
        Command::Witness => witness::run()?,
        Command::Worker(flags) => {
            let config = load(&cli.global, &flags.overrides())?;
            serve(&cli.global, |shutdown| roles::worker(config, &flags.name, shutdown))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `role` with logging and a runtime until it ends; the first signal asks it to, the second does not ask.
fn serve<F: Future<Output = anyhow::Result<()>>>(
    global: &Global,
    role: impl FnOnce(Shutdown) -> F,
) -> anyhow::Result<()> {
    let format = match global.log_format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    telemetry::init(format, Some(&global.log_filter))?;
    telemetry::log_panics_without_words();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let (trigger, shutdown) = shutdown::channel();
    runtime.spawn(async move {
        if shutdown::signal().await.is_ok() {
            tracing::info!("stopping; a second signal stops at once");
            trigger.fire();
            if shutdown::signal().await.is_ok() {
                std::process::exit(STOPPED_AT_ONCE);
            }
        }
        // Without signal handlers the signals end the process by themselves; the trigger must outlive that.
        std::future::pending::<()>().await;
    });
    let outcome = runtime.block_on(role(shutdown));
    // A model that is still loading is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Without --config, the file that lies in the working directory, which must be there.
fn load(global: &Global, overrides: &Overrides) -> Result<Config, config::ConfigError> {
    let path = global.config.clone().unwrap_or_else(|| PathBuf::from("cluster.toml"));
    config::load(Some(&path), overrides)
}

/// The plan goes to stdout, what is wrong with the model files to stderr.
fn check(global: &Global, flags: &cli::Check) -> anyhow::Result<ExitCode> {
    let config = match flags.model {
        Some(_) => config::load(global.config.as_deref(), &flags.overrides())?,
        None => load(global, &flags.overrides())?,
    };
    let (plan, faults) = check::plan(&config, &flags.part());
    print!("{plan}");
    let good = faults.is_empty();
    for fault in faults {
        eprintln!("shoal: {:#}", anyhow::Error::from(fault));
    }
    if let Some(text) = flags.ppl.as_deref().filter(|_| good) {
        check::perplexity::print(&config, text)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn drain(flags: &cli::Drain) -> Result<(), operate::OperateError> {
    let (url, worker) = (&flags.router.url, &flags.worker);
    println!("{}", operate::order(url, worker, flags.order())?);
    if let Some(within) = flags.wait() {
        println!("{}", operate::wait_drained(url, worker, within)?);
    }
    Ok(())
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

/// On one thread: the processor belongs to the server that is measured.
fn bench(flags: &cli::Bench) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.context("cannot start the runtime")?.block_on(bench::run(&flags.order()))?;
    match flags.json.as_deref() {
        Some(path) if path == Path::new("-") => println!("{}", report.json()),
        Some(path) => {
            print!("{report}");
            report.save(path)?;
        }
        None => print!("{report}"),
    }
    Ok(())
}
