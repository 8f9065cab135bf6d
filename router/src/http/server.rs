//! The sockets: accepts connections up to a bound and serves HTTP/1.1 on each, with a deadline and a size for headers.
//! Called once by the router; the paths are `http::router`'s.
//!
//! What a client meets here gets no JSON, since there is no request yet: headers that do not arrive within
//! `limits.header_timeout`, and a connection that stays idle for as long, are closed without a word; headers over 16 KiB or
//! over 64 in number are answered `431`, nonsense `400`, by the HTTP library.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use shoal_common::config::Limits;
use shoal_common::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

/// Headers of one request.
const MAX_HEADERS: usize = 64;

/// Bytes buffered per connection, and so of all headers together.
const MAX_BUFFER: usize = 16 << 10;

/// After a failed accept, which is mostly a lack of file descriptors: others must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from: a TCP socket, or what a simulation has in its place.
pub trait Listen: Send + Sync {
    /// A connection's bytes.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who is at its other end. Cancel-safe.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;

    /// Where it listens.
    fn address(&self) -> io::Result<SocketAddr>;
}

impl Listen for TcpListener {
    type Io = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.accept().await?;
        // Tokens are small and must not wait for more; a socket that refuses is about to fail anyway.
        let _ = stream.set_nodelay(true);
        Ok((stream, peer))
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }
}

/// Serves until `shutdown` fires; then takes no more connections, closes idle ones and gives running requests `drain` to
/// end. Over `limits.connections` connections wait in the listener's backlog.
pub async fn serve(listener: impl Listen, router: Router, limits: &Limits, drain: Duration, mut shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(limits.connections));
    // Dropped last: what runs on after the drain is cut.
    let mut connections = JoinSet::new();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    loop {
        let (stream, peer, place) = tokio::select! {
            biased;
            () = shutdown.fired() => break,
            accepted = accept(&listener, &places) => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = Connection { stream, peer: Peer(peer), place, shutdown: shutdown.clone() };
        connections.spawn(connection.serve(builder.clone(), router.clone()));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(drain, ended).await.is_err() {
        tracing::warn!(drain_s = drain.as_secs(), "requests were still running when the drain ended");
    }
}

/// A connection, once there is a place for it.
async fn accept<L: Listen>(
    listener: &L,
    places: &Arc<Semaphore>,
) -> io::Result<(L::Io, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.next().await?;
    Ok((stream, peer, place))
}

/// Who sent a request: the other end of its connection. In every request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

struct Connection<S> {
    stream: S,
    peer: Peer,
    /// Given back when the connection ends.
    place: OwnedSemaphorePermit,
    shutdown: Shutdown,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection<S> {
    async fn serve(mut self, builder: http1::Builder, router: Router) {
        let peer = self.peer;
        let service = hyper::service::service_fn(move |request| answer(router.clone(), peer, request));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(self.stream), service));
        let served = tokio::select! {
            biased;
            served = connection.as_mut() => served,
            () = self.shutdown.fired() => {
                // The request that runs is the last.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(self.place);
    }
}

fn answer(
    router: Router,
    peer: Peer,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> {
    request.extensions_mut().insert(peer);
    router.oneshot(request.map(Body::new))
}
