//! The session with one router, an actor that lives as long as the worker: it resolves the router's address, dials it, lets
//! a `connection` run, and dials again when it is lost. Started by the supervisor. Tokens never pass its mailbox, which
//! holds at most one message: each is sent by the task that the one before it started.

pub(crate) mod backoff;
mod connection;
mod control;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{Connection, Endpoint};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_common::ambient;
use shoal_common::config::Timers;
use shoal_common::quic::{self, CloseCode, QuicError};
use shoal_common::shutdown::Shutdown;
use shoal_common::telemetry::Chain;
use shoal_common::wire::codec::CodecError;
use shoal_common::wire::hello::{Hello, Refusal};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use crate::adapters::AdapterStore;
use crate::adapters::peers::Peers;
use crate::engine::EngineHandle;
use crate::stage::Board;
use backoff::Backoff;

/// What the worker has to offer, the same for every router.
#[derive(Debug)]
pub struct Offer {
    /// Who it is and what it serves.
    pub hello: Hello,
    /// The encoded tokenizer bundle; its digest is in `hello`.
    pub bundle: Vec<u8>,
}

/// What a session needs.
#[derive(Clone, Debug)]
pub struct SessionArgs {
    /// The router, `host:port`.
    pub router: String,
    /// From where it is dialled.
    pub endpoint: Endpoint,
    /// Of the link.
    pub timers: Timers,
    /// Runs the groups.
    pub engine: EngineHandle,
    /// Has their adapters.
    pub adapters: AdapterStore,
    /// Whom they may come from beside the router.
    pub peers: Option<Arc<Peers>>,
    /// What is served.
    pub offer: Arc<Offer>,
    /// What there is to tell of the model's stages; absent where it is hosted whole.
    pub stages: Option<Board>,
    /// Fires once the engine has ended and connections are to be closed.
    pub closing: Shutdown,
}

/// Why a session with a router ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The router's address cannot be resolved.
    #[error("the address cannot be resolved")]
    Unresolved(#[source] io::Error),
    /// The router cannot be reached, or does not prove to be a router of this cluster.
    #[error("the router cannot be dialled")]
    Undialled(#[source] QuicError),
    /// The connection was lost or closed; also by a router that refuses our certificate or our version, which a worker
    /// learns after its own handshake.
    #[error("the connection is lost")]
    Lost(#[source] QuicError),
    /// The control stream broke.
    #[error("the control stream broke")]
    Broken(#[source] CodecError),
    /// The router does not take this worker.
    #[error("the router refuses this worker")]
    Refused(#[source] Refusal),
    /// The router broke a rule of the protocol.
    #[error("the router broke the protocol")]
    Protocol,
    /// The engine's thread has ended without having been told to.
    #[error("the engine has ended")]
    EngineGone,
    /// The worker shuts down.
    #[error("the worker shuts down")]
    Closing,
    /// A task of the session panicked.
    #[error("a task of the session panicked")]
    Panicked(#[source] JoinError),
}

impl From<CodecError> for SessionEnd {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::TooLong { .. } | CodecError::Malformed(_) | CodecError::Trailing(_) => Self::Protocol,
            broken @ (CodecError::Ended | CodecError::Io(_) | CodecError::Encode(_)) => Self::Broken(broken),
        }
    }
}

impl SessionEnd {
    /// What an operator can do about it, where that is known.
    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Refused(refusal) => Some(refusal.advice()),
            Self::Undialled(error) | Self::Lost(error) => error.advice(),
            Self::Unresolved(_) => {
                Some("correct the host name in `routers` of this worker, or the machine's name service")
            }
            _ => None,
        }
    }

    fn code(&self) -> CloseCode {
        match self {
            Self::Protocol => CloseCode::Protocol,
            Self::Refused(_) => CloseCode::Refused,
            Self::EngineGone | Self::Panicked(_) => CloseCode::Internal,
            Self::Closing | Self::Unresolved(_) | Self::Undialled(_) | Self::Lost(_) | Self::Broken(_) => {
                CloseCode::Shutdown
            }
        }
    }
}

/// What the session is told by its own tasks.
#[derive(Debug)]
pub enum SessionMessage {
    /// Dial the router now.
    Dial,
    /// The connection is over, or never came to be.
    Ended(SessionEnd),
    /// The router has taken the worker: the next failure is a first one.
    Welcomed,
}

/// The actor.
#[derive(Debug)]
pub struct SessionActor;

/// The actor's state.
#[derive(Debug)]
pub struct SessionState {
    args: SessionArgs,
    backoff: Backoff,
    /// The connection's task; dropped with the actor, and then aborted.
    task: Option<AbortOnDropHandle<()>>,
}

impl Actor for SessionActor {
    type Msg = SessionMessage;
    type State = SessionState;
    type Arguments = SessionArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<SessionMessage>,
        args: SessionArgs,
    ) -> Result<SessionState, ActorProcessingErr> {
        myself.cast(SessionMessage::Dial)?;
        Ok(SessionState { args, backoff: Backoff::default(), task: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMessage::Dial => state.dial(myself),
            SessionMessage::Welcomed => state.backoff.reset(),
            SessionMessage::Ended(SessionEnd::Closing) => myself.stop(None),
            SessionMessage::Ended(SessionEnd::Panicked(panic)) => return Err(panic.into()),
            SessionMessage::Ended(end) => state.retry(myself, &end),
        }
        Ok(())
    }
}

impl SessionState {
    fn dial(&mut self, myself: ActorRef<SessionMessage>) {
        let args = self.args.clone();
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let session = AbortOnDropHandle::new(tokio::spawn(meet(args, myself.clone())));
            let end = session.await.unwrap_or_else(SessionEnd::Panicked);
            // Fails only when the actor is gone, and then nobody needs to know.
            let _ = myself.cast(SessionMessage::Ended(end));
        })));
    }

    fn retry(&mut self, myself: ActorRef<SessionMessage>, end: &SessionEnd) {
        let wait = match end {
            SessionEnd::Refused(_) => self.backoff.after_refusal(),
            _ => self.backoff.next(ambient::draw()),
        };
        let (router, mut closing) = (&self.args.router, self.args.closing.clone());
        let advice = end.advice();
        tracing::warn!(%router, reason = %Chain(end), advice, retry_in = ?wait, "no session with a router");
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let next = tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => SessionMessage::Dial,
                () = closing.fired() => SessionMessage::Ended(SessionEnd::Closing),
            };
            let _ = myself.cast(next);
        })));
    }
}

/// Dials the router and stays with it to the end.
async fn meet(args: SessionArgs, myself: ActorRef<SessionMessage>) -> SessionEnd {
    let mut closing = args.closing.clone();
    let connected = tokio::select! {
        biased;
        () = closing.fired() => return SessionEnd::Closing,
        connected = connect(&args.router, &args.endpoint, &args.timers) => connected,
    };
    match connected {
        Ok(connection) => connection::run(connection, args, || drop(myself.cast(SessionMessage::Welcomed))).await,
        Err(end) => end,
    }
}

/// Tries every address the name resolves to, in the resolver's order.
pub(crate) async fn connect(router: &str, endpoint: &Endpoint, timers: &Timers) -> Result<Connection, SessionEnd> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(router).await.map_err(SessionEnd::Unresolved)?.collect();
    let mut last = SessionEnd::Unresolved(io::ErrorKind::NotFound.into());
    for address in addresses {
        match quic::dial(endpoint, address, timers).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = SessionEnd::Undialled(error),
        }
    }
    Err(last)
}
