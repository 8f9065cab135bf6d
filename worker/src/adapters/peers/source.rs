//! A peer as a source of one adapter: dials it, asks, and leaves the connection to the content. Made anew for each fetch: there is
//! one for each adapter and worker, and a handshake costs less than to keep connections that nobody uses.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use quinn::Connection;
use shoal_common::ambient;
use shoal_common::ids::{Generation, Name};
use shoal_common::quic;

use super::{Dialling, Peers};
use crate::adapters::fetch::{Blob, FetchError, Opening, Origin, Pace, Source};
use crate::adapters::peers::shunned::is_its_fault;
use crate::adapters::upstream;

/// A peer that is said to have an adapter of a known length.
#[derive(Debug)]
pub(super) struct PeerSource {
    peers: Arc<Peers>,
    name: Name,
    /// What the router says: a peer that announces another length is not listened to.
    len: u64,
    /// When the router must be asked.
    until: Instant,
}

impl PeerSource {
    pub(super) fn new(peers: Arc<Peers>, name: Name, len: u64, until: Instant) -> Self {
        Self { peers, name, len, until }
    }

    async fn ask(&self, generation: Generation) -> Result<Blob, FetchError> {
        let connection = self.dial().await?;
        let pace = Pace::Brisk { chunk: self.peers.patience.chunk, until: self.until };
        // The stream keeps the connection open, and the end of the stream closes it.
        let blob = upstream::blob(upstream::ask(&connection, generation).await?, pace)?;
        // Before room is made for it: other files would have to go.
        if blob.len == self.len { Ok(blob) } else { Err(FetchError::Corrupt) }
    }

    /// Tries every address the name resolves to, in the resolver's order.
    async fn dial(&self) -> Result<Connection, FetchError> {
        let Dialling { endpoint, identity, timers } = &self.peers.dialling;
        let host = self.peers.addresses.get(&self.name).expect("sources are made of peers with an address");
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(host).await.map_err(FetchError::Unresolved)?.collect();
        let mut last = FetchError::Unresolved(io::ErrorKind::NotFound.into());
        for address in addresses {
            match quic::dial_peer(endpoint, (address, &self.name), identity, timers).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = FetchError::Undialled(error),
            }
        }
        Err(last)
    }
}

impl Source for PeerSource {
    fn open(&self, generation: Generation) -> Opening<'_> {
        Box::pin(async move {
            let by = (ambient::now() + self.peers.patience.answer).min(self.until);
            tokio::time::timeout_at(by.into(), self.ask(generation)).await.unwrap_or(Err(FetchError::Slow))
        })
    }

    fn origin(&self) -> Origin {
        Origin::Peer(self.name.clone())
    }

    fn failed(&self, error: &FetchError) {
        if is_its_fault(error) {
            self.peers.shunned().add(&self.name, ambient::now() + self.peers.patience.shun);
        }
    }
}
