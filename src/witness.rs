//! `shoal witness`: the small process beside each worker that outlives it by a moment. When a worker's process is killed its
//! machine says nothing to anybody, and the others would wait for its words until `idle_ms` is over. The witness holds the other
//! end of a pipe: the kernel closes the worker's end however it dies. Then the witness of one that serves routers tells them whose
//! life has ended, with the worker's own certificate; that of a stage answers its head in its place, on the stage's own socket,
//! that there is no such connection. Where it cannot, they notice by themselves, later. Started by `roles`, not by people.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use shoal_common::config::{Timers, WorkerConfig};
use shoal_common::ids::{Incarnation, Name};
use shoal_common::pki::{Identity, Role};
use shoal_common::quic::{self, ResetKey};
use tokio::signal::unix::{SignalKind, signal};

/// The command that starts one.
const COMMAND: &str = "witness";
/// What a worker says before it ends in order.
const NOTHING_TO_TELL: u8 = b'.';

/// For how long a dead stage's head is answered. It sends something every `keep_alive_ms`, and more while it waits for a step.
/// Nobody else can have the stage's address before.
pub(crate) const ANSWERED_FOR: Duration = Duration::from_secs(1);

/// Whose death is to be told, to whom. One line of JSON, the first that a witness reads.
#[derive(Debug, Serialize, Deserialize)]
enum Charge {
    /// Of a worker that serves routers.
    Routers { worker: Name, incarnation: Incarnation, pki: PathBuf, routers: Vec<String>, connect: Duration },
    /// Of a stage. Its socket is the witness's standard output.
    Head(ResetKey),
}

/// A witness at work. Dropped without [`Witness::dismiss`], it takes the worker for dead.
#[derive(Debug)]
pub(crate) struct Witness {
    child: Child,
    pipe: ChildStdin,
}

impl Witness {
    /// Starts one for this life of `worker`, which serves routers.
    pub(crate) fn of_worker(
        worker: &WorkerConfig,
        incarnation: Incarnation,
        pki: &Path,
        timers: &Timers,
    ) -> anyhow::Result<Self> {
        let charge = Charge::Routers {
            worker: worker.name.clone(),
            incarnation,
            pki: pki.to_owned(),
            routers: worker.routers.clone(),
            connect: timers.connect,
        };
        Self::start(&charge, Stdio::null())
    }

    /// Starts one for a stage. `socket` is the one that its endpoint, which has `key`, listens on.
    pub(crate) fn of_stage(socket: UdpSocket, key: &ResetKey) -> anyhow::Result<Self> {
        Self::start(&Charge::Head(key.clone()), OwnedFd::from(socket).into())
    }

    fn start(charge: &Charge, output: Stdio) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(COMMAND).stdin(Stdio::piped()).stdout(output).spawn()?;
        let mut pipe = child.stdin.take().context("it has no standard input")?;
        serde_json::to_writer(&mut pipe, charge)?;
        pipe.write_all(b"\n")?;
        Ok(Self { child, pipe })
    }

    /// The worker ends in order and has told everybody itself.
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
    // What can be wrong is found while the worker lives.
    let told: BoxFuture<'_, anyhow::Result<()>> = match &charge {
        Charge::Routers { worker, incarnation, pki, routers, connect } => {
            let identity = Identity::load(pki, worker, Role::Worker)?;
            let timers = Timers { connect: *connect, ..Timers::default() };
            async move { Ok(shoal_worker::tell_of_death(&identity, &timers, routers, *incarnation).await?) }.boxed()
        }
        Charge::Head(key) => {
            let socket = UdpSocket::from(io::stdout().as_fd().try_clone_to_owned()?);
            async move { Ok(quic::reset_connections(socket, key, ANSWERED_FOR).await?) }.boxed()
        }
    };
    let has_died = worker.bytes().next().transpose()?.is_none();
    if has_died { runtime.block_on(told) } else { Ok(()) }
}
