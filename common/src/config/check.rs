//! The rules of `cluster.toml`: turns the merged tree into a [`Config`], section by section, and records everything
//! that is wrong on the way. The lists have files of their own, `models`, `workers`, `replicas` and `adapters`. Looks at the file system only to
//! see whether a named file exists.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use config::Value;

use super::adapters;
use super::models::models;
use super::peering;
use super::replicas::replicas;
use super::report::Report;
use super::section::Section;
use super::workers::{Workers, workers};
use super::{
    ApiConfig, ClusterConfig, Config, Exposure, Limits, PromptLogPolicy, RouterConfig, Scope, Timers, UsageChunk,
};
use crate::adapter::bundle::MAX_BUNDLE;
use crate::ids::Name;
use crate::wire::message::{MAX_ALTERNATIVES, MAX_BRANCHES, MAX_LOGIT_BIAS};

/// A day: no timer of a cluster is longer.
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The whole cluster, as right as `report` is empty. `data_dir` is the default of `router.data_dir`.
pub(super) fn cluster(root: &Value, scope: &Scope, data_dir: PathBuf, report: &mut Report) -> Config {
    let known = ["cluster", "router", "worker", "replica", "model", "adapter", "limits", "api"];
    let root = Section::open("", Some(root), &known, report);
    let cluster = cluster_section(&root, scope, report);
    let router = router(&root, scope, data_dir, report);
    let models = models(&root, scope, report);
    let workers = workers(&root, &models.names, &router, scope, report);
    let replicas = replicas(&root, &models.whole, &workers, scope, report);
    let adapters = adapters::adapters(&root, &models.names, report);
    let limits = limits(&root.section("limits", &LIMITS, report), report);
    let api = api(&root, report);
    let Workers { whole: workers, hosts, .. } = workers;
    Config { cluster, router, workers, replicas, models: models.whole, adapters, limits, api, hosts }
}

fn cluster_section(root: &Section<'_>, scope: &Scope, report: &mut Report) -> ClusterConfig {
    let section = root.section("cluster", &["name", "pki", "timers", "remote_dir"], report);
    let name = section.name("name", report);
    let pki = section.path("pki", report);
    let needed = matches!(scope, Scope::Router | Scope::Worker(_));
    match &pki {
        None if needed && section.value("pki").is_none() => {
            let remedy = "make certificates with `shoal cert init --dir pki --cluster NAME` and `shoal cert issue`, then \
                          set cluster.pki = \"pki\"";
            section.fault("pki", "routers and workers prove who they are by certificate", remedy, report);
        }
        Some(dir) if !matches!(scope, Scope::Dev | Scope::Plan) && !dir.is_dir() => {
            let remedy = "make it with `shoal cert init`, or copy it from the machine that has it";
            section.fault("pki", format!("there is no directory {}", dir.display()), remedy, report);
        }
        _ => {}
    }
    let name = name.unwrap_or_else(|| Name::new("shoal").expect("it begins with a letter"));
    ClusterConfig { name, pki, timers: timers(&section, report) }
}

fn timers(cluster: &Section<'_>, report: &mut Report) -> Timers {
    let section =
        cluster.section("timers", &["keep_alive_ms", "idle_ms", "connect_ms", "stall_ms", "drain_ms"], report);
    let default = Timers::default();
    let mut millis = |key: &str, default: Duration| section.millis(key, 1..=DAY_MS, report).unwrap_or(default);
    let timers = Timers {
        keep_alive: millis("keep_alive_ms", default.keep_alive),
        idle: millis("idle_ms", default.idle),
        connect: millis("connect_ms", default.connect),
        stall: millis("stall_ms", default.stall),
        drain: millis("drain_ms", default.drain),
    };
    if timers.keep_alive * 2 > timers.idle {
        let reason = format!(
            "a link is taken for dead after {} ms, but keep-alives are {} ms apart",
            timers.idle.as_millis(),
            timers.keep_alive.as_millis()
        );
        section.fault(
            "idle_ms",
            reason,
            "make it at least twice keep_alive_ms, so that one lost packet is no death",
            report,
        );
    }
    timers
}

const ROUTER: [&str; 9] =
    ["listen", "quic", "insecure", "data_dir", "prompt_log", "adapters", "adapter_paths", "host", "zone"];

