//! The head's stages, kept together: all are dialled, or none is used. Each time they are all there is an **epoch**; the loss
//! of one ends it, and the next begins with fresh connections to all. Owned by the supervisor; the engine's
//! [`Pipeline`](super::Pipeline) reads the current epoch.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use futures_util::future::{join_all, select_all};
use quinn::{Connection, Endpoint};
use shoal_common::ambient;
use shoal_common::config::Timers;
use shoal_common::fingerprint::NUMERICS_VERSION;
use shoal_common::ids::{Digest, Incarnation, LayerRange, Name};
use shoal_common::pki::Identity;
use shoal_common::quic::{self, CloseCode, QuicError};
use shoal_common::shutdown::Shutdown;
use shoal_common::telemetry::Chain;
use shoal_common::wire::stage::StageHello;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::board::Board;
use super::holding::StageAdapters;
use super::lend::lend;
use super::line::{Line, LineError};
use super::meter::Meter;
use crate::adapters::AdapterStore;
use crate::session::backoff::Backoff;

/// A stage as the head is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The worker's name, as in its certificate.
    pub worker: Name,
    /// `host:port`; names are resolved again at each attempt.
    pub address: String,
    /// The layers it hosts.
    pub layers: LayerRange,
}

/// What is the same for all stages of a head.
#[derive(Clone, Debug)]
pub struct HeadOffer {
    /// The head's name.
    pub head: Name,
    /// This life of it.
    pub incarnation: Incarnation,
    /// BLAKE3 of the model's weights and configuration.
    pub weights: Digest,
    /// Its arithmetic.
    pub numerics_class: String,
    /// Blocks of KV in use.
    pub blocks: u32,
}

/// A stage as the head sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageState {
    /// Which.
    pub member: Member,
    /// Its life, while it is connected.
    pub incarnation: Option<Incarnation>,
    /// Why it is not.
    pub reason: Option<String>,
}

/// All stages, ready for steps.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) number: u64,
    /// In the order of their layers.
    pub(super) lines: Vec<Line>,
}

/// The current epoch, if there is one.
#[derive(Clone, Debug, Default)]
pub(super) struct Current(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    epoch: watch::Sender<Option<Arc<Epoch>>>,
    /// Somebody found that the epoch is over.
    over: Notify,
}

impl Current {
    pub(super) fn get(&self) -> Option<Arc<Epoch>> {
        self.0.epoch.borrow().clone()
    }

    /// Waits for an epoch.
    pub(super) async fn together(&self) -> Option<Arc<Epoch>> {
        let mut epochs = self.0.epoch.subscribe();
        epochs.wait_for(Option::is_some).await.ok()?.clone()
    }

    fn set(&self, epoch: Option<Arc<Epoch>>) {
        self.0.epoch.send_replace(epoch);
    }

    /// A step of epoch `number` did not come back: the epoch is over.
    pub(super) fn give_up(&self, number: u64) {
        let is_over = self.0.epoch.send_if_modified(|epoch| {
            let is_this = epoch.as_ref().is_some_and(|epoch| epoch.number == number);
            if is_this {
                *epoch = None;
            }
            is_this
        });
        if is_over {
            self.0.over.notify_one();
        }
    }
}

/// Keeps the stages of a head.
#[derive(Debug)]
pub struct Replica {
    offer: HeadOffer,
    members: Vec<Member>,
    current: Current,
    states: watch::Sender<Vec<StageState>>,
    /// The head's, then the members'.
    meters: Vec<Meter>,
    /// What stages fetch adapters from.
    lent: OnceLock<AdapterStore>,
}

/// What connections are made with.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Dials; no address of its own is needed.
    pub endpoint: Endpoint,
    /// Proves who the head is.
    pub identity: Identity,
    /// Of the links.
    pub timers: Timers,
}

/// A stage that is ready, with the task that is its line's life.
struct Ready {
    line: Line,
    incarnation: Incarnation,
    connection: Connection,
    life: JoinHandle<LineError>,
}

impl Replica {
    /// None of `members` is connected yet.
    pub fn new(offer: HeadOffer, members: Vec<Member>) -> Self {
        let state = |member: &Member| StageState { member: member.clone(), incarnation: None, reason: None };
        let (states, _) = watch::channel(members.iter().map(state).collect());
        let meters = (0..=members.len()).map(|_| Meter::default()).collect();
        Self { offer, members, current: Current::default(), states, meters, lent: OnceLock::new() }
    }

    /// What routers are told of this replica, whose head hosts `layers`.
    pub fn board(&self, layers: LayerRange) -> Board {
        let HeadOffer { head, incarnation, .. } = &self.offer;
        Board::new((head.clone(), *incarnation, layers), self.states(), self.meters.clone())
    }

    /// From now on the stages can fetch the adapters of `store`. Said once, before [`Replica::keep`].
    pub fn lend(&self, store: AdapterStore) {
        if self.lent.set(store).is_err() {
            tracing::error!("adapters are lent twice; the first store stays");
        }
    }

    /// Counts what the head computes.
    pub(super) fn head_meter(&self) -> Meter {
        self.meters[0].clone()
    }

    /// How many stages there are beside the head.
    pub(super) fn stages(&self) -> usize {
        self.members.len()
    }

