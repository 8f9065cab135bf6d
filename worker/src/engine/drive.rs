//! Who runs the engine's loop: a thread of its own, or, in a simulation, a task in virtual time. The loop's parts are
//! `turn`'s. Called by the supervisor.

use std::io;
use std::sync::mpsc::TryRecvError;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::turn::{Engine, Inbox, Turn};
use super::{EngineHandle, IDLE_TICK, Served, assemble};
use crate::backend::{Backend, BackendError};
use crate::scheduler::Bounds;

/// Between two looks of an idle task at its inbox: a thread sleeps on the inbox itself, which a task cannot.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Who runs the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// A thread of its own, so that computing never holds up the network.
    Thread,
    /// A task of the runtime that [`spawn`] is called in. Only for a backend that computes in no time: the steps that it
    /// plays pass in the runtime's time, which a simulation makes up.
    Task,
}

/// The engine's thread or task; join it after [`EngineHandle::stop`].
#[derive(Debug)]
pub enum EngineRun {
    /// Of [`Drive::Thread`].
    Thread(thread::JoinHandle<()>),
    /// Of [`Drive::Task`].
    Task(tokio::task::JoinHandle<()>),
}

/// The engine panicked, outside of its backend.
#[derive(Debug, thiserror::Error)]
#[error("the engine panicked")]
pub struct EnginePanicked;

impl EngineRun {
    /// Waits for the engine's end.
    pub async fn join(self) -> Result<(), EnginePanicked> {
        match self {
            Self::Thread(thread) => match tokio::task::spawn_blocking(|| thread.join()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(EnginePanicked),
            },
            Self::Task(task) => task.await.map_err(|_| EnginePanicked),
        }
    }
}

/// Why the engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The backend has no room for the KV.
    #[error("the kv cannot be reserved")]
    Kv(#[from] BackendError),
    /// The system gives no thread.
    #[error("the engine's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// Reserves the KV and starts the engine.
pub fn spawn(
    drive: Drive,
    served: Served,
    bounds: Bounds,
    mut backend: Box<dyn Backend>,
) -> Result<(EngineHandle, EngineRun), StartError> {
    backend.reserve(bounds.blocks)?;
    let (handle, engine) = assemble(served, bounds, backend);
    let run = match drive {
        Drive::Thread => {
            let thread = thread::Builder::new().name("engine".into());
            EngineRun::Thread(thread.spawn(move || engine.run()).map_err(StartError::Thread)?)
        }
        Drive::Task => EngineRun::Task(tokio::spawn(run_in_task(engine))),
    };
    Ok((handle, run))
}

/// [`Engine::run`] in the runtime's time.
async fn run_in_task(mut engine: Engine) {
    while wait_for_command(&mut engine).await == Inbox::Open && !engine.is_stopped() {
        while engine.read_commands(Turn::Busy) == Inbox::Open && !engine.is_stopped() {
            let turn = engine.work();
            pass(engine.owed).await;
            engine.tell();
            if turn == Turn::Idle {
                break;
            }
        }
    }
    engine.finish();
}

/// A step of no time still lets everybody else go on.
async fn pass(time: Duration) {
    if time.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(time).await;
    }
}

/// What an idle thread does with its inbox.
async fn wait_for_command(engine: &mut Engine) -> Inbox {
    let until = Instant::now() + IDLE_TICK;
    loop {
        match engine.try_command() {
            Ok(()) => return Inbox::Open,
            Err(TryRecvError::Disconnected) => return Inbox::Closed,
            Err(TryRecvError::Empty) if Instant::now() >= until => return Inbox::Open,
            Err(TryRecvError::Empty) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}
