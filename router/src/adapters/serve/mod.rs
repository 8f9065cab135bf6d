//! Sends adapters to workers. A worker opens a stream and asks for a digest; whatever generation this router has is answered
//! with its bytes, in pieces from the disk and behind all tokens. One that has a zone asks first who is nearer, and is named some
//! of its [`Neighbours`]. Called by the link; the transport bounds the streams that a worker may have open.

mod hinted;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_common::ids::{Generation, Name};
use shoal_common::quic::CloseCode;
use shoal_common::wire::blob::{BLOB_PRIORITY, BlobHeader, BlobRequest, Nearer};
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::message::WorkerOpen;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use self::hinted::Hinted;
use super::registry::{Blob, Registry};

/// Bytes read from the disk at once.
const PIECE: usize = 64 << 10;

/// The workers around one that asks.
pub trait Neighbours: fmt::Debug + Send + Sync {
    /// Those that have `generation` and are nearer to it than this router is, the best first; at most
    /// [`MAX_NEARER`](shoal_common::wire::blob::MAX_NEARER).
    fn nearer(&self, generation: Generation) -> Vec<Name>;
}

/// What a worker's streams are answered from.
#[derive(Clone, Debug)]
pub struct Stock {
    /// What this router has.
    pub registry: Registry,
    /// Who else may have it.
    pub neighbours: Arc<dyn Neighbours>,
}

/// Serves the streams that the worker at the other end opens after its control stream, until the connection ends. A stream
/// that breaks the protocol ends it.
pub async fn streams(connection: quinn::Connection, stock: Stock) {
    let mut serving = JoinSet::new();
    let hinted = Arc::new(Mutex::new(Hinted::default()));
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept_bi() => {
                let Ok((writer, reader)) = accepted else { return };
                serving.spawn(stream(writer, reader, stock.clone(), hinted.clone()));
            }
            Some(served) = serving.join_next() => {
                if let Ok(Err(error)) = served {
                    tracing::warn!(%error, remote = %connection.remote_address(), "a worker's stream broke the protocol");
                    CloseCode::Protocol.close(&connection);
                    return;
                }
            }
        }
    }
}

/// One stream. An error is the worker's fault; what it gave up is none.
async fn stream(
    writer: quinn::SendStream,
    reader: quinn::RecvStream,
    stock: Stock,
    hinted: Arc<Mutex<Hinted>>,
) -> Result<(), CodecError> {
    let hinted = || hinted.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reader = FrameReader::new(reader);
    match reader.next().await {
        Ok(WorkerOpen::Blob(request)) => {
            if hinted().is_in_vain(request.digest) {
                metrics::counter!("shoal_adapter_hints_in_vain_total").increment(1);
            }
            if let Err(error) = send(writer, request, &stock.registry).await {
                tracing::debug!(%error, digest = %request.digest, "an adapter was not sent to its end");
            }
            Ok(())
        }
        Ok(WorkerOpen::Nearer(request)) => {
            let nearer = nearer(request, &stock);
            if !nearer.peers.is_empty() {
                hinted().note(request.digest);
            }
            if let Err(error) = hint(writer, &nearer).await {
                tracing::debug!(%error, digest = %request.digest, "a worker was not told who is nearer");
            }
            Ok(())
        }
        // It changed its mind, or is gone.
        Err(CodecError::Io(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn send(mut writer: quinn::SendStream, request: BlobRequest, registry: &Registry) -> Result<(), CodecError> {
    // Fails only where the stream is gone, and then writing fails, too.
    let _ = writer.set_priority(BLOB_PRIORITY);
    let Some((blob, file)) = open(request, registry).await else {
        metrics::counter!("shoal_adapter_blobs_not_found_total").increment(1);
        codec::write_frame(&mut writer, &BlobHeader::NotFound).await?;
        let _ = writer.finish();
        return Ok(());
    };
    codec::write_frame(&mut writer, &BlobHeader::Found { len: blob.bytes }).await?;
    copy(file, blob.bytes, &mut writer).await?;
    let _ = writer.finish();
    Ok(())
}

/// Who is nearer. Of what is not here any more nothing is said: it was removed, and is not to spread.
fn nearer(request: BlobRequest, stock: &Stock) -> Nearer {
    match stock.registry.blob(request.digest) {
        Some(blob) => Nearer { len: blob.bytes, peers: stock.neighbours.nearer(Generation(request.digest)) },
        None => Nearer { len: 0, peers: Vec::new() },
    }
}

async fn hint(mut writer: quinn::SendStream, nearer: &Nearer) -> Result<(), CodecError> {
    let answer = if nearer.peers.is_empty() { "router" } else { "peers" };
    metrics::counter!("shoal_adapter_hints_total", "nearest" => answer).increment(1);
    codec::write_frame(&mut writer, nearer).await?;
    let _ = writer.finish();
    Ok(())
}

/// The blob and its file, if that is there in full length.
async fn open(request: BlobRequest, registry: &Registry) -> Option<(Blob, File)> {
    let blob = registry.blob(request.digest)?;
    let opened = async {
        let file = File::open(&blob.path).await?;
        let length = file.metadata().await?.len();
        if length == blob.bytes { Ok(file) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) }
    };
    match opened.await {
        Ok(file) => Some((blob, file)),
        Err(error) => {
            tracing::error!(%error, digest = %request.digest, "a stored adapter cannot be read");
            None
        }
    }
}

async fn copy(file: File, bytes: u64, writer: &mut quinn::SendStream) -> io::Result<()> {
    let mut file = file.take(bytes);
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let read = file.read(&mut piece).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        writer.write_all(&piece[..read]).await?;
        metrics::counter!("shoal_adapter_blob_bytes_total").increment(read as u64);
        left -= read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
