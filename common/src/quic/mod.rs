//! The transport between routers and workers: QUIC with mutual TLS 1.3, every window, count and time finite. Owns endpoints,
//! dialling, admission of connections and their close codes. A router binds with [`router_endpoint`] and takes workers from
//! an [`Acceptor`]; a worker makes one [`worker_endpoint`] and [`dial`]s; workers among themselves listen by [`stage_endpoint`] or
//! [`peer_endpoint`] and dial by [`dial_stage`] or [`dial_peer`]. Never reads or writes a stream.

mod accept;
mod between;
mod error;
mod reset;
mod settings;
#[cfg(test)]
mod tests;
mod version;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{ClientConfig, Connecting, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Socket, Type};

pub use accept::{Acceptor, Admission};
pub use between::{dial_peer, dial_stage, peer_endpoint, stage_endpoint, stage_endpoint_on, stage_socket};
pub use error::{CloseCode, QuicError, RefusedBy, Rejection};
pub use reset::{ResetKey, reset_connections};
pub use settings::{MAX_CONTROL_STREAMS, MAX_FETCHES, MAX_GROUP_STREAMS, MAX_HINTS};
pub use version::{Protocol, ProtocolVersion};

use crate::config::Timers;
use crate::ids::Name;
use crate::pki::{CertificateFault, Identity, Role, Subject};

/// Asked of the kernel for each direction, in bytes; it gives what its own limit allows. A step's frames for all groups leave
/// in one burst, which the usual 208 KiB can drop.
const SOCKET_BUFFER: usize = 2 << 20;

/// Binds `addr` for workers to dial. Within a tokio runtime, which then drives the endpoint.
pub fn router_endpoint(addr: SocketAddr, identity: &Identity, timers: &Timers) -> Result<Endpoint, QuicError> {
    listen(addr, router_config(identity, timers)?)
}

/// An endpoint that dials only: any port, IPv6 and IPv4 where the machine has both. Within a tokio runtime, which then drives
/// the endpoint.
pub fn worker_endpoint(identity: &Identity, timers: &Timers) -> Result<Endpoint, QuicError> {
    let config = worker_config(identity, timers)?;
    let (v6, v4) = (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let bind = |source| QuicError::Bind { addr: v4, source };
    let socket = socket(v6).or_else(|_| socket(v4)).map_err(bind)?;
    let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(bind)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// What [`router_endpoint`] gives its endpoint, for one over another kind of socket.
pub fn router_config(identity: &Identity, timers: &Timers) -> Result<ServerConfig, QuicError> {
    require(identity, Role::Router)?;
    settings::server(identity, timers)
}

/// What [`worker_endpoint`] gives its endpoint, likewise.
pub fn worker_config(identity: &Identity, timers: &Timers) -> Result<ClientConfig, QuicError> {
    require(identity, Role::Worker)?;
    settings::client(identity, timers)
}

/// Dials the router at `addr`. The connection it returns leads to a router of this cluster; whether the router takes this
/// worker is known with the first frame it sends, because in TLS 1.3 the client's certificate is judged last.
pub async fn dial(endpoint: &Endpoint, addr: SocketAddr, timers: &Timers) -> Result<Connection, QuicError> {
    connected(endpoint.connect(addr, Role::Router.server_name())?, timers).await
}

/// The name of the worker at the other end, from the certificate that the handshake verified.
pub fn peer_worker(connection: &Connection) -> Result<Name, QuicError> {
    let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let certificate = identity.as_ref().and_then(|chain| chain.first()).ok_or(QuicError::Anonymous)?;
    match Subject::of(certificate)? {
        Subject { role: Role::Worker, name, .. } => Ok(name),
        Subject { role: got, .. } => Err(CertificateFault::WrongRole { expected: Role::Worker, got }.into()),
    }
}

fn require(identity: &Identity, expected: Role) -> Result<(), QuicError> {
    let got = identity.role();
    if got == expected { Ok(()) } else { Err(CertificateFault::WrongRole { expected, got }.into()) }
}

fn listen(addr: SocketAddr, config: ServerConfig) -> Result<Endpoint, QuicError> {
    let socket = socket(addr).map_err(|source| QuicError::Bind { addr, source })?;
    listen_on(socket, EndpointConfig::default(), config)
}

fn listen_on(socket: UdpSocket, endpoint: EndpointConfig, server: ServerConfig) -> Result<Endpoint, QuicError> {
    let addr = socket.local_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
    Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime))
        .map_err(|source| QuicError::Bind { addr, source })
}

/// The end of a handshake, on either side.
async fn connected(connecting: Connecting, timers: &Timers) -> Result<Connection, QuicError> {
    let connected = tokio::time::timeout(timers.connect, connecting).await;
    Ok(connected.map_err(|_| QuicError::Timeout(timers.connect))??)
}

fn socket(addr: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(socket2::Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    for grown in [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)] {
        if let Err(error) = grown {
            tracing::debug!(%error, "the kernel keeps its own socket buffer size");
        }
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
