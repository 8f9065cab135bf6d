//! What a stage and its head say to each other once the head has the seat: steps are taken off the stream and answered in
//! their order, adapters in their own time. Its lines to the layers and to the store end with the connection, and so does
//! all that it holds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{RecvStream, SendStream};
use shoal_common::ids::Generation;
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::stage::{HeadFrame, MAX_ACTIVATIONS, MAX_ROWS, StageAdapter, StageFrame, StageStep};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::compute::{Compute, Computed, STEPS, Worn};
use super::rows::{self, VALUE};
use super::serve::HeadEnd;
use crate::adapters::{AcquireError, Lease, Via};

/// Adapters that a head may be waiting for at once: it asks for each once, and has no more groups than this.
const MAX_ASKED: usize = 4096;

/// What is told next.
enum Answer {
    Step { step: u64, computed: oneshot::Receiver<Option<Computed>> },
    Adapter(Generation, StageAdapter),
}

/// The adapters that the head's groups have.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<HashMap<Generation, Lease>>>);

impl Held {
    fn all(&self) -> MutexGuard<'_, HashMap<Generation, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's conversation.
pub(super) struct Talk {
    compute: Compute,
    width: usize,
    /// The way to adapters, if there is one.
    via: Option<Arc<Via>>,
    held: Held,
}

impl Talk {
    pub(super) fn new(compute: &Compute, width: usize, via: Option<Via>) -> Self {
        Self { compute: compute.clone(), width, via: via.map(Arc::new), held: Held::default() }
    }

    /// Until the stream ends, or the head breaks a rule.
    pub(super) async fn run(&self, send: SendStream, frames: FrameReader<RecvStream>) -> HeadEnd {
        // Answers wait for the layers in the order of the steps; more than the head may have in flight never wait.
        let (answers, waiting) = mpsc::channel(STEPS);
        tokio::select! {
            end = self.read(frames, answers) => end,
            end = answer(send, waiting) => end,
        }
    }

    async fn read(&self, mut frames: FrameReader<RecvStream>, answers: mpsc::Sender<Answer>) -> HeadEnd {
        let (mut expected, mut asked) = (0, JoinSet::new());
        loop {
            while asked.try_join_next().is_some() {}
            match frames.next().await {
                Ok(HeadFrame::Step(step)) if step.step == expected => {
                    expected += 1;
                    let answer = match self.take(step, &mut frames).await {
                        Ok(answer) => answer,
                        Err(end) => return end,
                    };
                    if answers.send(answer).await.is_err() {
                        return HeadEnd::Superseded;
                    }
                }
                Ok(HeadFrame::Adapter(generation)) if asked.len() < MAX_ASKED => {
                    asked.spawn(get(self.via.clone(), self.held.clone(), generation, answers.clone()));
                }
                Ok(HeadFrame::Release(generation)) => drop(self.held.all().remove(&generation)),
                Ok(HeadFrame::Step(_) | HeadFrame::Hello(_) | HeadFrame::Adapter(_)) => return HeadEnd::Protocol,
                Err(error) => return error.into(),
            }
        }
    }

    /// Takes a step's rows off the stream and hands both to the layers, with the adapters that the step names.
    async fn take(&self, step: StageStep, frames: &mut FrameReader<RecvStream>) -> Result<Answer, HeadEnd> {
        let (count, width) = (step.rows(), self.width);
        let size = count.checked_mul(width * VALUE).filter(|size| count <= MAX_ROWS && *size <= MAX_ACTIVATIONS);
        let size = size.ok_or(HeadEnd::Protocol)?;
        let adapters = self.worn(&step)?;
        let mut bytes = Vec::new();
        frames.raw(size, &mut bytes).await?;
        let mut rows = vec![0.0; count * width];
        rows::decode(&bytes, &mut rows);
        let number = step.step;
        let computed = self.compute.step(Worn { step, adapters }, rows).map_err(|_| HeadEnd::Protocol)?;
        Ok(Answer::Step { step: number, computed })
    }

    /// What the slices name, all of which the head was told to be here.
    fn worn(&self, step: &StageStep) -> Result<Vec<Option<Lease>>, HeadEnd> {
        let held = self.held.all();
        let lease = |generation: &Generation| held.get(generation).cloned().ok_or(HeadEnd::Protocol);
        step.slices.iter().map(|slice| slice.adapter.as_ref().map(lease).transpose()).collect()
    }
}

/// Gets an adapter, and then tells whether it is here.
async fn get(via: Option<Arc<Via>>, held: Held, generation: Generation, answers: mpsc::Sender<Answer>) {
    let acquired = match &via {
        None => None,
        Some(via) => Some(via.acquire(generation, None).await),
    };
    let what = match acquired {
        Some(Ok(lease)) => {
            held.all().insert(generation, lease);
            StageAdapter::Ready
        }
        Some(Err(AcquireError::Quarantined(reason))) => {
            tracing::warn!(adapter = %generation.0.short(), reason = reason.as_str(), "an adapter cannot be used");
            StageAdapter::Refused
        }
        Some(Err(AcquireError::Unavailable(_))) | None => StageAdapter::Unavailable,
    };
    // Nobody is there to be told once the connection is over.
    let _ = answers.send(Answer::Adapter(generation, what)).await;
}

/// Tells the answers in their order.
async fn answer(mut send: SendStream, mut waiting: mpsc::Receiver<Answer>) -> HeadEnd {
    let mut bytes = Vec::new();
    while let Some(answer) = waiting.recv().await {
        bytes.clear();
        let encoded = match answer {
            Answer::Adapter(generation, what) => {
                codec::encode_frame(&StageFrame::Adapter(generation, what), &mut bytes)
            }
            Answer::Step { step, computed } => match computed.await.ok().flatten() {
                None => codec::encode_frame(&StageFrame::Failed { step }, &mut bytes),
                Some(Computed { rows, took }) => {
                    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                    let frame = codec::encode_frame(&StageFrame::Done { step, took_us }, &mut bytes);
                    rows::encode(&rows, &mut bytes);
                    frame
                }
            },
        };
        if let Err(error) = encoded {
            return error.into();
        }
        if let Err(error) = send.write_all(&bytes).await {
            return HeadEnd::Codec(CodecError::Io(error.into()));
        }
    }
    HeadEnd::Superseded
}
