//! `[[worker]]`: the rules of a worker. Called by `check` once the models are known.

use std::net::SocketAddr;

use config::{Value, ValueKind};

use super::hosts;
use super::models::required_name;
use super::report::Report;
use super::section::{Section, describe, nearest};
use super::{HostConfig, RouterConfig, Scope, WorkerConfig, peering};
use crate::ids::Name;

const WORKER: [&str; 20] = [
    "name",
    "model",
    "routers",
    "slots",
    "groups",
    "kv_tokens",
    "step_tokens",
    "threads",
    "adapter_slots",
    "adapter_bytes",
    "adapter_disk_bytes",
    "data_dir",
    "host",
    "stage_listen",
    "memory",
    "speed",
    "zone",
    "peer_listen",
    "peer_address",
    "metrics",
];

/// Adapters in memory at once, at most.
const MOST_ADAPTERS: u32 = 4096;

/// Bytes of adapter files that are kept without being told: some hundred adapters of usual size.
const ADAPTER_DISK_BYTES: u64 = 8 << 30;

/// The `[[worker]]` sections.
pub(super) struct Workers {
    /// Those without a fault.
    pub(super) whole: Vec<WorkerConfig>,
    /// The names of all: a stage that is a faulty worker is not at fault itself.
    pub(super) names: Vec<Name>,
    /// Where each part runs.
    pub(super) hosts: HostConfig,
}

/// Every `[[worker]]`, and where each part runs.
pub(super) fn workers(
    root: &Section<'_>,
    models: &[Name],
    router: &RouterConfig,
    scope: &Scope,
    report: &mut Report,
) -> Workers {
    let sections = root.sections("worker", &WORKER, report);
    let mut hosts = hosts::all(root, report);
    let mut names = Vec::new();
    let read = |section: &Section<'_>| {
        let name = required_name(section, "its certificate carries its name", &mut names, report);
        let model = hosted_model(section, models, report);
        let routers = routers(section, router, scope, report);
        let sizes = Sizes::read(section, report);
        let host = hosts::host(section, report);
        hosts::can_dial(section, &host, &hosts, router, report);
        hosts.workers.push(host);
        let data_dir = section.path("data_dir", report);
        let stage = StageSettings::read(section, report);
        let peering = peering::peering(section, scope, report);
        let metrics = section.address("metrics", report);
        let name = name?;
        Some(WorkerConfig {
            data_dir: data_dir.unwrap_or_else(|| router.data_dir.join(directory_of(&name))),
            name,
            model: model?,
            routers,
            slots: sizes.slots,
            groups: sizes.groups,
            kv_tokens: sizes.kv_tokens,
            step_tokens: sizes.step_tokens,
            threads: sizes.threads,
            adapter_slots: sizes.adapter_slots,
            adapter_bytes: sizes.adapter_bytes,
            adapter_disk_bytes: sizes.adapter_disk_bytes,
            stage_listen: stage.listen,
            memory: stage.memory,
            speed: stage.speed,
            peering,
            metrics,
        })
    };
    let whole: Vec<_> = sections.iter().filter_map(read).collect();
    if let Scope::Worker(wanted) = scope {
        named_worker_exists(wanted, &sections, report);
    }
    Workers { whole, names, hosts }
}

/// What a worker says for the case that it hosts a part of a model.
struct StageSettings {
    listen: Option<SocketAddr>,
    memory: Option<u64>,
    speed: u32,
}

impl StageSettings {
    fn read(section: &Section<'_>, report: &mut Report) -> Self {
        Self {
            listen: section.address("stage_listen", report),
            memory: section.integer("memory", 1..=1 << 50, report),
            speed: section.integer("speed", 1..=1_000_000, report).unwrap_or(1),
        }
    }
}

/// The sizes of a worker, with their defaults.
struct Sizes {
    slots: u32,
    groups: u32,
    kv_tokens: Option<u64>,
    step_tokens: u32,
    threads: Option<u32>,
    adapter_slots: u32,
    adapter_bytes: Option<u64>,
    adapter_disk_bytes: u64,
}

