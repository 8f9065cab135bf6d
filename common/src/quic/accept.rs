//! Admission of workers: proves each address by a Retry before it costs a key exchange, bounds every handshake in time and
//! all of them in number, and lets only workers through.

use quinn::{Connection, Endpoint, Incoming};
use tokio::task::JoinSet;

use super::{CloseCode, QuicError, peer_worker};
use crate::config::Timers;
use crate::telemetry::Chain;

/// Handshakes that run at once, per endpoint. A slow one holds up no other.
const MAX_HANDSHAKES: usize = 64;

/// Takes workers' connections off a router's endpoint. Dropping it abandons the handshakes under way.
#[derive(Debug)]
pub struct Acceptor {
    endpoint: Endpoint,
    timers: Timers,
    handshakes: JoinSet<Option<Connection>>,
}

impl Acceptor {
    /// For an endpoint of [`router_endpoint`](super::router_endpoint) or [`stage_endpoint`](super::stage_endpoint).
    pub fn new(endpoint: Endpoint, timers: Timers) -> Self {
        Self { endpoint, timers, handshakes: JoinSet::new() }
    }

    /// The next worker's connection; `None` once the endpoint is closed. A peer that fails is logged and passed over.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Connection> {
        let mut open = true;
        while open || !self.handshakes.is_empty() {
            tokio::select! {
                incoming = self.endpoint.accept(), if open && self.handshakes.len() < MAX_HANDSHAKES => match incoming {
                    Some(incoming) => self.begin(incoming),
                    None => open = false,
                },
                Some(done) = self.handshakes.join_next(), if !self.handshakes.is_empty() => {
                    if let Ok(Some(connection)) = done {
                        return Some(connection);
                    }
                }
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
                Ok(connection) => Some(connection),
                Err(error) => {
                    tracing::warn!(%peer, error = %Chain(&error), "a connection was refused");
                    None
                }
            }
        });
    }
}

async fn handshake(incoming: Incoming, timers: &Timers) -> Result<Connection, QuicError> {
    let connecting = incoming.accept()?;
    let connection =
        tokio::time::timeout(timers.connect, connecting).await.map_err(|_| QuicError::Timeout(timers.connect))??;
    match peer_worker(&connection) {
        Ok(_) => Ok(connection),
        Err(error) => {
            CloseCode::Refused.close(&connection);
            Err(error)
        }
    }
}
