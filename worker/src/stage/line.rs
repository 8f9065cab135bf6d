//! The head's end of its connection to one stage: asks what the engine asks, in order, and hands the answers back. A line that
//! ends, for whatever reason, answers everybody who waits on it by dropping them.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use shoal_common::ids::{Generation, Incarnation};
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::stage::{HeadFrame, StageAdapter, StageFrame, StageHello, StageRefusal, StageStep};
use tokio::sync::{mpsc as queue, oneshot};

use super::meter::Meter;
use super::rows::{self, VALUE};

/// Asks that wait for the line: steps in flight, and adapters to come.
const ASKS: usize = 64;
/// For a stage to answer a hello: it may have to make room for the KV.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Why there is no line to a stage, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// The connection broke.
    #[error("the connection broke")]
    Connection(#[from] quinn::ConnectionError),
    /// The stream broke, or what came on it is not what may come.
    #[error("the stage's stream broke")]
    Codec(#[from] CodecError),
    /// The stage said no.
    #[error("the stage refuses: {0}")]
    Refused(StageRefusal),
    /// It did not answer.
    #[error("the stage did not answer in time")]
    Timeout,
    /// It answered something that was not asked.
    #[error("the stage broke the protocol")]
    Protocol,
}

/// A step that came back.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) rows: Vec<f32>,
    /// What the stage took, without the way.
    pub(super) took: Duration,
}

/// What is asked of a stage.
pub(super) enum Ask {
    /// Carry the rows; answered with nothing where the stage could not.
    Step { step: StageStep, rows: Vec<f32>, done: mpsc::SyncSender<Option<Carried>> },
    /// Have an adapter ready.
    Adapter { generation: Generation, done: oneshot::Sender<StageAdapter> },
}

/// The way to a stage that is ready.
#[derive(Clone, Debug)]
pub(super) struct Line(queue::Sender<Ask>);

impl Line {
    /// Introduces the head; the future it returns is the line's life and resolves with its end.
    pub(super) async fn open(
        connection: Connection,
        hello: StageHello,
        meter: Meter,
    ) -> Result<(Self, Incarnation, impl Future<Output = LineError>), LineError> {
        let introduced = tokio::time::timeout(READY_WITHIN, introduce(&connection, hello));
        let (incarnation, send, frames) = introduced.await.map_err(|_| LineError::Timeout)??;
        let (asks, asked) = queue::channel(ASKS);
        let talk = Talk { send, frames, steps: VecDeque::new(), adapters: HashMap::new(), meter };
        Ok((Self(asks), incarnation, talk.run(asked, connection)))
    }

    /// Asks from a thread that may block. False when the line has ended.
    pub(super) fn ask_blocking(&self, ask: Ask) -> bool {
        self.0.blocking_send(ask).is_ok()
    }

    /// Asks from a task. False when the line has ended.
    pub(super) async fn ask(&self, ask: Ask) -> bool {
        self.0.send(ask).await.is_ok()
    }
}

async fn introduce(
    connection: &Connection,
    hello: StageHello,
) -> Result<(Incarnation, SendStream, FrameReader<RecvStream>), LineError> {
    let (mut send, recv) = connection.open_bi().await?;
    let mut frames = FrameReader::new(recv);
    codec::write_frame(&mut send, &HeadFrame::Hello(Box::new(hello))).await?;
    match frames.next().await? {
        StageFrame::Ready { incarnation } => Ok((incarnation, send, frames)),
        StageFrame::Refused(refusal) => Err(LineError::Refused(refusal)),
        StageFrame::Done { .. } | StageFrame::Failed { .. } | StageFrame::Adapter(..) => Err(LineError::Protocol),
    }
}

/// A step whose answer has not come.
struct InFlight {
    step: u64,
    values: usize,
    done: mpsc::SyncSender<Option<Carried>>,
}

struct Talk {
    send: SendStream,
    frames: FrameReader<RecvStream>,
    /// In the order in which they were asked, which is that of the answers.
    steps: VecDeque<InFlight>,
    adapters: HashMap<Generation, Vec<oneshot::Sender<StageAdapter>>>,
    meter: Meter,
}

impl Talk {
    async fn run(mut self, mut asked: queue::Receiver<Ask>, connection: Connection) -> LineError {
        loop {
            let turned = tokio::select! {
                Some(ask) = asked.recv() => self.pass_on(ask).await,
                frame = self.frames.next() => match frame {
                    Ok(frame) => self.take(frame).await,
                    Err(error) => Err(error.into()),
                },
                // Told before the stream is: it may have nothing to read for long.
                closed = connection.closed() => Err(closed.into()),
            };
            if let Err(error) = turned {
                return error;
            }
        }
    }

    async fn pass_on(&mut self, ask: Ask) -> Result<(), LineError> {
        match ask {
            Ask::Step { step, rows, done } => {
                self.steps.push_back(InFlight { step: step.step, values: rows.len(), done });
                let mut bytes = Vec::with_capacity(rows.len() * VALUE + 1024);
                codec::encode_frame(&HeadFrame::Step(step), &mut bytes)?;
                rows::encode(&rows, &mut bytes);
                self.send.write_all(&bytes).await.map_err(|error| CodecError::Io(error.into()))?;
            }
            Ask::Adapter { generation, done } => {
                let waiting = self.adapters.entry(generation).or_default();
                waiting.push(done);
                // The first asks for all.
                if waiting.len() == 1 {
                    codec::write_frame(&mut self.send, &HeadFrame::Adapter(generation)).await?;
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, frame: StageFrame) -> Result<(), LineError> {
        match frame {
            StageFrame::Done { step, took_us } => {
                let InFlight { values, done, .. } = self.next_step(step)?;
                let mut bytes = Vec::with_capacity(values * VALUE);
                self.frames.raw(values * VALUE, &mut bytes).await?;
                let mut carried = Carried { rows: vec![0.0; values], took: Duration::from_micros(took_us) };
                rows::decode(&bytes, &mut carried.rows);
                self.meter.add(carried.took);
                // The engine may have given up on it.
                let _ = done.try_send(Some(carried));
            }
            StageFrame::Failed { step } => drop(self.next_step(step)?.done.try_send(None)),
            StageFrame::Adapter(generation, what) => {
                for waiting in self.adapters.remove(&generation).ok_or(LineError::Protocol)? {
                    let _ = waiting.send(what);
                }
            }
            StageFrame::Ready { .. } | StageFrame::Refused(_) => return Err(LineError::Protocol),
        }
        Ok(())
    }

    /// The oldest step in flight, which must be the one that is answered.
    fn next_step(&mut self, step: u64) -> Result<InFlight, LineError> {
        self.steps.pop_front().filter(|in_flight| in_flight.step == step).ok_or(LineError::Protocol)
    }
}
