//! The whole model as the head's engine sees it: its own layers, then the stages' in their order, then its own output head.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use shoal_common::ids::TokenId;
use shoal_common::wire::stage::{StageSlice, StageStep};
use shoal_kernels::Precision;

use super::compute::STEPS;
use super::journey::{Arrived, Journey};
use super::meter::Meter;
use super::replica::{Current, Epoch, Replica};
use super::ring::Ring;
use crate::backend::{BLOCK_TOKENS, Backend, BackendError, BlockId, KvEpoch, LogitsBuffer, LogitsOf, Slice, Wake};

/// The stages are given up when a step is away for longer than this: as long as the slowest prefill chunk of a useful machine,
/// and then [`SLOWEST`] times what as many rows have taken lately.
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
    #[error("as many steps as allowed are under way")]
    Crowded,
}

impl From<Broken> for BackendError {
    fn from(source: Broken) -> Self {
        Self { backend: "pipeline", source: Box::new(source) }
    }
}

/// A step that is away.
struct Flight {
    epoch: u64,
    /// Of each slice, its tokens and the rows that are wanted.
    shape: Vec<(usize, LogitsOf)>,
    answer: Receiver<Option<Arrived>>,
    begun: Instant,
    /// What the head's first layers took.
    head: Duration,
    patience: Duration,
}