impl Sizes {
    fn read(section: &Section<'_>, report: &mut Report) -> Self {
        let groups = section.integer("groups", 1..=65_536, report).unwrap_or(128);
        Self {
            slots: section.integer("slots", 1..=4096, report).unwrap_or(32),
            groups,
            kv_tokens: section.integer("kv_tokens", 1..=1 << 40, report),
            step_tokens: section.integer("step_tokens", 1..=65_536, report).unwrap_or(256),
            threads: section.integer("threads", 1..=1024, report),
            adapter_slots: section
                .integer("adapter_slots", 0..=MOST_ADAPTERS.into(), report)
                .unwrap_or_else(|| groups.min(MOST_ADAPTERS)),
            adapter_bytes: section.integer("adapter_bytes", 1..=1 << 50, report),
            adapter_disk_bytes: section
                .integer("adapter_disk_bytes", 0..=1 << 50, report)
                .unwrap_or(ADAPTER_DISK_BYTES),
        }
    }
}

/// One directory for each worker, whatever its name: a slash would lead elsewhere, and no name has a `~`.
fn directory_of(worker: &Name) -> String {
    format!("worker-{}", worker.as_str().replace('/', "~"))
}

/// The model a worker hosts: the one it names, or the only one there is.
fn hosted_model(section: &Section<'_>, models: &[Name], report: &mut Report) -> Option<Name> {
    let names: Vec<&str> = models.iter().map(Name::as_str).collect();
    if section.value("model").is_none() {
        if let [only] = models {
            return Some(only.clone());
        }
        let reason = format!("is missing, and there are {} models to choose from", models.len());
        section.fault("model", reason, "set model to the name of one [[model]]", report);
    }
    let name = section.name("model", report)?;
    if !names.contains(&name.as_str()) {
        let remedy = match nearest(name.as_str(), &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if names.is_empty() => "add a [[model]] of that name".to_owned(),
            None => format!("add a [[model]] of that name, or name one of: {}", names.join(", ")),
        };
        section.fault("model", format!("there is no model \"{name}\""), remedy, report);
    }
    Some(name)
}

/// The routers a worker dials: those it names, else the router of this file.
fn routers(section: &Section<'_>, router: &RouterConfig, scope: &Scope, report: &mut Report) -> Vec<String> {
    let remedy = "write a list of host:port, such as routers = [\"router.example:8443\"]";
    let Some(value) = section.value("routers") else {
        // Dev mode fills in the address that was really bound.
        let can_be_dialled = !router.quic.ip().is_unspecified() && router.quic.port() != 0;
        if !can_be_dialled && *scope != Scope::Dev {
            let reason = format!("is missing, and router.quic = {} is no address that can be dialled", router.quic);
            section.fault("routers", reason, remedy, report);
        }
        return vec![router.quic.to_string()];
    };
    let ValueKind::Array(elements) = &value.kind else {
        section.fault("routers", format!("is {}, not a list", describe(value)), remedy, report);
        return Vec::new();
    };
    if elements.is_empty() {
        section.fault("routers", "is empty: the worker would serve nobody", remedy, report);
    }
    let mut addresses = Vec::new();
    for (i, element) in elements.iter().enumerate() {
        match &element.kind {
            ValueKind::String(text) if is_host_and_port(text) => addresses.push(text.clone()),
            _ => report.fault(
                element,
                &format!("{}[{i}]", section.key("routers")),
                format!("{} is not host:port", describe(element)),
                remedy,
            ),
        }
    }
    addresses
}

pub(super) fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_good = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    host_is_good && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn named_worker_exists(wanted: &str, sections: &[Section<'_>], report: &mut Report) {
    let name_of = |section: &Section<'_>| match section.value("name") {
        Some(Value { kind: ValueKind::String(name), .. }) => Some(name.clone()),
        _ => None,
    };
    let names: Vec<String> = sections.iter().filter_map(name_of).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.contains(&wanted) {
        return;
    }
    let remedy = match nearest(wanted, &names) {
        Some(near) => format!("did you mean `--name {near}`?"),
        None if names.is_empty() => "add a [[worker]] of that name".to_owned(),
        None => format!("add a [[worker]] of that name, or name one of: {}", names.join(", ")),
    };
    report.missing("worker", format!("there is no worker \"{wanted}\""), remedy);
}
