//! The head's end of its connection to one stage: asks what the engine asks, in order, and hands the answers back. A line that
//! ends, for whatever reason, answers everybody who waits on it by dropping them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use shoal_common::ids::{Generation, Incarnation};
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::stage::{HeadFrame, StageAdapter, StageFrame, StageHello, StageRefusal};
use tokio::sync::{Notify, mpsc as queue, oneshot};

use super::holds::{Holds, Returned, Wanted};
use super::journey::Journey;
use super::meter::Meter;
use super::ring::Leg;
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

/// What is asked of a stage.
#[derive(Debug)]
pub(super) enum Ask {
    /// Carry the rows.
    Step(Box<Journey>),
    /// Have an adapter ready, and hold it.
    Adapter { generation: Generation, done: oneshot::Sender<Result<LineHold, StageAdapter>> },
}

/// The way to a stage that is ready.
#[derive(Clone, Debug)]
pub(super) struct Line(queue::Sender<Ask>);

/// An adapter that the stage holds until this is dropped.
#[derive(Debug)]
pub(super) struct LineHold {
    generation: Generation,
    given_back: Arc<GivenBack>,
}

impl Drop for LineHold {
    fn drop(&mut self) {
        self.given_back.generations.lock().unwrap_or_else(PoisonError::into_inner).push(self.generation);
        self.given_back.some.notify_one();
    }
}

/// What the line has yet to hear was given back. Bound: as many as there were holds.
#[derive(Debug, Default)]
struct GivenBack {
    generations: Mutex<Vec<Generation>>,
    some: Notify,
}

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
        let talk = Talk {
            send,
            frames,
            next_step: 0,
            steps: VecDeque::new(),
            holds: Holds::default(),
            given_back: Arc::default(),
            meter,
        };
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
    journey: Box<Journey>,
}

struct Talk {
    send: SendStream,
    frames: FrameReader<RecvStream>,
    next_step: u64,
    /// In the order in which they were asked, which is that of the answers.
    steps: VecDeque<InFlight>,
    holds: Holds<oneshot::Sender<Result<LineHold, StageAdapter>>>,
    given_back: Arc<GivenBack>,
    meter: Meter,
}

impl Talk {
    async fn run(mut self, mut asked: queue::Receiver<Ask>, connection: Connection) -> LineError {
        let given_back = self.given_back.clone();
        loop {
            let turned = tokio::select! {
                Some(ask) = asked.recv() => self.pass_on(ask).await,
                () = given_back.some.notified() => self.release().await,
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
            Ask::Step(journey) => self.pass_step_on(journey).await,
            Ask::Adapter { generation, done } => match self.holds.want(generation, done) {
                Wanted::Ask => Ok(codec::write_frame(&mut self.send, &HeadFrame::Adapter(generation)).await?),
                Wanted::Wait => Ok(()),
                Wanted::Held(done) => {
                    self.tell_held(generation, done);
                    Ok(())
                }
            },
        }
    }

    async fn pass_step_on(&mut self, mut journey: Box<Journey>) -> Result<(), LineError> {
        let mut bytes = Vec::with_capacity(journey.rows.len() * VALUE + 1024);
        let mut step = std::mem::take(&mut journey.step);
        step.step = self.next_step;
        let frame = HeadFrame::Step(step);
        codec::encode_frame(&frame, &mut bytes)?;
        if let HeadFrame::Step(step) = frame {
            journey.step = step;
        }
        rows::encode(&journey.rows, &mut bytes);
        journey.asked = std::time::Instant::now();
        self.steps.push_back(InFlight { step: self.next_step, values: journey.rows.len(), journey });
        self.next_step += 1;
        self.send.write_all(&bytes).await.map_err(|error| CodecError::Io(error.into()))?;
        Ok(())
    }

    /// Whoever left meanwhile gives it back by not taking it.
    fn tell_held(&self, generation: Generation, done: oneshot::Sender<Result<LineHold, StageAdapter>>) {
        let _ = done.send(Ok(LineHold { generation, given_back: self.given_back.clone() }));
    }

    async fn release(&mut self) -> Result<(), LineError> {
        let generations =
            std::mem::take(&mut *self.given_back.generations.lock().unwrap_or_else(PoisonError::into_inner));
        for generation in generations {
            if self.holds.give_back(generation) == Returned::Last {
                codec::write_frame(&mut self.send, &HeadFrame::Release(generation)).await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, frame: StageFrame) -> Result<(), LineError> {
        match frame {
            StageFrame::Done { step, took_us } => {
                let InFlight { values, mut journey, .. } = self.next_answer(step)?;
                let mut bytes = Vec::with_capacity(values * VALUE);
                self.frames.raw(values * VALUE, &mut bytes).await?;
                rows::decode(&bytes, &mut journey.rows);
                let leg = Leg { took: Duration::from_micros(took_us), around: journey.asked.elapsed() };
                self.meter.add(leg.took);
                journey.go_on(leg).await;
            }
            StageFrame::Failed { step } => self.next_answer(step)?.journey.fail(),
            StageFrame::Adapter(generation, StageAdapter::Ready) => {
                for waiting in self.holds.held(generation).ok_or(LineError::Protocol)? {
                    self.tell_held(generation, waiting);
                }
            }
            StageFrame::Adapter(generation, why_not) => {
                for waiting in self.holds.refused(generation).ok_or(LineError::Protocol)? {
                    let _ = waiting.send(Err(why_not));
                }
            }
            StageFrame::Ready { .. } | StageFrame::Refused(_) => return Err(LineError::Protocol),
        }
        Ok(())
    }

    /// The oldest step in flight, which must be the one that is answered.
    fn next_answer(&mut self, step: u64) -> Result<InFlight, LineError> {
        self.steps.pop_front().filter(|in_flight| in_flight.step == step).ok_or(LineError::Protocol)
    }
}
