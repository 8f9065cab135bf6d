//! Between workers: one listens, another dials it by address and name. The heads of replicas and their stages do so, and workers
//! that fetch adapters from each other. The same mutual TLS as with routers, each under a protocol of its own, so that neither
//! end can be taken for a router or for the other kind.

use std::net::{SocketAddr, UdpSocket};

use quinn::{Connection, Endpoint};

use super::settings::{PEERS, STAGES, Trade};
use super::{CloseCode, QuicError, ResetKey, connected, listen, listen_on, peer_worker, require, socket};
use crate::config::Timers;
use crate::ids::Name;
use crate::pki::{CertificateFault, Identity, Role};

/// Binds `addr` for the heads of replicas to dial this worker's stage. Within a tokio runtime, which then drives the endpoint.
/// An [`Acceptor`](super::Acceptor) takes the connections.
pub fn stage_endpoint(addr: SocketAddr, identity: &Identity, timers: &Timers) -> Result<Endpoint, QuicError> {
    stage_endpoint_on(stage_socket(addr)?, &ResetKey::draw(), identity, timers)
}

/// The socket alone, for [`stage_endpoint_on`].
pub fn stage_socket(addr: SocketAddr) -> Result<UdpSocket, QuicError> {
    socket(addr).map_err(|source| QuicError::Bind { addr, source })
}

/// [`stage_endpoint`] on a socket that another process has, too: with `key` it can end the connections when this one is dead,
/// see [`reset_connections`](super::reset_connections).
pub fn stage_endpoint_on(
    socket: UdpSocket,
    key: &ResetKey,
    identity: &Identity,
    timers: &Timers,
) -> Result<Endpoint, QuicError> {
    require(identity, Role::Worker)?;
    listen_on(socket, key.endpoint_config(), STAGES.server(identity, timers)?)
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
    require(identity, Role::Worker)?;
    listen(addr, PEERS.server(identity, timers)?)
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
