//! A stage as its head sees it: takes heads' connections, serves one head at a time, the latest epoch of it, and passes its
//! steps to the compute thread. Run by the supervisor of a worker whose layers are not the first.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use shoal_common::config::Timers;
use shoal_common::fingerprint::NUMERICS_VERSION;
use shoal_common::ids::{Digest, Incarnation, LayerRange, Name};
use shoal_common::quic::{Acceptor, CloseCode, peer_worker};
use shoal_common::shutdown::Shutdown;
use shoal_common::telemetry::Chain;
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::stage::{HeadFrame, StageFrame, StageHello, StageRefusal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::compute::{Busy, Compute};
use super::talk::Talk;
use crate::adapters::{AdapterStore, Upstream, Via};
use crate::backend::Backend;

/// For a head to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// For the last frame to reach a head that is refused.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a stage is.
#[derive(Clone, Debug)]
pub struct StageOffer {
    /// The worker's name.
    pub worker: Name,
    /// This life of it.
    pub incarnation: Incarnation,
    /// BLAKE3 of the model's weights and configuration.
    pub weights: Digest,
    /// Its arithmetic.
    pub numerics_class: String,
    /// The layers it hosts.
    pub layers: LayerRange,
    /// Blocks of KV that it has room for.
    pub blocks: u32,
    /// Values of a row.
    pub width: usize,
}

/// The head that is served.
struct Seat {
    head: Name,
    incarnation: Incarnation,
    epoch: u64,
    connection: Connection,
}

/// What the connections share.
struct Shared {
    offer: StageOffer,
    compute: Compute,
    /// Of its layers' parts; without it no adapter can be used.
    adapters: OnceLock<AdapterStore>,
    seat: Mutex<Option<Seat>>,
    closing: Shutdown,
}

/// A stage whose thread runs.
pub struct StageServer(Arc<Shared>);

impl std::fmt::Debug for StageServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StageServer").field("offer", &self.0.offer).finish_non_exhaustive()
    }
}

impl StageServer {
    /// Starts the thread that has `backend`'s layers. It takes no heads before [`StageServer::run`]; once `closing` fires,
    /// no more.
    pub fn new(offer: StageOffer, backend: Box<dyn Backend>, closing: Shutdown) -> std::io::Result<Self> {
        let compute = Compute::spawn(backend)?;
        let (adapters, seat) = (OnceLock::new(), Mutex::new(None));
        Ok(Self(Arc::new(Shared { offer, compute, adapters, seat, closing })))
    }

    /// From now on adapters can be used: `store` gets them from the head, and loads them for the layers of this stage. Said
    /// once, before [`StageServer::run`].
    pub fn use_adapters(&self, store: AdapterStore) {
        if self.0.adapters.set(store).is_err() {
            tracing::error!("a stage has its store of adapters already; the first stays");
        }
    }

    /// How busy the layers are.
    pub fn busy(&self) -> watch::Receiver<Busy> {
        self.0.compute.busy()
    }

    /// Serves heads that dial `endpoint` until it closes or `closing` fires.
    pub async fn run(&self, endpoint: Endpoint, timers: Timers) {
        let mut acceptor = Acceptor::new(endpoint, timers);
        let (mut heads, mut closing) = (JoinSet::new(), self.0.closing.clone());
        loop {
            tokio::select! {
                () = closing.fired() => return,
                accepted = acceptor.next() => match accepted {
                    Some(connection) => drop(heads.spawn(attend(self.0.clone(), connection))),
                    None => return,
                },
                Some(_) = heads.join_next(), if !heads.is_empty() => {}
            }
        }
    }
}

