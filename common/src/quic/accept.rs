//! Admission of workers: proves each address by a Retry before it costs a key exchange, bounds every handshake in time and
//! all of them in number, and lets only workers through.

use std::net::SocketAddr;

use quinn::{Connection, Endpoint, Incoming};
use tokio::task::JoinSet;

use super::{CloseCode, QuicError, connected, peer_worker};
use crate::config::Timers;
use crate::telemetry::Chain;

/// Handshakes that run at once, per endpoint. A slow one holds up no other.
const MAX_HANDSHAKES: usize = 64;

/// Takes workers' connections off a router's endpoint. Dropping it abandons the handshakes under way.
#[derive(Debug)]
pub struct Acceptor {
    endpoint: Endpoint,
    timers: Timers,
    handshakes: JoinSet<Admission>,
}

/// How a handshake ended.
#[derive(Debug)]
pub enum Admission {
    /// A worker's connection.
    Worker(Connection),
    /// No worker of this cluster, or none that could be understood.
    Refused {
        /// Where it came from: a proven address.
        peer: SocketAddr,
        /// Why it was refused.
        error: QuicError,
    },
}

impl Acceptor {
    /// For an endpoint of [`router_endpoint`](super::router_endpoint) or [`stage_endpoint`](super::stage_endpoint).
    pub fn new(endpoint: Endpoint, timers: Timers) -> Self {
        Self { endpoint, timers, handshakes: JoinSet::new() }
    }

    /// The next worker's connection; `None` once the endpoint is closed. A peer that fails is passed over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Connection> {
        loop {
            if let Admission::Worker(connection) = self.next_admission().await? {
                return Some(connection);
            }
        }
    }

    /// The next handshake that ended, well or badly; `None` once the endpoint is closed. Those that fail are logged.
    /// Cancel-safe.
    pub async fn next_admission(&mut self) -> Option<Admission> {
        let mut open = true;
        while open || !self.handshakes.is_empty() {
            tokio::select! {
                // Whoever is through comes before whoever knocks.
                biased;
                Some(done) = self.handshakes.join_next(), if !self.handshakes.is_empty() => {
                    if let Ok(admission) = done {
                        return Some(admission);
                    }
                }
                incoming = self.endpoint.accept(), if open && self.handshakes.len() < MAX_HANDSHAKES => match incoming {
                    Some(incoming) => self.begin(incoming),
                    None => open = false,
                },
            }
        }
        None
    }

    fn begin(&mut self, incoming: Incoming) {
        if !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "a connection attempt could not be answered with a retry");
            }
            return;
        }
        let timers = self.timers;
        self.handshakes.spawn(async move {
            let peer = incoming.remote_address();
            match handshake(incoming, &timers).await {
                Ok(connection) => Admission::Worker(connection),
                Err(error) => {
                    tracing::warn!(%peer, error = %Chain(&error), advice = error.advice(), "a connection was refused");
                    Admission::Refused { peer, error }
                }
            }
        });
    }
}

async fn handshake(incoming: Incoming, timers: &Timers) -> Result<Connection, QuicError> {
    let connection = connected(incoming.accept()?, timers).await?;
    match peer_worker(&connection) {
        Ok(_) => Ok(connection),
        Err(error) => {
            CloseCode::Refused.close(&connection);
            Err(error)
        }
    }
}
