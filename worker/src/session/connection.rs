//! The life of one connection to a router, from hello to close: the control stream, the streams that the router opens, and
//! the writer they share. Run by the session's actor as a task; when it ends, whatever ran for the router is cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, SendStream};
use shoal_common::quic::MAX_GROUP_STREAMS;
use shoal_common::shutdown::Shutdown;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::control::{self, Control, DrainOrder};
use super::stream::{self, StreamEnd};
use super::{Offer, SessionArgs, SessionEnd};
use crate::adapters::{Upstream, Via};
use crate::emit::{OPENINGS, Opening, Writer};
use crate::engine::EngineHandle;
use crate::engine::sink::{ConnectionKey, Outlet, StreamKey, report_bound};
use crate::stage::Board;

/// For the last frames to reach the router after the engine has ended: several round trips on any link worth having.
const FAREWELL: Duration = Duration::from_secs(1);

/// For a router to say whether this worker may serve: it fetches the tokenizer first, up to 64 MiB over any link.
const WELCOME_WITHIN: Duration = Duration::from_secs(30);

/// Keys of connections are drawn from one counter, so that no two of a worker's life are equal.
static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(0);

/// What the streams of a connection share.
pub(super) struct Shared {
    pub(super) engine: EngineHandle,
    pub(super) adapters: Via,
    pub(super) offer: Arc<Offer>,
    pub(super) stages: Option<Board>,
    pub(super) outlet: Outlet,
    pub(super) openings: mpsc::Sender<Opening<SendStream>>,
    pub(super) drain: DrainOrder,
    next_stream: AtomicU64,
}

impl Shared {
    pub(super) fn next_stream(&self) -> StreamKey {
        StreamKey(self.next_stream.fetch_add(1, Ordering::Relaxed))
    }
}

/// Serves `connection` until it is lost, refused or no longer wanted; closes it with the code that fits.
pub(super) async fn run(connection: Connection, args: SessionArgs, welcomed: impl FnOnce() + Send) -> SessionEnd {
    let mut closing = args.closing.clone();
    let served = serve(&connection, open(&connection, args), welcomed, &mut closing).await;
    let end = match (served, connection.close_reason()) {
        // A stream that broke with its connection says less than that does.
        (SessionEnd::Broken(_), Some(reason)) => SessionEnd::Lost(reason.into()),
        (end, _) => end,
    };
    end.code().close(&connection);
    end
}

/// The connection's shared state, and its writer.
fn open(connection: &Connection, args: SessionArgs) -> (Arc<Shared>, AbortOnDropHandle<()>) {
    let (openings, opened) = mpsc::channel(OPENINGS);
    let (reports, reported) = mpsc::channel(report_bound(MAX_GROUP_STREAMS as usize));
    let key = ConnectionKey(NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed));
    let writer = AbortOnDropHandle::new(tokio::spawn(Writer::new(opened, reported)));
    let shared = Shared {
        engine: args.engine,
        adapters: args.adapters.via(Arc::new(Upstream::router(connection.clone(), args.peers))),
        offer: args.offer,
        stages: args.stages,
        outlet: Outlet::new(key, reports),
        openings,
        drain: DrainOrder::default(),
        next_stream: AtomicU64::new(0),
    };
    (Arc::new(shared), writer)
}

async fn serve(
    connection: &Connection,
    (shared, _writer): (Arc<Shared>, AbortOnDropHandle<()>),
    welcomed: impl FnOnce() + Send,
    closing: &mut Shutdown,
) -> SessionEnd {
    let mut streams = JoinSet::new();
    // Beside the streams from the first moment: a router fetches the tokenizer before it welcomes.
    let control = async {
        let hello = shared.offer.hello.clone();
        let introduced = tokio::time::timeout(WELCOME_WITHIN, control::introduce(connection, hello));
        let Control { send, orders } = match introduced.await.unwrap_or(Err(SessionEnd::Protocol)) {
            Ok(welcome) => welcome,
            Err(end) => return end,
        };
        welcomed();
        // Not before: the first stream that a router takes is the control stream.
        shared.adapters.offer();
        tokio::select! {
            biased;
            end = control::tell(send, &shared) => end,
            end = control::obey(orders, &shared) => end,
        }
    };
    tokio::pin!(control);
    loop {
        tokio::select! {
            // What ends something comes before what begins something.
            biased;
            () = closing.fired() => {
                let _ = tokio::time::timeout(FAREWELL, finish(&mut streams)).await;
                return SessionEnd::Closing;
            }
            end = &mut control => return end,
            Some(ended) = streams.join_next(), if !streams.is_empty() => {
                if let Some(end) = fault(ended) {
                    return end;
                }
            }
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => {
                    streams.spawn(stream::serve(shared.clone(), send, recv));
                }
                Err(error) => return SessionEnd::Lost(error.into()),
            },
        }
    }
}

/// Waits until every stream has been delivered.
async fn finish(streams: &mut JoinSet<StreamEnd>) {
    while streams.join_next().await.is_some() {}
}

/// What a stream's end means for the session, if anything.
fn fault(ended: Result<StreamEnd, JoinError>) -> Option<SessionEnd> {
    match ended {
        Ok(StreamEnd::Over) => None,
        Ok(StreamEnd::Protocol) => Some(SessionEnd::Protocol),
        Err(panicked) => Some(SessionEnd::Panicked(panicked)),
    }
}
