//! The end of a dead stage's connections, told in its name by another process that has its socket: stateless resets (RFC 9000,
//! section 10.3). Whoever kept the stage's [`ResetKey`] can make them, from the connection id of a packet alone.

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, TokioRuntime};
use serde::{Deserialize, Serialize};

use crate::ambient;

/// What an endpoint's reset tokens are made with. A secret of its process and of the one that may end its connections.
#[derive(Clone, Serialize, Deserialize)]
pub struct ResetKey([u8; 32]);

impl ResetKey {
    /// Draws a fresh one.
    pub fn draw() -> Self {
        Self(ambient::draw())
    }

    /// For the endpoint whose connections it can end.
    pub(super) fn endpoint_config(&self) -> EndpointConfig {
        EndpointConfig::new(Arc::new(self.clone()))
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(..)")
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // In constant time, as hashes are compared.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Takes every connection id for one of the dead process, whose generator it does not have.
struct AnyOfTheDead;

/// Bytes of a connection id, as quinn makes them unless it is told otherwise.
const CONNECTION_ID: usize = 8;

impl ConnectionIdGenerator for AnyOfTheDead {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&ambient::draw::<[u8; CONNECTION_ID]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Answers whatever comes to `socket` within `time` with a reset made with `key`, at most one in 20 ms, and closes the socket.
///
/// # Errors
/// The socket cannot be used.
pub async fn reset_connections(socket: UdpSocket, key: &ResetKey, time: Duration) -> io::Result<()> {
    let mut config = key.endpoint_config();
    config.cid_generator(|| Box::new(AnyOfTheDead));
    let _endpoint = Endpoint::new(config, None, socket, Arc::new(TokioRuntime))?;
    tokio::time::sleep(time).await;
    Ok(())
}