/// The backend of a head. At most `STEPS` steps are away at once.
pub struct Pipeline {
    first: Box<dyn Backend>,
    current: Current,
    /// Counts what the head computes itself.
    meter: Meter,
    pinned: Option<Arc<Epoch>>,
    /// To be made by the stages before the next step.
    copies: Vec<(u32, u32)>,
    flights: VecDeque<Flight>,
    ring: Ring,
    stages: usize,
    wake: Wake,
    /// Memory of rows that came back.
    rows: Vec<f32>,
    /// Tokens and blocks that are counted and not looked at.
    blank: (Vec<TokenId>, Vec<BlockId>),
    /// The longest step of late, per row.
    row_takes: Duration,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("pinned", &self.pinned)
            .field("away", &self.flights.len())
            .finish_non_exhaustive()
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
            copies: Vec::new(),
            flights: VecDeque::new(),
            ring: Ring::new(replica.stages(), STEPS),
            stages: replica.stages(),
            wake: Arc::new(|| {}),
            rows: Vec::new(),
            blank: (Vec::new(), Vec::new()),
            row_takes: Duration::ZERO,
        }
    }

    /// Has `steps` steps under way, whatever would be best.
    pub fn at_depth(mut self, steps: NonZero<usize>) -> Self {
        self.ring = Ring::fixed(self.stages, steps.get().min(STEPS));
        self
    }

    /// Sends a step on its way after the head's first layers.
    fn depart(&mut self, epoch: &Arc<Epoch>, slices: &[Slice<'_>], head: Duration) -> Result<(), Broken> {
        let step = StageStep {
            step: 0,
            copies: std::mem::take(&mut self.copies),
            slices: slices.iter().map(stage_slice).collect(),
        };
        let count = u32::try_from(step.rows()).unwrap_or(u32::MAX);
        let (done, answer) = sync_channel(1);
        let rows = std::mem::take(&mut self.rows);
        if !Journey::new(step, rows, epoch.clone(), done, self.wake.clone()).begin() {
            return Err(Broken::LineEnded);
        }
        let before = self.flights.iter().map(|flight| flight.patience).max().unwrap_or_default();
        self.flights.push_back(Flight {
            epoch: epoch.number,
            shape: slices.iter().map(|slice| (slice.tokens.len(), slice.logits)).collect(),
            answer,
            begun: Instant::now(),
            head,
            patience: LEAST_PATIENCE.max(before + self.row_takes * count * SLOWEST),
        });
        Ok(())
    }

    /// The end of a step that has an answer, or will never have one. Returns what it took where it took longest.
    fn arrive(
        &mut self,
        flight: &Flight,
        answer: Result<Option<Arrived>, Broken>,
        logits: &mut LogitsBuffer,
    ) -> Result<Duration, BackendError> {
        let arrived = match answer {
            Ok(Some(arrived)) => arrived,
            // What the step was to write is undefined, and all else is as it was.
            Ok(None) => return Err(Broken::StageFailed.into()),
            Err(broken) => {
                self.current.give_up(flight.epoch);
                return Err(broken.into());
            }
        };
        let began = Instant::now();
        let longest = flight.shape.iter().map(|(count, _)| *count).max().unwrap_or(0);
        let (tokens, blocks) = &mut self.blank;
        tokens.resize(longest.max(tokens.len()), TokenId(0));
        blocks.resize(tokens.len().div_ceil(BLOCK_TOKENS), BlockId(0));
        let slice = |(count, logits): &(usize, LogitsOf)| {
            let (tokens, blocks) = (&tokens[..*count], &blocks[..count.div_ceil(BLOCK_TOKENS)]);
            Slice { start: 0, tokens, blocks, adapter: None, logits: *logits }
        };
        let slices: Vec<Slice<'_>> = flight.shape.iter().map(slice).collect();
        self.first.finish(&slices, &arrived.rows, logits)?;
        let head = flight.head + began.elapsed();
        self.meter.add(head);
        Ok(self.learn(flight, arrived, head))
    }

    /// Takes note of what a step took.
    fn learn(&mut self, flight: &Flight, arrived: Arrived, head: Duration) -> Duration {
        let count: usize = flight.shape.iter().map(|(count, _)| count).sum();
        let stages: Duration = arrived.legs.iter().map(|leg| leg.took).sum();
        let row = (head + stages) / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        // Up at once and down slowly: patience is for the slowest.
        self.row_takes = row.max(self.row_takes - self.row_takes / 16);
        self.ring.observe(head, &arrived.legs);
        self.rows = arrived.rows;
        arrived.legs.iter().map(|leg| leg.took).max().unwrap_or_default().max(head)
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

impl Backend for Pipeline {
    /// Of the head's layers: what this machine has to hold.
    fn kv_bytes_per_token(&self) -> u64 {
        self.first.kv_bytes_per_token()
    }

    fn width(&self) -> usize {
        self.first.width()
    }

    fn adapter_precision(&self) -> Precision {
        self.first.adapter_precision()
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.first.reserve(blocks)
    }

    fn pin_epoch(&mut self) -> Option<KvEpoch> {
        let current = self.current.get();
        let number = |epoch: &Option<Arc<Epoch>>| epoch.as_ref().map(|epoch| epoch.number);
        if number(&current) != number(&self.pinned) {
            // What was to be copied, and what is away, is lost.
            self.copies.clear();
            self.flights.clear();
        }
        self.pinned = current;
        number(&self.pinned).map(KvEpoch)
    }

    /// A launch and its collection.
    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        if !self.flights.is_empty() {
            return Err(Broken::Crowded.into());
        }
        self.launch(slices)?;
        let Some(flight) = self.flights.pop_front() else { return Ok(()) };
        let answer = flight.answer.recv_timeout(flight.patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => Broken::Stuck,
            RecvTimeoutError::Disconnected => Broken::LineEnded,
        });
        self.arrive(&flight, answer, logits).map(drop)
    }

    fn depth(&self) -> usize {
        self.ring.depth()
    }

    fn wake_with(&mut self, wake: Wake) {
        self.wake = wake;
    }

    fn launch(&mut self, slices: &[Slice<'_>]) -> Result<(), BackendError> {
        let is_current = |epoch: &Arc<Epoch>| self.current.get().is_some_and(|current| current.number == epoch.number);
        let epoch = self.pinned.clone().filter(is_current).ok_or(Broken::NotTogether)?;
        if self.flights.len() >= STEPS {
            return Err(Broken::Crowded.into());
        }
        let tokens: usize = slices.iter().map(|slice| slice.tokens.len()).sum();
        self.rows.resize(tokens * self.first.width(), 0.0);
        let began = Instant::now();
        self.first.begin(slices, &mut self.rows)?;
        let head = began.elapsed();
        self.depart(&epoch, slices, head).map_err(|broken| {
            self.current.give_up(epoch.number);
            broken.into()
        })
    }

    fn collect(&mut self, logits: &mut LogitsBuffer) -> Option<Result<Duration, BackendError>> {
        let flight = self.flights.front()?;
        let answer = match flight.answer.try_recv() {
            Ok(answer) => Ok(answer),
            Err(TryRecvError::Empty) if flight.begun.elapsed() < flight.patience => return None,
            Err(TryRecvError::Empty) => Err(Broken::Stuck),
            Err(TryRecvError::Disconnected) => Err(Broken::LineEnded),
        };
        let flight = self.flights.pop_front()?;
        Some(self.arrive(&flight, answer, logits))
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.first.copy_block(from, to)?;
        self.copies.push((from.0, to.0));
        Ok(())
    }
}
