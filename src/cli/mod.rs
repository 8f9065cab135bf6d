//! The command line: what can be said, and the help that teaches it. Owns the flags and what they mean for the
//! configuration; reads nothing and starts nothing.

mod bench;
mod check;
mod operate;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use shoal_common::config::{Exposure, ModelFlag, ModelFlagSource, Overrides, Scope};
use shoal_common::ids::Name;

use crate::roles::ROUTER;
use bench::BENCH_HELP;
pub(crate) use bench::Bench;
use check::CHECK_HELP;
pub(crate) use check::{Check, Part};
use operate::{DRAIN_HELP, PLAN_HELP, STATUS_HELP};
pub(crate) use operate::{Drain, Plan, Status};

/// Serves LLM completions from your own machines: same request, same bytes.
#[derive(Debug, Parser)]
#[command(version, long_about = LONG_ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const LONG_ABOUT: &str = "\
Shoal serves LLM completions from your own machines: same request, same bytes.

A router takes HTTP completion requests and sends them over QUIC to workers. Each worker hosts a model and streams \
tokens back. `shoal dev` runs both in one process; `shoal router` and `shoal worker` run them apart, on as many machines \
as you have.

Settings come from one file for the whole cluster (--config, see cluster.toml for all of them), then from the environment \
(SHOAL__ROUTER__LISTEN=127.0.0.1:9000), then from flags; the later one wins. Every setting has a default: an empty file \
and a model are enough.";

const AFTER_HELP: &str = "\
Examples:
  shoal dev --model model.gguf                      serve a model on this machine, on port 8080
  shoal pull HuggingFaceTB/SmolLM2-135M-Instruct    get one from the Hugging Face hub
  shoal check --config cluster.toml                 all faults of a configuration, and the plan
  shoal router --config cluster.toml                a cluster: the router,
  shoal worker --config cluster.toml --name alpha   and a worker, on another machine
  shoal status                                      its workers, their load, and what went wrong
  shoal bench --concurrency 1,8,32                  how fast a server answers, this one or another

Exit codes:
  0    done, or stopped by SIGTERM or Ctrl-C
  1    failed; the reason is on stderr
  2    wrong command line
  130  stopped at once by a second signal";

/// Flags of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The cluster's settings [default: cluster.toml; `dev` reads none]
    #[arg(long, global = true, help_heading = "Common options", env = "SHOAL_CONFIG", value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// How log lines are written, to stderr
    #[arg(
        long,
        global = true,
        help_heading = "Common options",
        env = "SHOAL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
    /// What is logged: a level, or levels by module, such as warn,shoal_router=debug
    #[arg(
        long = "log",
        global = true,
        help_heading = "Common options",
        env = "SHOAL_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub(crate) log_filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line, for machines
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Router and workers in one process: a model on this machine
    #[command(after_help = DEV_HELP)]
    Dev(Dev),
    /// The router alone: HTTP in front, workers behind
    #[command(after_help = ROUTER_HELP)]
    Router(Router),
    /// One worker alone: hosts a model, dials the routers
    #[command(after_help = WORKER_HELP)]
    Worker(Worker),
    /// Tells the routers when the worker that has started it dies
    #[command(hide = true)]
    Witness,
    /// Report every fault of the configuration and show the plan, without starting
    #[command(after_help = CHECK_HELP)]
    Check(Check),
    /// Show a running cluster: its workers, their load, and what went wrong
    #[command(after_help = STATUS_HELP)]
    Status(Status),
    /// Give a worker no more requests; what runs goes on to its end
    #[command(after_help = DRAIN_HELP)]
    Drain(Drain),
    /// Say who runs where, in lines for scripts
    #[command(after_help = PLAN_HELP)]
    Plan(Plan),
    /// Make the certificates of a cluster
    #[command(after_help = CERT_HELP)]
    Cert {
        #[command(subcommand)]
        command: Cert,
    },
    /// Get a model from the Hugging Face hub
    #[command(after_help = PULL_HELP)]
    Pull(Pull),
    /// Measure a server: tokens per second, time to first token, time between tokens
    #[command(after_help = BENCH_HELP)]
    Bench(Bench),
}

const DEV_HELP: &str = "\
The very same router and workers as in a cluster, over loopback QUIC, with certificates made in memory. When all workers \
have joined, the address and a curl line to try are printed.

Examples:
  shoal dev --model SmolLM2-135M-Instruct.Q4_1.gguf
  shoal dev --model ./my-model-directory --model-name mine --listen 127.0.0.1:9000
  shoal dev --model m.gguf --adapters ./adapters    each directory in it is a PEFT adapter of that name
  shoal dev --scripted --workers 3        no weights: exact nonsense, to develop a client against
  shoal dev --config cluster.toml         the models and workers of a file, here";

/// `shoal dev`
#[derive(Args, Debug)]
pub(crate) struct Dev {
    /// A GGUF file, or a Hugging Face directory (config.json, tokenizer.json, *.safetensors)
    #[arg(long, value_name = "PATH", conflicts_with = "scripted")]
    model: Option<PathBuf>,
    /// Serve the scripted test engine, which needs no weights
    #[arg(long)]
    scripted: bool,
    /// The name clients ask for [default: from the path]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Workers for each model [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    workers: Option<u32>,
    #[command(flatten)]
    router: RouterFlags,
    #[command(flatten)]
    worker: WorkerFlags,
}

const ROUTER_HELP: &str = "\
Needs cluster.pki with ca.pem and the router's NAME.pem and NAME.key (see `shoal cert --help`), and no model files. \
On SIGTERM it takes no more requests, lets running ones finish, and ends.

Example:
  shoal router --config cluster.toml";

