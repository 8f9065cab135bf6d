//! From whoever has an adapter to this machine's disk: what a [`Source`] is, how slow it may be, and what can go wrong. Called by
//! the store's flights. The bytes go to the file in chunks as they arrive, hashed on the way; an adapter is never whole in
//! memory here, and a length is judged before a byte is written.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::ConnectionError;
use shoal_common::ambient;
use shoal_common::ids::{Generation, Name};
use shoal_common::quic::QuicError;
use shoal_common::wire::codec::CodecError;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinError;

use super::disk::{Part, WriteError};
use super::error::Unavailable;

/// For the next byte: blobs give way to tokens, but no link is so busy with them for so long.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// Bytes taken off the stream before they are written: a few hundred microseconds of hashing and copying.
const CHUNK: usize = 512 << 10;

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Whoever was asked does not have it.
    #[error("it is not there")]
    NotFound,
    /// Another worker sends as much as it does at once.
    #[error("the worker is busy sending others")]
    Busy,
    /// The address of another worker cannot be resolved.
    #[error("the address cannot be resolved")]
    Unresolved(#[source] io::Error),
    /// Another worker cannot be reached, or does not prove to be the one of that name.
    #[error("the worker cannot be dialled")]
    Undialled(#[source] QuicError),
    /// The connection is lost.
    #[error("the connection is lost")]
    Lost(#[from] ConnectionError),
    /// The stream broke, or the other end broke the protocol on it.
    #[error("the stream broke")]
    Stream(#[from] CodecError),
    /// The stream broke within the content.
    #[error("the content broke off")]
    Content(#[source] io::Error),
    /// Nothing came for a long time.
    #[error("nothing came for {} s", SILENCE.as_secs())]
    Silent,
    /// It came more slowly than from the router, or not at all.
    #[error("it came too slowly")]
    Slow,
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
            FetchError::Busy | FetchError::Unresolved(_) | FetchError::Undialled(_) | FetchError::Lost(_) => {
                Self::Unreachable
            }
            FetchError::Stream(_) | FetchError::Content(_) | FetchError::Silent | FetchError::Slow => Self::Unreachable,
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
    /// How slowly it may come.
    pub pace: Pace,
    /// Held until the content is read.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// How slowly a content may come.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// However slowly, as long as it comes: there is nobody better to ask.
    Patient,
    /// Somebody else has it, too.
    Brisk {
        /// For each 512 KiB.
        chunk: Duration,
        /// For all of it.
        until: Instant,
    },
}

impl Pace {
    /// When the next byte of a chunk that was begun at `began` must be there, and what it is called if it is not.
    fn limit(self, began: Instant, now: Instant) -> (Instant, FetchError) {
        match self {
            Self::Patient => (now + SILENCE, FetchError::Silent),
            Self::Brisk { chunk, until } => ((began + chunk).min(until), FetchError::Slow),
        }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A blob that is being asked for.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Blob, FetchError>> + Send + 'a>>;

/// Sources that are being asked for.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Vec<Arc<dyn Source>>> + Send + 'a>>;

/// Who sends an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A router.
    Router,
    /// The head of a split model, to a stage of it.
    Head,
    /// Another worker of the zone.
    Peer(Name),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router => f.write_str("the router"),
            Self::Head => f.write_str("the head"),
            Self::Peer(name) => write!(f, "worker {name}"),
        }
    }
}

/// Where adapters come from. A router, another worker, or what a test plays.
pub trait Source: fmt::Debug + Send + Sync {
    /// Asks for the bundle of `generation`.
    fn open(&self, generation: Generation) -> Opening<'_>;

    /// Who it is.
    fn origin(&self) -> Origin {
        Origin::Router
    }

    /// Who has `generation` and is nearer than this, the best first. Never takes long, and nobody is as good an answer as any.
    fn nearer(&self, _generation: Generation) -> Asking<'_> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// What came of asking it was a failure.
    fn failed(&self, _error: &FetchError) {}
}

/// Writes all of `blob` into `part`, which is then ready to be finished.
pub(super) async fn pour(mut blob: Blob, mut part: Part) -> Result<Part, FetchError> {
    let mut left = blob.len;
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        fill(&mut blob.content, &mut chunk, blob.pace).await?;
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
async fn fill(content: &mut (dyn AsyncRead + Send + Unpin), chunk: &mut Vec<u8>, pace: Pace) -> Result<(), FetchError> {
    let began = ambient::now();
    while chunk.len() < CHUNK {
        let mut rest = (&mut *content).take((CHUNK - chunk.len()) as u64);
        let (by, late) = pace.limit(began, ambient::now());
        let read = tokio::time::timeout_at(by.into(), rest.read_buf(chunk)).await.map_err(|_elapsed| late)?;
        if read.map_err(FetchError::Content)? == 0 {
            break;
        }
    }
    Ok(())
}
