//! The other side: other workers of the cluster dial this one for an adapter, by its hash, and get the file. Run beside the
//! sessions where the configuration has an address to listen on. TLS lets workers of this cluster in and nobody else, as a
//! router does; to know an adapter's hash is to have been told it by a router.
//!
//! Tokens come first: two adapters at most are sent at once, a megabyte of each is on its way at most, and whoever would wait is
//! told to ask somebody else.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use shoal_common::config::Timers;
use shoal_common::ids::Generation;
use shoal_common::quic::{Acceptor, CloseCode};
use shoal_common::shutdown::Shutdown;
use shoal_common::wire::blob::BlobHeader;
use shoal_common::wire::codec::{self, FrameReader};
use shoal_common::wire::message::WorkerOpen;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::adapters::{self, AdapterStore};
use crate::metrics::{self, Lent};

/// Connections of other workers at once; more are closed. Each is there for one adapter.
const MAX_CALLERS: usize = 16;
/// Adapters that are sent at once.
pub(super) const MAX_UPLOADS: usize = 2;
/// For a caller to say what it wants.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// For all that a caller gets. One that keeps to [`Patience`](super::Patience) has left by then.
const SEND_WITHIN: Duration = Duration::from_secs(20);

/// Sends adapters of `store` to the workers that dial `endpoint`, until that closes or `closing` fires.
pub async fn lend(endpoint: Endpoint, timers: Timers, store: AdapterStore, mut closing: Shutdown) {
    let mut acceptor = Acceptor::new(endpoint.clone(), timers);
    let uploads = Arc::new(Semaphore::new(MAX_UPLOADS));
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = closing.fired() => break,
            Some(_) = callers.join_next(), if !callers.is_empty() => {}
            accepted = acceptor.next() => match accepted {
                Some(connection) if callers.len() < MAX_CALLERS => {
                    callers.spawn(attend(connection, store.clone(), uploads.clone()));
                }
                Some(connection) => CloseCode::Refused.close(&connection),
                None => break,
            },
        }
    }
    endpoint.close(CloseCode::Shutdown.into(), CloseCode::Shutdown.reason().as_bytes());
}

/// One caller, one adapter.
async fn attend(connection: Connection, store: AdapterStore, uploads: Arc<Semaphore>) {
    let code = match tokio::time::timeout(ASK_WITHIN, hear(&connection)).await {
        Ok(Some((send, generation))) => {
            let answering = answer(send, generation, store, uploads);
            let lent = tokio::time::timeout(SEND_WITHIN, answering).await.unwrap_or(Lent::Broken);
            let remote = connection.remote_address();
            tracing::debug!(adapter = %generation.0.short(), %remote, ?lent, "an adapter was asked for by a worker");
            metrics::adapter_lent(lent);
            // To close before the caller has read all of it could take the rest away.
            let _ = tokio::time::timeout(SEND_WITHIN, connection.closed()).await;
            CloseCode::Shutdown
        }
        Ok(None) | Err(_) => CloseCode::Protocol,
    };
    code.close(&connection);
}

/// What is wanted, and where the answer goes; nothing where that is no request.
async fn hear(connection: &Connection) -> Option<(SendStream, Generation)> {
    let (send, recv): (SendStream, RecvStream) = connection.accept_bi().await.ok()?;
    let WorkerOpen::Blob(request) = FrameReader::new(recv).next().await.ok()? else { return None };
    Some((send, Generation(request.digest)))
}

async fn answer(mut send: SendStream, generation: Generation, store: AdapterStore, uploads: Arc<Semaphore>) -> Lent {
    let Ok(_permit) = uploads.try_acquire() else {
        let told = codec::write_frame(&mut send, &BlobHeader::Busy).await;
        let _ = send.finish();
        let _ = send.stopped().await;
        return if told.is_ok() { Lent::Busy } else { Lent::Broken };
    };
    let found = tokio::task::spawn_blocking(move || store.file(generation)).await.ok().flatten();
    let lent = if found.is_some() { Lent::Sent } else { Lent::NotFound };
    match adapters::send(send, found).await {
        Ok(()) => lent,
        Err(error) => {
            tracing::debug!(%error, adapter = %generation.0.short(), "an adapter was not sent to its end");
            Lent::Broken
        }
    }
}
