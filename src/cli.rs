//! The command line: what can be said, and the help that teaches it. Owns the flags and what they mean for the
//! configuration; reads nothing and starts nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value};
use shoal_common::config::{Exposure, ModelFlag, ModelFlagSource, Overrides, Scope};
use shoal_common::ids::Name;

use crate::bench;

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
    /// Report every fault of the configuration and show the plan, without starting
    #[command(after_help = CHECK_HELP)]
    Check,
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
    #[arg(long, default_value = "router")]
    pub(crate) name: Name,
    #[command(flatten)]
    router: RouterFlags,
}

const WORKER_HELP: &str = "\
Needs its [[worker]] and the model that names in cluster.toml, and cluster.pki with ca.pem and the worker's NAME.pem and \
NAME.key (see `shoal cert --help`). It dials the routers and needs no open port.

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
    /// Where the prompt log lives [default: $XDG_DATA_HOME/shoal or ~/.local/share/shoal]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
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

const CHECK_HELP: &str = "\
Reads the configuration as the other commands do, with the same environment, and starts nothing. Exit code 0: it is good. \
1: it is not, and every fault is on stderr with its place, its reason and what to do.

Example:
  shoal check --config cluster.toml";

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

const BENCH_HELP: &str = "\
Sends streamed, greedy completions over HTTP in a closed loop: each of --concurrency clients sends its next request when \
its last one is answered. Works with every server that has OpenAI's /v1/completions: Shoal, llama-server, vLLM. The figures \
of a row are the median of its runs; TTFT is the time to the first text, ITL the time between two chunks, TPOT the time \
per token after the first. Prompts are words, the same for the same --seed; no two requests have the same prompt.

--arrive-long N tells what a long prompt does to others: --concurrency streams run, a prompt of N tokens comes, and the \
times between their tokens before and until its first token are told apart.

Examples:
  shoal bench                                       one client, the server on port 8080
  shoal bench --concurrency 1,8,32 --runs 5 --json results.json
  shoal bench --url http://127.0.0.1:9000 --model NAME --prompt-tokens 512 --max-tokens 1
  shoal bench --concurrency 8 --shared-prefix 1024  8 clients whose prompts begin alike
  shoal bench --concurrency 8 --arrive-long 4096

Measure servers side by side on a machine that does nothing else: scripts/bench-peers does.";

/// `shoal bench`
#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Model to ask for [default: the one that the server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Models to ask for in turn
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with = "model")]
    models: Vec<String>,
    /// Clients at once; several values give a row each
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: Vec<u32>,
    /// Requests in a run [default: 2 per client, 4 at least]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: Option<u32>,
    /// Runs of a row
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Requests before a row that are not counted [default: 1 per client, 4 at most]
    #[arg(long, value_name = "N")]
    warm: Option<u32>,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens of an answer [default: 128; 512 with --arrive-long]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_tokens: Option<u32>,
    /// Tokens before each prompt that are the same for all
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    shared_prefix: u32,
    /// Send prompts as random token ids below --vocab: exact lengths, on every server
    #[arg(long, requires = "vocab")]
    prompt_ids: bool,
    /// Size of the vocabulary
    #[arg(long, value_name = "N", requires = "prompt_ids", value_parser = clap::value_parser!(u32).range(2..))]
    vocab: Option<u32>,
    /// Which prompts: the same number, the same prompts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Members of every request's body, over what is there
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json_object)]
    extra: Map<String, Value>,
    /// A prompt of so many tokens comes while the others stream
    #[arg(long, value_name = "N", conflicts_with = "requests", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    arrive_long: Option<u32>,
    /// Seconds for one answer
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Write every run there as JSON; - writes it to stdout in place of the table
    #[arg(long, value_name = "PATH")]
    pub(crate) json: Option<PathBuf>,
}

fn json_object(text: &str) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::from_str(text)
}

impl Bench {
    /// What is to be measured.
    pub(crate) fn order(&self) -> bench::Order {
        let count = |number: u32| number as usize;
        let models = self.model.iter().chain(&self.models).cloned().collect();
        let material = self.vocab.map_or(bench::Material::Words, |vocab| bench::Material::Ids { vocab });
        let (tokens, shared) = (count(self.prompt_tokens), count(self.shared_prefix));
        let prompt = bench::PromptPlan { material, tokens, shared, seed: self.seed };
        let (mode, max_tokens) = match self.arrive_long {
            Some(tokens) => (bench::Mode::ArriveLong { tokens: count(tokens) }, 512),
            None => (bench::Mode::ClosedLoop { requests: self.requests.map(count) }, 128),
        };
        let max_tokens = self.max_tokens.unwrap_or(max_tokens);
        bench::Order {
            url: self.url.clone(),
            requests: bench::RequestPlan { models, prompt, max_tokens, extra: self.extra.clone() },
            mode,
            concurrency: self.concurrency.iter().copied().map(count).collect(),
            runs: count(self.runs),
            warm: self.warm.map(count),
            timeout: Duration::from_secs(self.timeout),
        }
    }
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
    }
}

