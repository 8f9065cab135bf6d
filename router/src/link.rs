//! One worker's connection, from its greeting to its end. The [`LinkActor`] owns the control stream; groups open their own
//! streams on the connection (see [`crate::dispatch`]), the worker opens others for what it fetches (see [`serve`]), and
//! token frames never pass through a mailbox.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, call};
use shoal_common::ambient;
use shoal_common::ids::{Digest, Incarnation, Name, Zone};
use shoal_common::quic::{self, CloseCode};
use shoal_common::wire::blob::{BlobHeader, BlobRequest, MAX_TOKENIZER_BUNDLE, TokenizerBundle};
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::hello::{
    AdapterState, Hello, ModelCard, Refusal, RouterControl, StageReport, Status, WorkerControl,
};
use shoal_common::wire::message::StreamOpen;
use tokio::io::AsyncReadExt;
use tokio_util::task::AbortOnDropHandle;

use crate::adapters::Registry;
use crate::adapters::serve::{self, Stock};
use crate::catalogue::{ServedModel, unix_seconds};
use crate::fleet::challenge;
use crate::fleet::nearer::Nearby;
use crate::fleet::orders::Orders;
use crate::fleet::{FleetMessage, FleetView, Membership, Offer, Snapshot};
use crate::operations::drains::{DrainOrders, Drains};
use crate::text::Tokenizer;

