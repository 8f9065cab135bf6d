//! Adapters from the head to its stages: a stage opens a stream and asks for one; it is answered with the file, in pieces and
//! behind the steps. The stage checks the hash. The transport bounds the streams that a stage may have open.

use quinn::{Connection, RecvStream, SendStream};
use shoal_common::wire::codec::FrameReader;
use shoal_common::wire::message::WorkerOpen;
use tokio::task::JoinSet;

use crate::adapters::{self, AdapterStore};

/// Serves the streams that the stage at the other end opens, until the connection ends. Without a store it has nothing.
pub(super) async fn lend(connection: Connection, store: Option<AdapterStore>) {
    let mut lending = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let Ok((send, recv)) = accepted else { return };
                lending.spawn(stream(send, recv, store.clone()));
            }
            Some(_) = lending.join_next(), if !lending.is_empty() => {}
        }
    }
}

async fn stream(send: SendStream, recv: RecvStream, store: Option<AdapterStore>) {
    // What is no request is reset with its stream.
    let Ok(WorkerOpen::Blob(request)) = FrameReader::new(recv).next().await else { return };
    let generation = shoal_common::ids::Generation(request.digest);
    let found = tokio::task::spawn_blocking(move || store?.file(generation)).await;
    if let Err(error) = adapters::send(send, found.ok().flatten()).await {
        tracing::debug!(%error, adapter = %generation.0.short(), "an adapter was not sent to its end");
    }
}
