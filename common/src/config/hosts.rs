//! Where the parts of a cluster run: `router.host`, `worker.host` and `cluster.remote_dir`. For `scripts/cluster`, which starts
//! them there; a process itself does not ask. Called by `check` and `workers`; opens no file and resolves no name.

use std::fmt;

use super::report::Report;
use super::section::Section;
use super::{HostConfig, RouterConfig};

/// Longest destination in bytes: a user and a host name.
const MAX_DESTINATION: usize = 255;

/// Longest `cluster.remote_dir` in bytes.
const MAX_DIR: usize = 512;

/// A machine, as the one who starts processes reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// This machine.
    Here,
    /// Another one.
    Ssh(Destination),
}

/// What `ssh` is told: `host` or `user@host`, of letters, digits and `._-`, so that no shell and no option parser can take
/// it for anything else. Ports and keys belong into the ssh configuration, under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination(String);

impl Destination {
    fn parse(text: &str) -> Option<Self> {
        let (user, host) = text.split_once('@').map_or((None, text), |(user, host)| (Some(user), host));
        let good = text.len() <= MAX_DESTINATION && user.is_none_or(is_plain) && is_plain(host);
        good.then(|| Self(text.to_owned()))
    }

    /// As `ssh` takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("this machine"),
            Self::Ssh(destination) => f.write_str(&destination.0),
        }
    }
}

fn is_plain(part: &str) -> bool {
    part.as_bytes().first().is_some_and(|first| first.is_ascii_alphanumeric() || *first == b'_')
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Where `text` is.
fn parse(text: &str) -> Option<Host> {
    match text {
        "localhost" | "127.0.0.1" | "::1" => Some(Host::Here),
        other => Destination::parse(other).map(Host::Ssh),
    }
}

/// `cluster.remote_dir` and `router.host`; the workers' are still to come.
pub(super) fn all(root: &Section<'_>, report: &mut Report) -> HostConfig {
    let (cluster, router) = (root.known("cluster"), root.known("router"));
    HostConfig { dir: remote_dir(&cluster, report), router: host(&router, report), workers: Vec::new() }
}

/// `host` of a router or worker; absent is this machine.
pub(super) fn host(section: &Section<'_>, report: &mut Report) -> Host {
    let Some(text) = section.text("host", report) else { return Host::Here };
    parse(text).unwrap_or_else(|| {
        let remedy = "write what ssh takes: \"host\" or \"user@host\", of letters, digits and . _ - ; a name of ~/.ssh/config \
                      can stand for a port and a key, too";
        section.fault("host", format!("{text:?} is no host to reach by ssh"), remedy, report);
        Host::Here
    })
}

/// Whether the text of a `host` setting means another machine.
pub(super) fn is_elsewhere(text: &str) -> bool {
    matches!(parse(text), Some(Host::Ssh(_)))
}

/// `cluster.remote_dir`: absolute, or under the home directory of whoever logs in there.
fn remote_dir(section: &Section<'_>, report: &mut Report) -> String {
    let named = section.value("name").and_then(|name| name.clone().into_string().ok());
    // A cluster's name is one directory, whatever it is called.
    let default =
        || format!("~/.local/share/shoal/cluster-{}", named.as_deref().unwrap_or("shoal").replace('/', "%2F"));
    let Some(dir) = section.text("remote_dir", report) else { return default() };
    let begins = dir.starts_with('/') || dir.starts_with("~/");
    let plain = |b: u8| b.is_ascii_alphanumeric() || b" ._/~@%+=:,-".contains(&b);
    if dir.len() <= MAX_DIR && begins && dir.trim_end_matches('/').len() > 1 && dir.bytes().all(plain) {
        return dir.trim_end_matches('/').to_owned();
    }
    let remedy = "write a directory that begins with / or ~/, of letters, digits, spaces and . _ ~ @ % + = : , -";
    section.fault("remote_dir", format!("{dir:?} is no directory that can be used on every host"), remedy, report);
    default()
}

/// A worker that runs elsewhere and dials the router of this file must be able to.
pub(super) fn can_dial(
    section: &Section<'_>,
    worker: &Host,
    hosts: &HostConfig,
    router: &RouterConfig,
    report: &mut Report,
) {
    if *worker != hosts.router && router.quic.ip().is_loopback() && section.value("routers").is_none() {
        let reason = format!(
            "this worker runs on {worker} and the router on {}, where router.quic = {} cannot be dialled from elsewhere",
            hosts.router, router.quic
        );
        let remedy = "set router.quic to the router's address on its network, or `routers` of this worker";
        section.fault("host", reason, remedy, report);
    }
}