/// For a worker's hello and for its tokenizer: a bundle of 33 MB over a 100 Mbit/s link takes 3 s.
const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a connection did not become a link, or ceased to be one.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection broke.
    #[error("the connection broke")]
    Connection(#[from] quinn::ConnectionError),
    /// The worker broke the protocol.
    #[error("the worker broke the protocol")]
    Codec(#[from] CodecError),
    /// The peer's certificate is not a worker's.
    #[error("the peer is not a worker of this cluster")]
    Certificate(#[from] quic::QuicError),
    /// It did not introduce itself in time.
    #[error("the worker did not introduce itself in time")]
    Timeout,
    /// Something other than a hello came first, or a hello came twice.
    #[error("an unexpected frame on the control stream")]
    Unexpected,
    /// It was told why it may not serve.
    #[error("the worker was refused: {0}")]
    Refused(Refusal),
    /// The fleet is shutting down.
    #[error("the router is shutting down")]
    FleetGone,
}

/// What a link needs of the router.
#[derive(Clone, Debug)]
pub struct LinkContext {
    /// Where workers join.
    pub fleet: ActorRef<FleetMessage>,
    /// To reuse tokenizers that are known.
    pub view: FleetView,
    /// This life of the router.
    pub router: Incarnation,
    /// Who shall drain.
    pub drains: Drains,
    /// What the worker may fetch.
    pub adapters: Registry,
    /// Where the router is.
    pub zone: Option<Zone>,
}

/// A worker that was welcomed.
#[derive(Debug)]
pub struct Greeted {
    connection: quinn::Connection,
    reader: FrameReader<quinn::RecvStream>,
    writer: quinn::SendStream,
    worker: Name,
    incarnation: Incarnation,
    membership: Membership,
    drain: DrainOrders,
    stock: Stock,
}

/// Who has come.
#[derive(Debug)]
pub enum Caller {
    /// A worker.
    Worker(Box<Greeted>),
    /// The witness of one that has died; it was heard.
    Witness,
}

/// Hears a worker's hello, fetches its tokenizer if it is new, and takes it into the fleet, or tells it why not. Or hears of its
/// death.
pub async fn greet(connection: quinn::Connection, context: &LinkContext) -> Result<Caller, LinkError> {
    let name = quic::peer_worker(&connection)?;
    let greeting = async {
        let (mut writer, reader) = connection.accept_bi().await?;
        let mut reader = FrameReader::new(reader);
        let hello = match reader.next().await? {
            WorkerControl::Hello(hello) => hello,
            WorkerControl::Died(incarnation) => {
                bury(&name, incarnation, &context.view.now());
                CloseCode::Shutdown.close(&connection);
                return Ok(Caller::Witness);
            }
            _ => return Err(LinkError::Unexpected),
        };
        let (worker, incarnation) = (hello.worker.clone(), hello.incarnation);
        match admit(&connection, *hello, &name, context).await {
            Ok(membership) => {
                codec::write_frame(&mut writer, &RouterControl::Welcome { router: context.router }).await?;
                let drain = context.drains.orders(&worker, incarnation);
                let (connection, stock) = (connection.clone(), stock(&worker, context));
                let greeted = Greeted { connection, reader, writer, worker, incarnation, membership, drain, stock };
                Ok(Caller::Worker(Box::new(greeted)))
            }
            Err(LinkError::Refused(refusal)) => {
                codec::write_frame(&mut writer, &RouterControl::Refused(refusal.clone())).await?;
                // Closing at once could overtake the frame: wait until the worker has it, or has left.
                let _ = writer.finish();
                let _ = tokio::time::timeout(Duration::from_secs(1), writer.stopped()).await;
                Err(LinkError::Refused(refusal))
            }
            Err(other) => Err(other),
        }
    };
    let greeted = tokio::time::timeout(GREETING_TIMEOUT, greeting).await.unwrap_or(Err(LinkError::Timeout));
    if let Err(error) = &greeted {
        let code = if matches!(error, LinkError::Refused(_)) { CloseCode::Refused } else { CloseCode::Protocol };
        code.close(&connection);
    }
    greeted
}

/// Ends the link with a worker whose process has ended, in that life of it: its groups go on elsewhere at once.
fn bury(worker: &Name, incarnation: Incarnation, snapshot: &Snapshot) {
    if let Some(replica) = snapshot.replicas.iter().find(|replica| replica.is(worker, incarnation)) {
        tracing::warn!(%worker, %incarnation, "a worker's process has ended without a farewell");
        replica.vital.end();
        replica.line.close();
    }
}

/// What a worker's own streams are answered from.
fn stock(worker: &Name, context: &LinkContext) -> Stock {
    let (view, router) = (context.view.clone(), context.zone.clone());
    let neighbours = Arc::new(Nearby { view, worker: worker.clone(), router });
    Stock { registry: context.adapters.clone(), neighbours }
}

async fn admit(
    connection: &quinn::Connection,
    hello: Hello,
    certified: &Name,
    context: &LinkContext,
) -> Result<Membership, LinkError> {
    let asked = ambient::now();
    if hello.worker != *certified {
        return Err(LinkError::Refused(Refusal::WrongCertificate));
    }
    let tokenizer = tokenizer_for(connection, &hello, &context.view).await?;
    let model = Arc::new(ServedModel { card: hello.model.clone(), tokenizer, created: unix_seconds() });
    let offer = Offer { hello, model, line: Arc::new(connection.clone()), asked };
    match challenge::join(&context.fleet, context.view.clone(), offer).await {
        Some(joined) => joined.map_err(LinkError::Refused),
        None => Err(LinkError::FleetGone),
    }
}

/// The tokenizer of the worker's model: one that is in use already, or the worker's own.
async fn tokenizer_for(
    connection: &quinn::Connection,
    hello: &Hello,
    view: &FleetView,
) -> Result<Arc<Tokenizer>, LinkError> {
    let digest = hello.model.tokenizer;
    if let Some(known) = known_tokenizer(&view.now(), &hello.model) {
        return Ok(known);
    }
    let bytes = fetch_blob(connection, digest).await?;
    let vocab_size = hello.model.vocab_size;
    let built = ambient::off_runtime(move || {
        let bundle: TokenizerBundle = codec::decode(&bytes).map_err(|error| error.to_string())?;
        Tokenizer::from_bundle(&bundle, vocab_size).map_err(|error| error.to_string())
    });
    match built.await {
        Ok(Ok(tokenizer)) => Ok(Arc::new(tokenizer)),
        Ok(Err(reason)) => Err(LinkError::Refused(Refusal::BadTokenizer(reason))),
        Err(_) => Err(LinkError::Refused(Refusal::BadTokenizer("it could not be read".to_owned()))),
    }
}

/// The tokenizer of a known model, if it is the same for as many rows: models share tokenizers and pad differently.
fn known_tokenizer(snapshot: &Snapshot, card: &ModelCard) -> Option<Arc<Tokenizer>> {
    let same =
        |known: &&Arc<ServedModel>| known.card.tokenizer == card.tokenizer && known.card.vocab_size == card.vocab_size;
    snapshot.models.values().find(same).map(|known| Arc::clone(&known.tokenizer))
}

/// Fetches the content with `digest` and checks it.
async fn fetch_blob(connection: &quinn::Connection, digest: Digest) -> Result<Vec<u8>, LinkError> {
    let refuse = |reason: &str| LinkError::Refused(Refusal::BadTokenizer(reason.to_owned()));
    let (mut writer, reader) = connection.open_bi().await?;
    codec::write_frame(&mut writer, &StreamOpen::Blob(BlobRequest { digest })).await?;
    let mut reader = FrameReader::new(reader);
    let BlobHeader::Found { len } = reader.next().await? else { return Err(refuse("the worker does not have it")) };
    if len > MAX_TOKENIZER_BUNDLE {
        return Err(refuse("it is too large"));
    }
    let (stream, head) = reader.into_parts();
    let mut bytes = head.to_vec();
    stream.take(len.saturating_sub(bytes.len() as u64)).read_to_end(&mut bytes).await.map_err(CodecError::Io)?;
    if bytes.len() as u64 == len && Digest::of(&bytes) == digest {
        Ok(bytes)
    } else {
        Err(refuse("its content does not match its digest"))
    }
}

/// Events of a link.
#[derive(Debug)]
pub enum LinkMessage {
    /// The worker told its load. Answered when it has been passed on, so that one report is in flight at most.
    Report(Status, RpcReplyPort<()>),
    /// The worker told what became of an adapter. Answered when the fleet has noted it.
    Adapter(AdapterState, RpcReplyPort<()>),
    /// A head told of its stages. Answered when the fleet has noted it.
    Stages(Vec<StageReport>, RpcReplyPort<()>),
}

/// Passes a worker's reports to the fleet, and orders to the worker, until its connection ends.
#[derive(Debug)]
pub struct LinkActor;

/// A link that serves.
#[derive(Debug)]
pub struct LinkState {
    membership: Membership,
    connection: quinn::Connection,
    worker: Name,
    incarnation: Incarnation,
    /// Holds the control stream open: its end would tell the worker that the router is gone.
    _orders: AbortOnDropHandle<()>,
    /// Why the connection closed, where it was closed before the link ended.
    closed: Option<quinn::ConnectionError>,
}

impl LinkState {
    /// Of a link that ended: whose it was and from where, and why its connection closed, if the link did not close it.
    pub fn ended(self) -> ((Name, SocketAddr), Option<quinn::ConnectionError>) {
        ((self.worker, self.connection.remote_address()), self.closed)
    }
}

impl Actor for LinkActor {
    type Msg = LinkMessage;
    type State = LinkState;
    type Arguments = Greeted;

    async fn pre_start(
        &self,
        myself: ActorRef<LinkMessage>,
        greeted: Greeted,
    ) -> Result<LinkState, ActorProcessingErr> {
        let Greeted { connection, reader, writer, worker, incarnation, membership, drain, stock } = greeted;
        tracing::info!(%worker, %incarnation, "worker joined");
        let orders = tokio::spawn(tell(writer, membership.orders(), drain, myself.clone()));
        tokio::spawn(pump(reader, myself));
        tokio::spawn(serve::streams(connection.clone(), stock));
        let _orders = AbortOnDropHandle::new(orders);
        Ok(LinkState { membership, connection, worker, incarnation, _orders, closed: None })
    }

    async fn handle(
        &self,
        _myself: ActorRef<LinkMessage>,
        message: LinkMessage,
        state: &mut LinkState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LinkMessage::Report(status, reply) => {
                state.membership.report(status)?;
                let _ = reply.send(());
            }
            LinkMessage::Adapter(adapter, noted) => state.membership.adapter(adapter, noted)?,
            LinkMessage::Stages(stages, noted) => state.membership.stages(stages, noted)?,
        }
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<LinkMessage>, state: &mut LinkState) -> Result<(), ActorProcessingErr> {
        tracing::info!(worker = %state.worker, incarnation = %state.incarnation, "worker left");
        // Asked first: a close of our own takes the place of the peer's.
        state.closed = state.connection.close_reason();
        CloseCode::Shutdown.close(&state.connection);
        Ok(())
    }
}

/// Reads the worker's control frames until they end, one in flight at a time.
async fn pump(mut reader: FrameReader<quinn::RecvStream>, link: ActorRef<LinkMessage>) {
    let reason = loop {
        match reader.next().await {
            Ok(WorkerControl::Status(status)) => {
                if call!(link, LinkMessage::Report, status).is_err() {
                    return;
                }
            }
            Ok(WorkerControl::Adapter(state)) => {
                if call!(link, LinkMessage::Adapter, state).is_err() {
                    return;
                }
            }
            Ok(WorkerControl::Stages(stages)) => {
                if call!(link, LinkMessage::Stages, stages).is_err() {
                    return;
                }
            }
            Ok(WorkerControl::Hello(_) | WorkerControl::Died(_)) => break LinkError::Unexpected,
            Err(error) => break LinkError::Codec(error),
        }
    };
    link.stop(Some(reason.to_string()));
}

/// Writes orders to the worker until the stream breaks. Flow control holds it back, not those who order.
async fn tell(mut writer: quinn::SendStream, orders: Arc<Orders>, mut drain: DrainOrders, link: ActorRef<LinkMessage>) {
    let reason = loop {
        let order = tokio::select! {
            biased;
            order = orders.next() => RouterControl::Adapter(order),
            order = drain.next() => order,
        };
        if let Err(error) = codec::write_frame(&mut writer, &order).await {
            break LinkError::Codec(error);
        }
    };
    link.stop(Some(reason.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::model;

    #[test]
    fn a_tokenizer_is_shared_only_between_models_of_as_many_rows() {
        let known = model();
        let mut snapshot = Snapshot::default();
        snapshot.models.insert(known.card.name.clone(), Arc::clone(&known));
        let mut card = known.card.clone();
        assert!(known_tokenizer(&snapshot, &card).is_some_and(|shared| Arc::ptr_eq(&shared, &known.tokenizer)));
        card.vocab_size += 64;
        assert!(known_tokenizer(&snapshot, &card).is_none());
    }
}