impl WorkerFlags {
    fn apply(&self, overrides: &mut Overrides) {
        overrides.slots = self.slots;
        overrides.threads = self.threads;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flags_of_dev_become_overrides() {
        let line = "shoal dev --model m.gguf --model-name m --listen 0.0.0.0:1 --quic 127.0.0.1:2 --insecure --workers 3 \
                    --slots 4 --threads 5 --data-dir d --config c.toml";
        let cli = parse(line).expect("a good line");
        let Command::Dev(dev) = &cli.command else { panic!("{:?}", cli.command) };
        let overrides = dev.overrides();
        let model = overrides.model.expect("a model");
        assert!(matches!(model.source, ModelFlagSource::Path(path) if path == Path::new("m.gguf")));
        assert_eq!(model.name.as_deref(), Some("m"));
        assert_eq!((overrides.scope, overrides.exposure), (Scope::Dev, Some(Exposure::Insecure)));
        assert_eq!((overrides.listen.as_deref(), overrides.quic.as_deref()), (Some("0.0.0.0:1"), Some("127.0.0.1:2")));
        assert_eq!((overrides.workers, overrides.slots, overrides.threads), (Some(3), Some(4), Some(5)));
        assert_eq!(overrides.data_dir.as_deref(), Some(Path::new("d")));
        assert_eq!(cli.global.config.as_deref(), Some(Path::new("c.toml")));
    }

    #[test]
    fn a_flag_that_is_not_given_overrides_nothing() {
        let cli = parse("shoal router").expect("a good line");
        let Command::Router(router) = cli.command else { panic!("{:?}", cli.command) };
        let overrides = router.overrides();
        assert_eq!((overrides.listen, overrides.exposure, overrides.workers), (None, None, None));
        assert_eq!(router.name.as_str(), "router");
    }

    #[test]
    fn the_flags_of_bench_become_an_order() {
        let order = |line: &str| match parse(line).expect("a good line").command {
            Command::Bench(bench) => bench.order(),
            other => panic!("{other:?}"),
        };
        let plain = order("shoal bench");
        assert_eq!((plain.url.as_str(), &plain.concurrency[..]), ("http://127.0.0.1:8080", &[1][..]));
        assert_eq!((plain.requests.max_tokens, plain.requests.models.len(), plain.runs), (128, 0, 3));
        assert_eq!(plain.mode, bench::Mode::ClosedLoop { requests: None });

        let line = "shoal bench --models a,b --concurrency 1,8 --extra {\"peft\":\"x\"} --prompt-ids --vocab 99 --arrive-long 7";
        let full = order(line);
        assert_eq!((full.requests.models.join("+"), &full.concurrency[..]), ("a+b".to_owned(), &[1, 8][..]));
        assert_eq!(full.requests.extra["peft"], "x");
        assert_eq!(full.requests.prompt.material, bench::Material::Ids { vocab: 99 });
        assert_eq!((full.mode, full.requests.max_tokens), (bench::Mode::ArriveLong { tokens: 7 }, 512));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            "shoal dev --model a --scripted",
            "shoal dev --scripted --workers 0",
            "shoal dev --scripted --workers 17",
            "shoal worker",
            "shoal router --name ../x",
            "shoal cert issue --dir d --role king --name n",
            "shoal pull",
            "shoal bench --concurrency 0",
            "shoal bench --concurrency 1,,8",
            "shoal bench --model a --models b,c",
            "shoal bench --vocab 100",
            "shoal bench --prompt-ids",
            "shoal bench --extra [1]",
            "shoal bench --arrive-long 9 --requests 3",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for command in ["dev", "router", "worker", "check", "cert", "pull", "bench"] {
            let help = parse(&format!("shoal {command} --help")).expect_err("help ends the command");
            assert_eq!(help.kind(), ErrorKind::DisplayHelp);
            assert!(help.to_string().contains(&format!("  shoal {command} ")), "{help}");
        }
    }
}
