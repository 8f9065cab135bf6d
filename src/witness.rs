//! `shoal witness`: the small process beside each worker that outlives it by a moment. When a worker's process is killed its
//! machine says nothing to anybody, and routers would wait for its words until `idle_ms` is over. The witness holds the other end
//! of a pipe: the kernel closes the worker's end however it dies, and the witness tells the routers whose life has ended, with
//! the worker's own certificate. Where it cannot, they notice by themselves, later. Started by `roles`, not by people.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use shoal_common::config::{Timers, WorkerConfig};
use shoal_common::ids::{Incarnation, Name};
use shoal_common::pki::{Identity, Role};
use tokio::signal::unix::{SignalKind, signal};

/// The command that starts one.
const COMMAND: &str = "witness";
/// What a worker says before it ends in order.
const NOTHING_TO_TELL: u8 = b'.';

/// Whose death is to be told, to whom. One line of JSON, the first that a witness reads.
#[derive(Debug, Serialize, Deserialize)]
struct Charge {
    worker: Name,
    incarnation: Incarnation,
    pki: PathBuf,
    routers: Vec<String>,
    connect: Duration,
}

/// A witness at work. Dropped without [`Witness::dismiss`], it takes the worker for dead.
#[derive(Debug)]
pub(crate) struct Witness {
    child: Child,
    pipe: ChildStdin,
}

impl Witness {
    /// Starts one for this life of `worker`.
    pub(crate) fn start(
        worker: &WorkerConfig,
        incarnation: Incarnation,
        pki: &Path,
        timers: &Timers,
    ) -> anyhow::Result<Self> {
        let charge = Charge {
            worker: worker.name.clone(),
            incarnation,
            pki: pki.to_owned(),
            routers: worker.routers.clone(),
            connect: timers.connect,
        };
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let mut pipe = child.stdin.take().context("it has no standard input")?;
        serde_json::to_writer(&mut pipe, &charge)?;
        pipe.write_all(b"\n")?;
        Ok(Self { child, pipe })
    }

    /// The worker ends in order and has told the routers itself.
    pub(crate) fn dismiss(mut self) {
        // Fails where the witness is gone, and then it tells nothing either.
        let _ = self.pipe.write_all(&[NOTHING_TO_TELL]);
        drop(self.pipe);
        let _ = self.child.wait();
    }
}

/// Waits for the worker's end, and tells of it unless it was in order.
pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Whoever stops the worker's whole process group, or its unit, stops this too: the worker says what is to come of it.
    let _ignored = {
        let _within = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
    };
    let mut worker = BufReader::new(io::stdin().lock());
    let mut line = String::new();
    worker.read_line(&mut line)?;
    let charge: Charge = serde_json::from_str(&line).context("it is started by `shoal worker`")?;
    let identity = Identity::load(&charge.pki, &charge.worker, Role::Worker)?;
    let has_died = worker.bytes().next().transpose()?.is_none();
    if has_died {
        let timers = Timers { connect: charge.connect, ..Timers::default() };
        runtime.block_on(shoal_worker::tell_of_death(&identity, &timers, &charge.routers, charge.incarnation))?;
    }
    Ok(())
}
