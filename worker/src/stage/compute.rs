//! The thread of a stage that has its layers. Steps come in order and go out in order; the thread never waits for a socket,
//! and a step that fails or panics is told as failed and costs nothing else.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use shoal_common::ids::TokenId;
use shoal_common::telemetry::Chain;
use shoal_common::wire::stage::{StageSlice, StageStep};
use tokio::sync::{oneshot, watch};

use crate::adapters::{Adapter, Lease};
use crate::backend::{Backend, BackendError, BlockId, LogitsOf, Slice};
use crate::engine::guarded::guard;

/// Steps that wait for the thread: as many as a head has in flight.
pub(super) const STEPS: usize = 8;

/// What is asked of the thread.
enum Work {
    /// Room for so many blocks.
    Reserve { blocks: usize, done: oneshot::Sender<Result<(), BackendError>> },
    /// A step; its rows are overwritten with the layers' output.
    Step { step: Worn, rows: Vec<f32>, done: oneshot::Sender<Option<Computed>> },
}

/// A step with the adapters that its slices name.
pub(super) struct Worn {
    pub(super) step: StageStep,
    /// One for each slice; held until the step is done.
    pub(super) adapters: Vec<Option<Lease>>,
}

/// A step that was computed.
pub(super) struct Computed {
    pub(super) rows: Vec<f32>,
    pub(super) took: Duration,
}

/// How busy the thread is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Busy {
    /// Steps computed since the start.
    pub steps: u64,
    /// Time that they took.
    pub computing: Duration,
}

/// The way to the thread. The thread ends when the last one is dropped.
#[derive(Clone)]
pub(super) struct Compute {
    work: SyncSender<Work>,
    busy: watch::Receiver<Busy>,
}

/// The thread is busy with more than a head may ask for, or gone.
#[derive(Debug, thiserror::Error)]
#[error("the stage's thread takes no more")]
pub(super) struct TakesNoMore;

impl<T> From<TrySendError<T>> for TakesNoMore {
    fn from(_: TrySendError<T>) -> Self {
        Self
    }
}

impl Compute {
    /// Starts the thread.
    pub(super) fn spawn(backend: Box<dyn Backend>) -> io::Result<Self> {
        let (work, asked) = sync_channel(STEPS);
        let (publish, busy) = watch::channel(Busy::default());
        thread::Builder::new().name("stage".into()).spawn(move || Layers { backend, publish }.run(&asked))?;
        Ok(Self { work, busy })
    }

    /// Makes room for KV. An earlier room is given up, with all that it held.
    pub(super) async fn reserve(&self, blocks: usize) -> Result<(), BackendError> {
        let (done, reserved) = oneshot::channel();
        let gone = |_| BackendError { backend: "stage", source: Box::new(TakesNoMore) };
        self.work.try_send(Work::Reserve { blocks, done }).map_err(|_| gone(()))?;
        reserved.await.map_err(|_| gone(()))?
    }

    /// Has a step computed after those before. Resolves to nothing where it failed.
    pub(super) fn step(&self, step: Worn, rows: Vec<f32>) -> Result<oneshot::Receiver<Option<Computed>>, TakesNoMore> {
        let (done, computed) = oneshot::channel();
        self.work.try_send(Work::Step { step, rows, done })?;
        Ok(computed)
    }

    /// How busy the thread is.
    pub(super) fn busy(&self) -> watch::Receiver<Busy> {
        self.busy.clone()
    }
}

/// What the thread owns.
struct Layers {
    backend: Box<dyn Backend>,
    publish: watch::Sender<Busy>,
}

impl Layers {
    fn run(mut self, asked: &Receiver<Work>) {
        // Whoever asked may be gone; then nobody needs the answer.
        while let Ok(work) = asked.recv() {
            match work {
                Work::Reserve { blocks, done } => drop(done.send(guard(|| self.backend.reserve(blocks)))),
                Work::Step { step, rows, done } => drop(done.send(self.step(&step, rows))),
            }
        }
    }

    fn step(&mut self, step: &Worn, mut rows: Vec<f32>) -> Option<Computed> {
        let began = Instant::now();
        if let Err(error) = guard(|| carry(&mut *self.backend, step, &mut rows)) {
            tracing::error!(error = %Chain(&error), "a step failed");
            return None;
        }
        let took = began.elapsed();
        self.publish.send_modify(|busy| {
            busy.steps += 1;
            busy.computing += took;
        });
        Some(Computed { rows, took })
    }
}

fn carry(backend: &mut dyn Backend, worn: &Worn, rows: &mut [f32]) -> Result<(), BackendError> {
    let Worn { step, adapters } = worn;
    step.copies.iter().try_for_each(|(from, to)| backend.copy_block(BlockId(*from), BlockId(*to)))?;
    let longest = step.slices.iter().map(|slice| slice.count).max().unwrap_or(0);
    // The layers count tokens and look at none.
    let tokens = vec![TokenId(0); longest as usize];
    let tables: Vec<Vec<BlockId>> = step.slices.iter().map(table).collect();
    let slices: Vec<Slice<'_>> = step
        .slices
        .iter()
        .zip(tables.iter().zip(adapters))
        .map(|(StageSlice { start, count, .. }, (blocks, adapter))| Slice {
            start: *start as usize,
            tokens: &tokens[..*count as usize],
            blocks,
            adapter: adapter.as_deref().map(|adapter: &Adapter| adapter),
            logits: LogitsOf::None,
        })
        .collect();
    backend.carry(&slices, rows)
}

fn table(slice: &StageSlice) -> Vec<BlockId> {
    slice.blocks.iter().copied().map(BlockId).collect()
}