/// Why a head's connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeadEnd {
    #[error("the head was refused: {0}")]
    Refused(StageRefusal),
    #[error("the connection broke")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the stream broke")]
    Codec(#[from] CodecError),
    #[error("the head is not a worker of this cluster")]
    Certificate(#[from] shoal_common::quic::QuicError),
    #[error("the head did not introduce itself in time")]
    Timeout,
    #[error("the head broke the protocol")]
    Protocol,
    #[error("a later connection took its place")]
    Superseded,
    #[error("no room for the kv")]
    NoRoom(#[source] crate::backend::BackendError),
}

async fn attend(shared: Arc<Shared>, connection: Connection) {
    let end = match serve(&shared, &connection).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    tracing::info!(reason = %Chain(&end), "a head's connection is over");
    let code = match end {
        HeadEnd::Refused(_) => CloseCode::Refused,
        HeadEnd::Protocol => CloseCode::Protocol,
        _ => CloseCode::Shutdown,
    };
    code.close(&connection);
    shared.leave(&connection);
}

async fn serve(shared: &Arc<Shared>, connection: &Connection) -> Result<std::convert::Infallible, HeadEnd> {
    let certified = peer_worker(connection)?;
    let introduced = tokio::time::timeout(HELLO_WITHIN, hear(connection)).await.map_err(|_| HeadEnd::Timeout)??;
    let (hello, mut send, frames) = introduced;
    let (head, epoch, blocks) = (hello.head.clone(), hello.epoch, hello.blocks);
    if let Err(refusal) = shared.admit(hello, &certified, connection) {
        codec::write_frame(&mut send, &StageFrame::Refused(refusal.clone())).await?;
        // Closing at once could overtake the frame: wait until the head has it, or has left.
        let _ = send.finish();
        let _ = tokio::time::timeout(FAREWELL, send.stopped()).await;
        return Err(HeadEnd::Refused(refusal));
    }
    shared.compute.reserve(blocks as usize).await.map_err(HeadEnd::NoRoom)?;
    codec::write_frame(&mut send, &StageFrame::Ready { incarnation: shared.offer.incarnation }).await?;
    tracing::info!(%head, epoch, "serving a head");
    let via = shared.adapters.get().map(|store| store.via(Arc::new(Upstream::head(connection.clone()))));
    via.iter().for_each(Via::offer);
    let talk = Talk::new(&shared.compute, shared.offer.width, via);
    tokio::select! {
        end = talk.run(send, frames) => Err(end),
        closed = connection.closed() => Err(closed.into()),
    }
}

async fn hear(connection: &Connection) -> Result<(StageHello, SendStream, FrameReader<RecvStream>), HeadEnd> {
    let (send, recv) = connection.accept_bi().await?;
    let mut frames = FrameReader::new(recv);
    let HeadFrame::Hello(hello) = frames.next().await? else { return Err(HeadEnd::Protocol) };
    Ok((*hello, send, frames))
}

impl Shared {
    fn seat(&self) -> std::sync::MutexGuard<'_, Option<Seat>> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this head is served on this connection; then it has the seat, and an earlier connection of it is closed.
    fn admit(&self, hello: StageHello, certified: &Name, connection: &Connection) -> Result<(), StageRefusal> {
        if hello.head != *certified {
            return Err(StageRefusal::WrongCertificate);
        }
        check(&self.offer, &hello)?;
        if self.closing.is_fired() {
            return Err(StageRefusal::Draining);
        }
        let mut seat = self.seat();
        if let Some(held) = seat.as_ref().filter(|held| held.connection.close_reason().is_none()) {
            if held.head != hello.head {
                return Err(StageRefusal::Taken(held.head.clone()));
            }
            if held.incarnation == hello.incarnation && held.epoch >= hello.epoch {
                return Err(StageRefusal::OldEpoch);
            }
            CloseCode::Shutdown.close(&held.connection);
        }
        let StageHello { head, incarnation, epoch, .. } = hello;
        *seat = Some(Seat { head, incarnation, epoch, connection: connection.clone() });
        Ok(())
    }

    /// The connection is over; the seat is free unless another one has it.
    fn leave(&self, connection: &Connection) {
        let mut seat = self.seat();
        if seat.as_ref().is_some_and(|held| held.connection.stable_id() == connection.stable_id()) {
            *seat = None;
        }
    }
}

/// Whether head and stage are of one model, cut at the same place.
fn check(offer: &StageOffer, hello: &StageHello) -> Result<(), StageRefusal> {
    let is_same = hello.weights == offer.weights
        && hello.numerics_class == offer.numerics_class
        && hello.numerics_version == NUMERICS_VERSION;
    if !is_same {
        return Err(StageRefusal::OtherModel {
            weights: offer.weights,
            numerics_class: offer.numerics_class.clone(),
            numerics_version: NUMERICS_VERSION,
        });
    }
    if hello.layers != offer.layers {
        return Err(StageRefusal::OtherLayers(offer.layers));
    }
    if hello.blocks > offer.blocks {
        return Err(StageRefusal::TooManyBlocks(offer.blocks));
    }
    Ok(())
}
