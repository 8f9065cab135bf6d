//! The engine: one OS thread that plans, computes, draws and says, step after step. Sessions hand groups in through an
//! [`EngineHandle`]; tokens leave through each group's [`GroupSink`]. What it computes next is the policy's decision
//! ([`crate::scheduler`]), how is the backend's. It never touches a socket and never waits for one.
//!
//! A turn: commands and links are read (`turn`), a step is planned, computed and drawn (`step`), one report per connection
//! goes out ([`sink`]), the status is published. Idle turns come every [`IDLE_TICK`], so that a loop that stands still shows.

mod admission;
mod drive;
mod group;
pub(crate) mod guarded;
mod hashes;
pub mod link;
mod overlap;
mod rate;
pub mod sink;
mod step;
#[cfg(test)]
pub(crate) mod tests;
mod turn;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use shoal_common::ambient;
use shoal_common::watch;
use shoal_common::wire::hello::{Status, WorkerState};
use shoal_common::wire::message::{GroupFailure, GroupFrame, Submit};

use admission::Arrival;
pub use admission::Served;
pub use drive::{Drive, EngineRun, StartError, spawn};
use link::{GroupLink, Waker};
pub use sink::GroupSink;
use turn::{Engine, Links};

use crate::adapters::Lease;
use crate::backend::Backend;
use crate::scheduler::Bounds;

/// Submissions that wait for the engine to end its step; more are answered `Busy`.
pub const COMMANDS: usize = 1024;
/// Between the turns of an idle engine: well under the status interval, so that its progress shows in each status.
pub const IDLE_TICK: Duration = Duration::from_millis(100);

/// What sessions ask of the engine. What must never be lost goes through a [`GroupLink`] instead.
#[derive(Debug)]
enum Command {
    Submit(Box<Arrival>),
    Wake,
}

/// What the engine is told to do with groups; only ever raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Mode {
    /// Take groups.
    Serve = 0,
    /// Finish what is here.
    Drain = 1,
    /// Fail what is here and end.
    Stop = 2,
}

#[derive(Debug)]
struct Orders(AtomicU8);

impl Orders {
    fn raise(&self, mode: Mode) {
        self.0.fetch_max(mode as u8, Ordering::AcqRel);
    }

    fn mode(&self) -> Mode {
        match self.0.load(Ordering::Acquire) {
            0 => Mode::Serve,
            1 => Mode::Drain,
            _ => Mode::Stop,
        }
    }
}

/// The way in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    commands: SyncSender<Command>,
    waker: Arc<Waker>,
    orders: Arc<Orders>,
    status: watch::Receiver<Status>,
    served: Served,
}

/// An engine that nobody runs yet.
fn assemble(served: Served, bounds: Bounds, backend: Box<dyn Backend>) -> (EngineHandle, Engine) {
    let (commands, inbox) = sync_channel(COMMANDS);
    let (publish, status) = watch::channel(idle_status());
    let orders = Arc::new(Orders(AtomicU8::new(Mode::Serve as u8)));
    let waker = Arc::new(Waker::new(commands.clone()));
    let links = Links { inbox, publish, orders: orders.clone(), wake_queued: waker.queued() };
    let weak = Arc::downgrade(&waker);
    let handle = EngineHandle { commands, waker, orders, status, served };
    let mut engine = Engine::new(bounds, backend, links);
    engine.backend.wake_with(Arc::new(move || weak.upgrade().iter().for_each(|waker| waker.wake())));
    // A backend may begin with a part of the model away.
    engine.publish();
    (handle, engine)
}

fn idle_status() -> Status {
    Status {
        state: WorkerState::Ready,
        progress: 0,
        running: 0,
        waiting: 0,
        queued_tokens: 0,
        kv_used: 0,
        tokens_per_second: 0,
        looked_up_tokens: 0,
        cached_tokens: 0,
        preemptions: 0,
    }
}

impl EngineHandle {
    /// The shared state of a new group, for its sink, its writer and whoever may cancel it.
    pub fn link(&self) -> Arc<GroupLink> {
        Arc::new(GroupLink::new(self.waker.clone()))
    }

    /// Whether a group can be run here, once its adapter is.
    pub fn check(&self, submit: &Submit) -> Result<(), GroupFailure> {
        self.served.check(submit)
    }

    /// Runs a group with the adapter that it names, which is given back when it ends. Whatever becomes of it, its sink hears
    /// it, and then exactly one end.
    pub fn submit(&self, submit: Submit, adapter: Option<Lease>, sink: GroupSink) {
        if let Err(failure) = self.served.check_with(&submit, adapter.as_ref()) {
            return sink.refuse(GroupFrame::Failed(failure));
        }
        let deadline = submit.deadline_ms.map(|ms| ambient::now() + Duration::from_millis(ms.into()));
        // Here and not on the engine's thread, where all streams would wait for it.
        let hashes = hashes::of_submission(&submit);
        let command = Command::Submit(Box::new(Arrival { submit, hashes, adapter, sink, deadline }));
        if let Err(refused) = self.commands.try_send(command) {
            let (std::sync::mpsc::TrySendError::Full(command) | std::sync::mpsc::TrySendError::Disconnected(command)) =
                refused;
            if let Command::Submit(arrival) = command {
                arrival.sink.refuse(turn::busy(Duration::from_secs(1)));
            }
        }
    }

    /// Takes no new groups from now on; those that are here are finished.
    pub fn drain(&self) {
        self.order(Mode::Drain);
    }

    /// Fails all groups that are left and ends the thread.
    pub fn stop(&self) {
        self.order(Mode::Stop);
    }

    fn order(&self, mode: Mode) {
        self.orders.raise(mode);
        self.waker.wake();
    }

    /// The latest status, published each turn. Closed once the engine's thread has ended.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}
