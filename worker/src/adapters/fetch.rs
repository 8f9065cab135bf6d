//! From a router to this machine's disk: one QUIC stream for each fetch, on a connection that a session keeps. Called by the
//! store's flights. The bytes go to the file in chunks as they arrive, hashed on the way; an adapter is never whole in memory
//! here, and a length is judged before a byte is written.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError};
use shoal_common::ambient;
use shoal_common::ids::Generation;
use shoal_common::quic::MAX_FETCHES;
use shoal_common::wire::blob::{BLOB_PRIORITY, BlobHeader, BlobRequest};
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::message::WorkerOpen;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

use super::disk::{Part, WriteError};
use super::error::Unavailable;

/// For the next byte: blobs give way to tokens, but no link is so busy with them for so long.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes taken off the stream before they are written: a few hundred microseconds of hashing and copying.
const CHUNK: usize = 512 << 10;

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The router does not have it.
    #[error("the router does not have it")]
    NotFound,
    /// The connection is lost.
    #[error("the connection is lost")]
    Lost(#[from] ConnectionError),
    /// The stream broke, or the router broke the protocol on it.
    #[error("the stream broke")]
    Stream(#[from] CodecError),
    /// The stream broke within the content.
    #[error("the content broke off")]
    Content(#[source] io::Error),
    /// Nothing came for a long time.
    #[error("nothing came for {} s", SILENCE.as_secs())]
    Silent,
    /// The content has another length than was announced, or another hash.
    #[error("the content is not what was asked for")]
    Corrupt,
    /// There is no room for it.
    #[error("there is no room")]
    Room(#[source] Unavailable),
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull(#[source] io::Error),
    /// The file cannot be written.
    #[error("the file cannot be written")]
    Disk(#[source] io::Error),
    /// A bug.
    #[error("a write panicked")]
    Panicked(#[from] JoinError),
}

impl From<WriteError> for FetchError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Full(source) => Self::DiskFull(source),
            WriteError::Failed(source) => Self::Disk(source),
            WriteError::Corrupt => Self::Corrupt,
        }
    }
}

impl From<&FetchError> for Unavailable {
    fn from(error: &FetchError) -> Self {
        match error {
            FetchError::NotFound => Self::NotFound,
            FetchError::Lost(_) | FetchError::Stream(_) | FetchError::Content(_) | FetchError::Silent => {
                Self::Unreachable
            }
            FetchError::Corrupt => Self::Corrupt,
            FetchError::Room(why) => *why,
            FetchError::DiskFull(_) => Self::DiskFull,
            FetchError::Disk(_) => Self::DiskFailed,
            FetchError::Panicked(_) => Self::Aborted,
        }
    }
}

/// An adapter on its way.
pub struct Blob {
    /// Bytes that were announced.
    pub len: u64,
    /// The content, up to the end of the stream.
    pub content: Box<dyn AsyncRead + Send + Unpin>,
    /// Held until the content is read.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A blob that is being asked for.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Blob, FetchError>> + Send + 'a>>;

/// Where adapters come from. A router, or what a test plays.
pub trait Source: fmt::Debug + Send + Sync {
    /// Asks for the bundle of `generation`.
    fn open(&self, generation: Generation) -> Opening<'_>;
}

/// The router at the other end of a connection. At most [`MAX_FETCHES`] fetches run at once, more wait in line.
#[derive(Debug)]
pub struct RouterSource {
    connection: Connection,
    fetches: Arc<Semaphore>,
}

impl RouterSource {
    /// The router behind `connection`.
    pub fn new(connection: Connection) -> Self {
        Self { connection, fetches: Arc::new(Semaphore::new(MAX_FETCHES as usize)) }
    }

    async fn ask(&self, generation: Generation) -> Result<(FrameReader<quinn::RecvStream>, BlobHeader), FetchError> {
        let (mut send, recv) = self.connection.open_bi().await?;
        // A closed stream is noticed by the write.
        let _ = send.set_priority(BLOB_PRIORITY);
        codec::write_frame(&mut send, &WorkerOpen::Blob(BlobRequest { digest: generation.0 })).await?;
        let _ = send.finish();
        let mut frames = FrameReader::new(recv);
        let header = frames.next().await?;
        Ok((frames, header))
    }
}

impl Source for RouterSource {
    fn open(&self, generation: Generation) -> Opening<'_> {
        Box::pin(async move {
            let permit = self.fetches.clone().acquire_owned().await.expect("the semaphore is never closed");
            match tokio::time::timeout(SILENCE, self.ask(generation)).await {
                Err(_elapsed) => Err(FetchError::Silent),
                Ok(Err(error)) => Err(error),
                Ok(Ok((_, BlobHeader::NotFound))) => Err(FetchError::NotFound),
                Ok(Ok((frames, BlobHeader::Found { len }))) => {
                    let (stream, head) = frames.into_parts();
                    let content = Box::new(io::Cursor::new(head).chain(stream));
                    Ok(Blob { len, content, permit: Some(permit) })
                }
            }
        })
    }
}

/// Writes all of `blob` into `part`, which is then ready to be finished.
pub(super) async fn pour(mut blob: Blob, mut part: Part) -> Result<Part, FetchError> {
    let mut left = blob.len;
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        fill(&mut blob.content, &mut chunk).await?;
        if chunk.is_empty() {
            return if left == 0 { Ok(part) } else { Err(FetchError::Corrupt) };
        }
        left = left.checked_sub(chunk.len() as u64).ok_or(FetchError::Corrupt)?;
        let written = ambient::off_runtime(move || {
            part.write(&chunk)?;
            chunk.clear();
            Ok::<_, WriteError>((part, chunk))
        });
        (part, chunk) = written.await??;
    }
}

/// Reads until `chunk` has [`CHUNK`] bytes or the content ends.
async fn fill(content: &mut (dyn AsyncRead + Send + Unpin), chunk: &mut Vec<u8>) -> Result<(), FetchError> {
    while chunk.len() < CHUNK {
        let mut rest = (&mut *content).take((CHUNK - chunk.len()) as u64);
        let read = tokio::time::timeout(SILENCE, rest.read_buf(chunk)).await.map_err(|_elapsed| FetchError::Silent)?;
        if read.map_err(FetchError::Content)? == 0 {
            break;
        }
    }
    Ok(())
}
