//! The whole model as the head's engine sees it: its own layers, then the stages' in their order, then its own output head.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use shoal_common::wire::stage::{StageSlice, StageStep};

use super::line::{Ask, Carried, Line};
use super::meter::Meter;
use super::replica::{Current, Epoch, Replica};
use crate::backend::{BLOCK_TOKENS, Backend, BackendError, BlockId, KvEpoch, LogitsBuffer, Slice};

/// A stage is given up when a step takes longer than this there: as long as the slowest prefill chunk of a useful machine, and
/// then [`SLOWEST`] times what such steps have taken lately.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);
const SLOWEST: u32 = 20;

/// Why a step did not go through the stages.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("not all stages are there")]
    NotTogether,
    #[error("a stage's connection ended")]
    LineEnded,
    #[error("a stage did not answer in time")]
    Stuck,
    #[error("a stage could not compute the step")]
    StageFailed,
}

impl From<Broken> for BackendError {
    fn from(source: Broken) -> Self {
        Self { backend: "pipeline", source: Box::new(source) }
    }
}

/// The backend of a head.
pub struct Pipeline {
    first: Box<dyn Backend>,
    current: Current,
    /// Counts what the head computes itself.
    meter: Meter,
    pinned: Option<Arc<Epoch>>,
    /// The epoch of the steps so far, and how many there were.
    epoch: Option<(u64, u64)>,
    /// To be made by the stages before the next step.
    copies: Vec<(u32, u32)>,
    rows: Vec<f32>,
    /// The longest step of late, per row.
    row_takes: Duration,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// `first` has the first layers and the ends; `replica` the rest.
    pub fn new(first: Box<dyn Backend>, replica: &Replica) -> Self {
        let (current, meter) = (replica.current(), replica.head_meter());
        Self {
            first,
            current,
            meter,
            pinned: None,
            epoch: None,
            copies: Vec::new(),
            rows: Vec::new(),
            row_takes: Duration::ZERO,
        }
    }

    /// Carries `self.rows` through all stages.
    fn carry_on(&mut self, epoch: &Epoch, slices: &[Slice<'_>]) -> Result<(), Broken> {
        let number = self.number_step(epoch);
        let step = StageStep {
            step: number,
            copies: std::mem::take(&mut self.copies),
            slices: slices.iter().map(stage_slice).collect(),
        };
        let count: u32 = step.slices.iter().map(|slice| slice.count).sum();
        let patience = LEAST_PATIENCE.max(self.row_takes * count * SLOWEST);
        for line in &epoch.lines {
            let carried = carry(line, step.clone(), std::mem::take(&mut self.rows), patience)?;
            self.rows = carried.rows;
            let row = carried.took / count.max(1);
            // Up at once and down slowly: patience is for the slowest.
            self.row_takes = row.max(self.row_takes - self.row_takes / 16);
        }
        Ok(())
    }

    /// The step's number in its epoch.
    fn number_step(&mut self, epoch: &Epoch) -> u64 {
        let next = match self.epoch {
            Some((number, next)) if number == epoch.number => next,
            _ => 0,
        };
        self.epoch = Some((epoch.number, next + 1));
        next
    }
}

fn stage_slice(slice: &Slice<'_>) -> StageSlice {
    let table = &slice.blocks[..slice.end().div_ceil(BLOCK_TOKENS)];
    StageSlice {
        start: slice.start as u32,
        count: slice.tokens.len() as u32,
        blocks: table.iter().map(|block| block.0).collect(),
        adapter: slice.adapter.map(|adapter| adapter.generation()),
    }
}

fn carry(line: &Line, step: StageStep, rows: Vec<f32>, patience: Duration) -> Result<Carried, Broken> {
    let (done, answer) = sync_channel(1);
    if !line.ask_blocking(Ask::Step { step, rows, done }) {
        return Err(Broken::LineEnded);
    }
    match answer.recv_timeout(patience) {
        Ok(carried) => carried.ok_or(Broken::StageFailed),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(Broken::Stuck),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(Broken::LineEnded),
    }
}

impl Backend for Pipeline {
    /// Of the head's layers: what this machine has to hold.
    fn kv_bytes_per_token(&self) -> u64 {
        self.first.kv_bytes_per_token()
    }

    fn width(&self) -> usize {
        self.first.width()
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.first.reserve(blocks)
    }

    fn pin_epoch(&mut self) -> Option<KvEpoch> {
        let current = self.current.get();
        let number = |epoch: &Option<Arc<Epoch>>| epoch.as_ref().map(|epoch| epoch.number);
        if number(&current) != number(&self.pinned) {
            // What they copy is lost.
            self.copies.clear();
        }
        self.pinned = current;
        number(&self.pinned).map(KvEpoch)
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let is_current = |epoch: &Arc<Epoch>| self.current.get().is_some_and(|current| current.number == epoch.number);
        let epoch = self.pinned.clone().filter(is_current).ok_or(Broken::NotTogether)?;
        let tokens: usize = slices.iter().map(|slice| slice.tokens.len()).sum();
        self.rows.resize(tokens * self.first.width(), 0.0);
        let began = Instant::now();
        self.first.begin(slices, &mut self.rows)?;
        let begun = began.elapsed();
        if let Err(broken) = self.carry_on(&epoch, slices) {
            self.current.give_up(epoch.number);
            return Err(broken.into());
        }
        let came_back = Instant::now();
        self.first.finish(slices, &self.rows, logits)?;
        self.meter.add(begun + came_back.elapsed());
        Ok(())
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.first.copy_block(from, to)?;
        self.copies.push((from.0, to.0));
        Ok(())
    }
}