/// `shoal router`
#[derive(Args, Debug)]
pub(crate) struct Router {
    /// Its name, as in its certificate
    #[arg(long, default_value = ROUTER)]
    pub(crate) name: Name,
    #[command(flatten)]
    router: RouterFlags,
}

const WORKER_HELP: &str = "\
Needs its [[worker]] and the model that names in cluster.toml, and cluster.pki with ca.pem and the worker's NAME.pem and \
NAME.key (see `shoal cert --help`). It dials the routers and needs no open port, unless it is a stage of a [[replica]] other than \
the first: that one listens on its stage_listen and dials nobody.

Example:
  shoal worker --config cluster.toml --name alpha";

/// `shoal worker`
#[derive(Args, Debug)]
pub(crate) struct Worker {
    /// Which `[[worker]]` of the file this is; also the name in its certificate
    #[arg(long)]
    pub(crate) name: String,
    #[command(flatten)]
    worker: WorkerFlags,
}

/// Flags of whatever has a router in it.
#[derive(Args, Debug)]
struct RouterFlags {
    /// HTTP address [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// QUIC address that workers dial [default: 127.0.0.1:8443; `dev`: any free port]
    #[arg(long, value_name = "ADDRESS")]
    quic: Option<String>,
    /// Serve HTTP without keys on an address that other machines can reach
    #[arg(long)]
    insecure: bool,
    /// Where the prompt log and the adapters live [default: $XDG_DATA_HOME/shoal or ~/.local/share/shoal]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Watch this directory: every directory in it is a PEFT adapter of that name
    #[arg(long, value_name = "DIR")]
    adapters: Option<PathBuf>,
}

/// Flags of whatever has workers in it.
#[derive(Args, Debug)]
struct WorkerFlags {
    /// Sequences that run at once in a worker [default: 32]
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// Compute threads of a worker [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
}

const CERT_HELP: &str = "\
Every link between router and worker is mutual TLS: a process proves its role and its name by a certificate of the \
cluster's own authority. (`shoal dev` makes one in memory.)

Examples:
  shoal cert init --dir pki --cluster shoal
  shoal cert issue --dir pki --role router --name router
  shoal cert issue --dir pki --role worker --name alpha

Then copy ca.pem, NAME.pem and NAME.key to the machine of that name and set cluster.pki to their directory. ca.key stays \
where it is: whoever has it can issue.";

/// `shoal cert`
#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// Make the authority: ca.pem, and ca.key, which stays on this machine
    Init {
        /// Where to write; made if it is missing
        #[arg(long)]
        dir: PathBuf,
        /// The cluster's name
        #[arg(long)]
        cluster: Name,
    },
    /// Issue a certificate: NAME.pem and NAME.key; an older one of that name is replaced
    Issue {
        /// The authority's directory
        #[arg(long)]
        dir: PathBuf,
        /// What its holder may be
        #[arg(long)]
        role: Role,
        /// The holder's name; of a worker, as in cluster.toml
        #[arg(long)]
        name: Name,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Router,
    Worker,
}

const PULL_HELP: &str = "\
Without --file: the repository's only GGUF file, or its config, tokenizer and safetensors. An interrupted download goes \
on where it broke; large files are checked against their SHA-256. The last line on stdout is the path to serve.

HF_HOME names the cache (shared with the Hugging Face tools), HF_ENDPOINT another hub, HF_TOKEN the token of a private or \
gated model.

Examples:
  shoal pull HuggingFaceTB/SmolLM2-135M-Instruct
  shoal pull bartowski/SmolLM2-135M-Instruct-GGUF --file SmolLM2-135M-Instruct-Q8_0.gguf
  shoal dev --model \"$(shoal pull HuggingFaceTB/SmolLM2-135M-Instruct | tail -n 1)\"";

/// `shoal pull`
#[derive(Args, Debug)]
pub(crate) struct Pull {
    /// The repository, org/name
    pub(crate) repo: String,
    /// The one file wanted
    #[arg(long, value_name = "NAME")]
    pub(crate) file: Option<String>,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    pub(crate) revision: String,
    /// Put the files there instead of in the cache
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// The environment variable that holds the token
    #[arg(long, value_name = "VARIABLE", default_value = "HF_TOKEN")]
    pub(crate) token_env: String,
}

impl Dev {
    /// What the flags say over the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        let path = self.model.clone().map(ModelFlagSource::Path);
        let source = path.or_else(|| self.scripted.then_some(ModelFlagSource::Scripted));
        let model = source.map(|source| ModelFlag { name: self.model_name.clone(), source });
        let mut overrides = Overrides { scope: Scope::Dev, model, workers: self.workers, ..Overrides::default() };
        self.router.apply(&mut overrides);
        self.worker.apply(&mut overrides);
        overrides
    }
}

impl Router {
    /// What the flags say over the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        let mut overrides = Overrides { scope: Scope::Router, ..Overrides::default() };
        self.router.apply(&mut overrides);
        overrides
    }
}

impl Worker {
    /// What the flags say over the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        let mut overrides = Overrides { scope: Scope::Worker(self.name.clone()), ..Overrides::default() };
        self.worker.apply(&mut overrides);
        overrides
    }
}

impl RouterFlags {
    fn apply(&self, overrides: &mut Overrides) {
        overrides.listen.clone_from(&self.listen);
        overrides.quic.clone_from(&self.quic);
        overrides.exposure = self.insecure.then_some(Exposure::Insecure);
        overrides.data_dir.clone_from(&self.data_dir);
        overrides.adapters.clone_from(&self.adapters);
    }
}

impl WorkerFlags {
    fn apply(&self, overrides: &mut Overrides) {
        overrides.slots = self.slots;
        overrides.threads = self.threads;
    }
}