fn router(root: &Section<'_>, scope: &Scope, data_dir: PathBuf, report: &mut Report) -> RouterConfig {
    let section = root.section("router", &ROUTER, report);
    // In dev mode nobody else dials, so any free port will do.
    let quic_port = if *scope == Scope::Dev { 0 } else { 8443 };
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listen = section.address("listen", report).unwrap_or_else(|| loopback(8080));
    let insecure = section.truth("insecure", report).unwrap_or(false);
    // A worker reads the router's section only to know whom to dial.
    if !listen.ip().is_loopback() && !insecure && !matches!(scope, Scope::Worker(_)) {
        let reason = format!("{listen} can be reached from other machines, and this version has no API keys yet");
        let remedy = "listen on 127.0.0.1, or say --insecure (router.insecure = true) where something in front of it \
                      decides who may call";
        section.fault("listen", reason, remedy, report);
    }
    RouterConfig {
        listen,
        quic: section.address("quic", report).unwrap_or_else(|| loopback(quic_port)),
        exposure: if insecure { Exposure::Insecure } else { Exposure::LoopbackOnly },
        data_dir: section.path("data_dir", report).unwrap_or(data_dir),
        prompt_log: section
            .choice("prompt_log", &[("allowed", PromptLogPolicy::Allowed), ("off", PromptLogPolicy::Off)], report)
            .unwrap_or(PromptLogPolicy::Allowed),
        adapters: adapters::watched(&section, scope, report),
        adapter_paths: adapters::paths(&section, report),
        zone: peering::zone(&section, report),
    }
}

const LIMITS: [&str; 19] = [
    "body",
    "prompts",
    "candidates",
    "stop",
    "stop_bytes",
    "logit_bias",
    "logprobs",
    "user_bytes",
    "work",
    "requests",
    "replays",
    "connections",
    "adapters",
    "adapter_bytes",
    "header_timeout_ms",
    "body_timeout_ms",
    "slow_reader_ms",
    "sse_keep_alive_ms",
    "deadline_ms",
];

fn limits(section: &Section<'_>, report: &mut Report) -> Limits {
    let default = Limits::default();
    let mut size = |key: &str, range, default: usize| section.integer(key, range, report).unwrap_or(default);
    let (body, prompts) = (size("body", 1024..=1 << 30, default.body), size("prompts", 1..=65_536, default.prompts));
    // Candidates, logprobs and logit_bias end where the wire does: a worker refuses a group that asks for more.
    let (stop, stop_bytes) = (size("stop", 0..=1024, default.stop), size("stop_bytes", 1..=65_536, default.stop_bytes));
    let logit_bias = size("logit_bias", 0..=MAX_LOGIT_BIAS as i64, default.logit_bias);
    let user_bytes = size("user_bytes", 0..=65_536, default.user_bytes);
    let (requests, connections) =
        (size("requests", 1..=1 << 20, default.requests), size("connections", 1..=1 << 20, default.connections));
    let adapters = size("adapters", 0..=1 << 20, default.adapters);
    let adapter_bytes =
        section.integer("adapter_bytes", 1024..=MAX_BUNDLE as i64, report).unwrap_or(default.adapter_bytes);
    let candidates = section.integer("candidates", 1..=MAX_BRANCHES as i64, report).unwrap_or(default.candidates);
    let logprobs = section.integer("logprobs", 0..=MAX_ALTERNATIVES.into(), report).unwrap_or(default.logprobs);
    let replays = section.integer("replays", 0..=64, report).unwrap_or(default.replays);
    let work = section.integer("work", 1..=1 << 50, report).unwrap_or(default.work);
    let mut millis = |key: &str| section.millis(key, 1..=DAY_MS, report);
    Limits {
        body,
        prompts,
        candidates,
        stop,
        stop_bytes,
        logit_bias,
        logprobs,
        user_bytes,
        work,
        requests,
        replays,
        connections,
        adapters,
        adapter_bytes,
        header_timeout: millis("header_timeout_ms").unwrap_or(default.header_timeout),
        body_timeout: millis("body_timeout_ms").unwrap_or(default.body_timeout),
        slow_reader: millis("slow_reader_ms").unwrap_or(default.slow_reader),
        sse_keep_alive: millis("sse_keep_alive_ms").unwrap_or(default.sse_keep_alive),
        deadline: millis("deadline_ms"),
    }
}

fn api(root: &Section<'_>, report: &mut Report) -> ApiConfig {
    let section = root.section("api", &["usage_chunk"], report);
    let choices = [("octo", UsageChunk::Octo), ("openai", UsageChunk::OpenAi)];
    ApiConfig { usage_chunk: section.choice("usage_chunk", &choices, report).unwrap_or_default() }
}
