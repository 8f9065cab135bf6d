//! Between workers: one listens, another dials it by address and name. The heads of replicas and their stages do so, and workers
//! that fetch adapters from each other. The same mutual TLS as with routers, each under a protocol of its own, so that neither
//! end can be taken for a router or for the other kind.

use std::net::SocketAddr;

use quinn::{Connection, Endpoint};

use super::settings::{PEERS, STAGES, Trade};
use super::{CloseCode, QuicError, connected, listen, peer_worker, require};
use crate::config::Timers;
use crate::ids::Name;
use crate::pki::{CertificateFault, Identity, Role};

/// Binds `addr` for the heads of replicas to dial this worker's stage. Within a tokio runtime, which then drives the endpoint.
/// An [`Acceptor`](super::Acceptor) takes the connections.
pub fn stage_endpoint(addr: SocketAddr, identity: &Identity, timers: &Timers) -> Result<Endpoint, QuicError> {
    listen_for(&STAGES, addr, identity, timers)
}

/// Dials the stage of worker `name` at `addr`, from the endpoint of another worker. The connection it returns leads to that
/// worker and no other.
pub async fn dial_stage(
    endpoint: &Endpoint,
    to: (SocketAddr, &Name),
    identity: &Identity,
    timers: &Timers,
) -> Result<Connection, QuicError> {
    dial_for(&STAGES, endpoint, to, identity, timers).await
}

/// Binds `addr` for other workers to fetch adapters from this one. Within a tokio runtime, which then drives the endpoint. An
/// [`Acceptor`](super::Acceptor) takes the connections.
pub fn peer_endpoint(addr: SocketAddr, identity: &Identity, timers: &Timers) -> Result<Endpoint, QuicError> {
    listen_for(&PEERS, addr, identity, timers)
}

/// Dials worker `name` at `addr` for an adapter, from the endpoint of another worker. The connection it returns leads to that
/// worker and no other.
pub async fn dial_peer(
    endpoint: &Endpoint,
    to: (SocketAddr, &Name),
    identity: &Identity,
    timers: &Timers,
) -> Result<Connection, QuicError> {
    dial_for(&PEERS, endpoint, to, identity, timers).await
}

fn listen_for(trade: &Trade, addr: SocketAddr, identity: &Identity, timers: &Timers) -> Result<Endpoint, QuicError> {
    require(identity, Role::Worker)?;
    listen(addr, trade.server(identity, timers)?)
}

async fn dial_for(
    trade: &Trade,
    endpoint: &Endpoint,
    (addr, name): (SocketAddr, &Name),
    identity: &Identity,
    timers: &Timers,
) -> Result<Connection, QuicError> {
    let config = trade.client(identity, timers)?;
    let connecting = endpoint.connect_with(config, addr, Role::Worker.server_name())?;
    let connection = connected(connecting, timers).await?;
    let got = peer_worker(&connection)?;
    if got == *name {
        return Ok(connection);
    }
    CloseCode::Refused.close(&connection);
    Err(CertificateFault::WrongName { expected: name.clone(), got }.into())
}