    pub(super) fn current(&self) -> Current {
        self.current.clone()
    }

    /// What is known of each stage.
    pub fn states(&self) -> watch::Receiver<Vec<StageState>> {
        self.states.subscribe()
    }

    /// Asks every stage to have an adapter ready.
    pub fn adapters(&self) -> StageAdapters {
        StageAdapters::new(self.current.clone())
    }

    /// Keeps the stages together until `closing` fires.
    pub async fn keep(&self, dial: Dial, mut closing: Shutdown) {
        let mut backoff = Backoff::default();
        for number in 0.. {
            let outcome = tokio::select! {
                () = closing.fired() => break,
                outcome = self.epoch(number, &dial) => outcome,
            };
            let wait = match outcome {
                // They were together: the loss of one is a first failure.
                Together::Were => {
                    backoff.reset();
                    backoff.next(ambient::draw())
                }
                Together::NotAll => backoff.next(ambient::draw()),
            };
            tokio::select! {
                () = closing.fired() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.current.set(None);
    }

    /// From the first dial to the first loss.
    async fn epoch(&self, number: u64, dial: &Dial) -> Together {
        let mut guard = Connections::default();
        let attempts = (0..self.members.len()).map(|at| self.reach(at, number, dial));
        let mut ready = Vec::new();
        for (at, attempt) in join_all(attempts).await.into_iter().enumerate() {
            match attempt {
                Ok(stage) => {
                    let lending = tokio::spawn(lend(stage.connection.clone(), self.lent.get().cloned()));
                    guard.0.push((stage.connection.clone(), [stage.life.abort_handle(), lending.abort_handle()]));
                    self.tell(at, Some(stage.incarnation), None);
                    ready.push(stage);
                }
                Err(error) => self.lost(at, &error),
            }
        }
        if ready.len() < self.members.len() {
            return Together::NotAll;
        }
        let lines: Vec<Line> = ready.iter().map(|stage| stage.line.clone()).collect();
        self.current.set(Some(Arc::new(Epoch { number, lines })));
        tracing::info!(epoch = number, stages = ready.len(), "all stages are there");
        let lives = select_all(ready.into_iter().map(|stage| stage.life));
        tokio::select! {
            (end, at, _) = lives => {
                self.current.set(None);
                self.lost(at, &end.unwrap_or(LineError::Protocol));
            }
            () = self.current.0.over.notified() => tracing::warn!(epoch = number, "a step did not come back"),
        }
        (0..self.members.len()).for_each(|at| self.tell(at, None, None));
        Together::Were
    }

    async fn reach(&self, at: usize, epoch: u64, dial: &Dial) -> Result<Ready, ReachError> {
        let (member, meter) = (&self.members[at], self.meters[at + 1].clone());
        let connection = connect(member, dial).await?;
        let HeadOffer { head, incarnation, weights, numerics_class, blocks } = self.offer.clone();
        let (numerics_version, layers) = (NUMERICS_VERSION, member.layers);
        let hello = StageHello { head, incarnation, epoch, weights, numerics_class, numerics_version, layers, blocks };
        let (line, incarnation, life) = Line::open(connection.clone(), hello, meter).await?;
        Ok(Ready { line, incarnation, connection, life: tokio::spawn(life) })
    }

    fn lost(&self, at: usize, error: &(dyn std::error::Error + 'static)) {
        let worker = &self.members[at].worker;
        let reason = Chain(error).to_string();
        tracing::warn!(%worker, reason, "a stage is not there");
        self.tell(at, None, Some(reason));
    }

    fn tell(&self, at: usize, incarnation: Option<Incarnation>, reason: Option<String>) {
        self.states.send_if_modified(|states| {
            let state = &mut states[at];
            let reason = reason.or_else(|| state.reason.take().filter(|_| incarnation.is_none()));
            let is_new = (state.incarnation, &state.reason) != (incarnation, &reason);
            (state.incarnation, state.reason) = (incarnation, reason);
            is_new
        });
    }
}

/// Whether the stages were all there.
enum Together {
    Were,
    NotAll,
}

/// Why a stage could not be reached.
#[derive(Debug, thiserror::Error)]
enum ReachError {
    #[error("its address cannot be resolved")]
    Unresolved(#[source] std::io::Error),
    #[error("it cannot be dialled")]
    Undialled(#[from] QuicError),
    #[error(transparent)]
    Line(#[from] LineError),
}

/// Tries every address the name resolves to, in the resolver's order.
async fn connect(member: &Member, dial: &Dial) -> Result<Connection, ReachError> {
    let addresses = tokio::net::lookup_host(&member.address).await.map_err(ReachError::Unresolved)?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    let mut last = ReachError::Unresolved(std::io::ErrorKind::NotFound.into());
    for address in addresses {
        let to = (address, &member.worker);
        match quic::dial_stage(&dial.endpoint, to, &dial.identity, &dial.timers).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Closes the connections of an epoch when it ends, however it ends.
#[derive(Default)]
struct Connections(Vec<(Connection, [AbortHandle; 2])>);

impl Drop for Connections {
    fn drop(&mut self) {
        for (connection, tasks) in &self.0 {
            CloseCode::Shutdown.close(connection);
            tasks.iter().for_each(AbortHandle::abort);
        }
    }
}
