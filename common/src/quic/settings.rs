//! TLS and transport settings of both sides. Every limit is stated: quinn's defaults suit a web server, not a cluster.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;

use super::{Protocol, QuicError};
use crate::config::Timers;
use crate::pki::{self, Identity};

/// Group streams a router may have open on one connection.
pub const MAX_GROUP_STREAMS: u32 = 1024;
/// Blob streams a router may have open on one connection, beside the groups.
const MAX_BLOB_STREAMS: u32 = 16;
/// Streams a worker may have open: its control stream, one for each adapter that it fetches, and those where it asks who is
/// nearer.
pub const MAX_CONTROL_STREAMS: u32 = 1 + MAX_FETCHES + MAX_HINTS;
/// Adapters that a worker fetches over one connection at once; more wait.
pub const MAX_FETCHES: u32 = 4;
/// Adapters of which it asks at once who is nearer; more wait. An answer comes within a round trip.
pub const MAX_HINTS: u32 = 1;

/// Handshakes that may wait to be looked at; more are refused.
const MAX_INCOMING: usize = 64;
/// Bytes kept of a handshake that waits, and of all of them.
const INCOMING_BYTES: (u64, u64) = (64 << 10, 1 << 20);

/// What a round trip is taken for until it is measured: a third of what QUIC takes on the open internet. What a handshake loses is
/// sent again after three of them, and the first packet to a process that is just starting is lost.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// What one side will hold of the data that the other sends.
#[derive(Clone, Copy)]
struct Inbound {
    /// Streams the peer may have open.
    streams: u32,
    /// Bytes held of one stream.
    stream_window: u32,
    /// Bytes held of all streams together.
    window: u32,
}

/// A router holds 64 KiB of tokens a stream (some 300 tokens with 20 alternatives each) and leaves room for every stream to
/// fill up: a stream whose client reads slowly can never take credit from its neighbours, or from the control stream.
const ROUTER: Inbound = Inbound {
    streams: MAX_CONTROL_STREAMS,
    stream_window: 64 << 10,
    window: (MAX_GROUP_STREAMS + MAX_BLOB_STREAMS + MAX_CONTROL_STREAMS) * (64 << 10),
};

/// A worker reads whatever arrives at once, so its streams share one window: 256 KiB of a prompt in flight, 8 MiB over all.
const WORKER: Inbound =
    Inbound { streams: MAX_GROUP_STREAMS + MAX_BLOB_STREAMS, stream_window: 256 << 10, window: 8 << 20 };

/// A stage reads a step's activations at once: 512 rows of 4,096 values are 8 MiB, and a window of two of them keeps the
/// sender going. The head opens one stream.
const STAGE: Inbound = Inbound { streams: 1, stream_window: 16 << 20, window: 16 << 20 };

/// A head reads them at once, too; and its stages open a stream for each adapter that they fetch.
const HEAD: Inbound = Inbound { streams: MAX_FETCHES, ..STAGE };

/// A worker that sends an adapter to another hears one request on a connection, and nothing else.
const LENDER: Inbound = Inbound { streams: 1, stream_window: 4 << 10, window: 4 << 10 };

/// The other one takes 2 MiB at once: within a zone a round trip is a millisecond at most, and that is 2 GB/s.
const BORROWER: Inbound = Inbound { streams: 0, stream_window: 2 << 20, window: 2 << 20 };

/// Bytes sent and not yet acknowledged, over all streams of a connection.
const SEND_WINDOW: u64 = 8 << 20;
/// Likewise to another worker: priorities order the streams of one connection only, so what keeps an adapter out of the way of
/// tokens, which are on others, is how little of it is on the way at once.
const PEER_SEND_WINDOW: u64 = 1 << 20;
const STAGE_SEND_WINDOW: u64 = 16 << 20;

/// What two workers speak with each other, and how much of it may be on the way.
pub(super) struct Trade {
    protocol: Protocol,
    listener: Inbound,
    dialler: Inbound,
    send_window: u64,
}

/// A head dials a stage.
pub(super) const STAGES: Trade =
    Trade { protocol: Protocol::STAGE, listener: STAGE, dialler: HEAD, send_window: STAGE_SEND_WINDOW };

/// A worker dials another for an adapter.
pub(super) const PEERS: Trade =
    Trade { protocol: Protocol::PEER, listener: LENDER, dialler: BORROWER, send_window: PEER_SEND_WINDOW };

impl Trade {
    /// Of the one that listens.
    pub(super) fn server(&self, identity: &Identity, timers: &Timers) -> Result<ServerConfig, QuicError> {
        let mut tls = server_tls(identity)?;
        tls.alpn_protocols = self.protocol.alpn();
        let mut config = server_with(tls, timers)?;
        config.transport_config(transport(self.listener, self.send_window, timers)?);
        Ok(config)
    }

    /// Of the one that dials.
    pub(super) fn client(&self, identity: &Identity, timers: &Timers) -> Result<ClientConfig, QuicError> {
        let mut tls = client_tls(identity)?;
        tls.alpn_protocols = self.protocol.alpn();
        let mut config = client_with(tls, timers)?;
        config.transport_config(transport(self.dialler, self.send_window, timers)?);
        Ok(config)
    }
}

fn transport(inbound: Inbound, send_window: u64, timers: &Timers) -> Result<Arc<TransportConfig>, QuicError> {
    let idle = IdleTimeout::try_from(timers.idle).map_err(|_| QuicError::IdleTooLong(timers.idle))?;
    let mut transport = TransportConfig::default();
    transport
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(inbound.streams.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(inbound.stream_window.into())
        .receive_window(inbound.window.into())
        .send_window(send_window)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(timers.keep_alive))
        .max_idle_timeout(Some(idle));
    Ok(Arc::new(transport))
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, QuicError> {
    let mut store = RootCertStore::empty();
    for root in identity.roots() {
        store.add(root.clone())?;
    }
    Ok(Arc::new(store))
}

pub(super) fn server_tls(identity: &Identity) -> Result<rustls::ServerConfig, QuicError> {
    let provider = Arc::new(pki::provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider.clone()).build()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key().into())?;
    tls.alpn_protocols = Protocol::ROUTER.alpn();
    // A resumed session would skip the check of the certificate; and 0-RTT data could be replayed.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    Ok(tls)
}

pub(super) fn client_tls(identity: &Identity) -> Result<rustls::ClientConfig, QuicError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(pki::provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain(), identity.key().into())?;
    tls.alpn_protocols = Protocol::ROUTER.alpn();
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    Ok(tls)
}

pub(super) fn server(identity: &Identity, timers: &Timers) -> Result<ServerConfig, QuicError> {
    server_with(server_tls(identity)?, timers)
}

pub(super) fn server_with(tls: rustls::ServerConfig, timers: &Timers) -> Result<ServerConfig, QuicError> {
    let crypto = QuicServerConfig::try_from(tls).expect("ring has the initial cipher suite of QUIC");
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport(ROUTER, SEND_WINDOW, timers)?)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES.0)
        .incoming_buffer_size_total(INCOMING_BYTES.1)
        .retry_token_lifetime(timers.connect.max(Duration::from_secs(1)));
    Ok(config)
}

pub(super) fn client(identity: &Identity, timers: &Timers) -> Result<ClientConfig, QuicError> {
    client_with(client_tls(identity)?, timers)
}

pub(super) fn client_with(tls: rustls::ClientConfig, timers: &Timers) -> Result<ClientConfig, QuicError> {
    let crypto = QuicClientConfig::try_from(tls).expect("ring has the initial cipher suite of QUIC");
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(WORKER, SEND_WINDOW, timers)?);
    Ok(config)
}
