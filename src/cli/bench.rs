//! The flags of `shoal bench`, and the order that they make.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};

use crate::bench;

pub(super) const BENCH_HELP: &str = "\
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
  shoal bench --concurrency 8 --models upper,pirate,json,french   adapters in turn

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
    /// Models to ask for in turn, or adapters of one
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
    /// Members of every request's body, over what is there; given several times, each in turn
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    extra: Vec<Map<String, Value>>,
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
