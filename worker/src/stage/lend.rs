//! Adapters from the head to its stages: a stage opens a stream and asks for one; it is answered with the file, in pieces and
//! behind the steps. The stage checks the hash. The transport bounds the streams that a stage may have open.

use std::io;

use quinn::{Connection, RecvStream, SendStream};
use shoal_common::wire::blob::{BLOB_PRIORITY, BlobHeader};
use shoal_common::wire::codec::{self, FrameReader};
use shoal_common::wire::message::WorkerOpen;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::adapters::AdapterStore;

/// Bytes read from the disk at once.
const PIECE: usize = 64 << 10;

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
    if let Err(error) = tell(send, found.ok().flatten()).await {
        tracing::debug!(%error, adapter = %generation.0.short(), "an adapter was not sent to its end");
    }
}

async fn tell(mut send: SendStream, found: Option<(u64, std::fs::File)>) -> io::Result<()> {
    // Fails only where the stream is gone, and then writing fails, too.
    let _ = send.set_priority(BLOB_PRIORITY);
    let header = found.as_ref().map_or(BlobHeader::NotFound, |(len, _)| BlobHeader::Found { len: *len });
    codec::write_frame(&mut send, &header).await.map_err(io::Error::other)?;
    if let Some((len, file)) = found {
        let mut file = File::from_std(file).take(len);
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            send.write_all(&piece[..read]).await?;
        }
    }
    let _ = send.finish();
    // Until the stage has it all: a stream that is dropped before is reset.
    let _ = send.stopped().await;
    Ok(())
}
