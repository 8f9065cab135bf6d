//! The flags of `shoal status`, `shoal drain` and `shoal plan`, and their help.

use std::time::Duration;

use clap::Args;
use shoal_common::ids::Name;

use crate::operate::{Form, Order};

/// Where a router answers.
#[derive(Args, Debug)]
pub(crate) struct RouterUrl {
    /// The router
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
}

pub(super) const STATUS_HELP: &str = "\
Asks GET /v1/cluster: every worker with its state, model and load, and what went wrong with workers lately, with what to do \
about it.

State of a worker: joining (has just connected, and not said yet how it is: takes nothing); ready; incomplete (stages of its \
model are away: takes nothing); draining (takes nothing new); drained (and nothing of this router runs on it); stuck (its engine \
stands still: takes nothing until that moves again). The stages of a split model are listed with the share of the last second \
in which they computed.

Examples:
  shoal status
  shoal status --url http://127.0.0.1:9000
  shoal status --lines | grep ^worker          for scripts: fields apart by tabs";

/// `shoal status`
#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) router: RouterUrl,
    /// One line for each worker and incident, fields apart by tabs
    #[arg(long)]
    lines: bool,
}

impl Status {
    pub(crate) fn form(&self) -> Form {
        if self.lines { Form::Lines } else { Form::Table }
    }
}

pub(super) const DRAIN_HELP: &str = "\
A drained worker finishes what runs and gets nothing new. The order is this router's alone: where several routers share the \
worker, drain it at each of them. It stands until it is taken back (--undo) or the worker is started again; a worker that only \
lost its connection is told again. Taken from the router's own machine only.

SIGTERM to a worker drains it for all routers and ends it.

Examples:
  shoal drain --worker alpha --wait     until nothing runs on it
  shoal drain --worker alpha --undo     serve again";

/// `shoal drain`
#[derive(Args, Debug)]
pub(crate) struct Drain {
    /// The worker's name
    #[arg(long, value_name = "NAME")]
    pub(crate) worker: Name,
    #[command(flatten)]
    pub(crate) router: RouterUrl,
    /// Take the order back: the worker serves again
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
    /// Return when nothing of this router runs on the worker any more
    #[arg(long)]
    wait: bool,
    /// Seconds to wait at most; the worker goes on draining after that
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "wait")]
    within: u64,
}

impl Drain {
    pub(crate) fn order(&self) -> Order {
        if self.undo { Order::Undrain } else { Order::Drain }
    }

    /// How long to wait for the end of what runs; `None` not at all.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.wait.then(|| Duration::from_secs(self.within))
    }
}

pub(super) const PLAN_HELP: &str = "\
For scripts such as scripts/cluster: one line for each part of the cluster, fields apart by tabs, none of them empty (`-` for \
what is not set, `.` for this machine). Neither certificates nor model files have to be here.

  cluster  NAME  DIRECTORY-ON-HOSTS  PKI-DIRECTORY  DRAIN-MS
  router   NAME  FILE-NAME  HOST  HTTP-URL  QUIC-ADDRESS
  worker   NAME  FILE-NAME  HOST  MODEL  MODEL-PATH  HEAD
  stage    REPLICA  WORKER  LAYERS  WEIGHT-BYTES  KV-BYTES  SHARE-OF-A-STEP

HEAD is the first stage of the replica that the worker is a stage of: itself, or the worker that dials it.

Lines of stages come with --stages. LAYERS is the first and one past the last. Bytes and share, in hundredths, are known where \
the model is on this machine; KV-BYTES is for kv_tokens of the head, or for one sequence of the longest. What a run alone can \
tell, such as the time of a step, is in `shoal status`.

The certificate files of a part are FILE-NAME.pem and FILE-NAME.key.

Example:
  shoal plan --config cluster.toml
  shoal plan --stages";

/// `shoal plan`
#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// Also one line for each stage of each split model; reads the models that are on this machine
    #[arg(long)]
    pub(crate) stages: bool,
}
