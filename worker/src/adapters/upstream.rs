//! Adapters over a connection that somebody else keeps: from a router to a worker, from a head to a stage. One stream for each
//! fetch. A router is asked first who is nearer, where there may be somebody. Called by the store's flights.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream};
use shoal_common::ids::Generation;
use shoal_common::quic::{MAX_FETCHES, MAX_HINTS};
use shoal_common::telemetry::Chain;
use shoal_common::wire::blob::{BLOB_PRIORITY, BlobHeader, BlobRequest, Nearer};
use shoal_common::wire::codec::{self, FrameReader};
use shoal_common::wire::message::WorkerOpen;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

use super::fetch::{Asking, Blob, FetchError, Opening, Origin, Pace, SILENCE, Source};
use super::peers::Peers;

/// For a router to say who is nearer: it looks that up in memory, and a link that takes longer is no better for the adapter.
const HINT_WITHIN: Duration = Duration::from_secs(2);

/// A router or a head at the other end of a connection. At most [`MAX_FETCHES`] fetches run at once, more wait in line.
#[derive(Debug)]
pub struct Upstream {
    connection: Connection,
    origin: Origin,
    fetches: Arc<Semaphore>,
    hints: Semaphore,
    peers: Option<Arc<Peers>>,
}

impl Upstream {
    /// The router behind `connection`, which may name some of `peers`.
    pub fn router(connection: Connection, peers: Option<Arc<Peers>>) -> Self {
        Self::new(connection, Origin::Router, peers)
    }

    /// The head behind `connection`.
    pub fn head(connection: Connection) -> Self {
        Self::new(connection, Origin::Head, None)
    }

    fn new(connection: Connection, origin: Origin, peers: Option<Arc<Peers>>) -> Self {
        let (fetches, hints) = (Arc::new(Semaphore::new(MAX_FETCHES as usize)), Semaphore::new(MAX_HINTS as usize));
        Self { connection, origin, fetches, hints, peers }
    }

    async fn ask_nearer(&self, generation: Generation) -> Result<Nearer, FetchError> {
        let _permit = self.hints.acquire().await.expect("the semaphore is never closed");
        let mut frames = request(&self.connection, WorkerOpen::Nearer(BlobRequest { digest: generation.0 })).await?;
        Ok(frames.next().await?)
    }
}

/// Opens a stream with a request; what the answer is read from.
async fn request(connection: &Connection, open: WorkerOpen) -> Result<FrameReader<RecvStream>, FetchError> {
    let (mut send, recv) = connection.open_bi().await?;
    // A closed stream is noticed by the write.
    let _ = send.set_priority(BLOB_PRIORITY);
    codec::write_frame(&mut send, &open).await?;
    let _ = send.finish();
    Ok(FrameReader::new(recv))
}

/// Asks the other end of `connection` for a blob; its content follows in the reader.
pub(super) async fn ask(
    connection: &Connection,
    generation: Generation,
) -> Result<(FrameReader<RecvStream>, BlobHeader), FetchError> {
    let mut frames = request(connection, WorkerOpen::Blob(BlobRequest { digest: generation.0 })).await?;
    let header = frames.next().await?;
    Ok((frames, header))
}

/// The blob that an answer begins.
pub(super) fn blob((frames, header): (FrameReader<RecvStream>, BlobHeader), pace: Pace) -> Result<Blob, FetchError> {
    match header {
        BlobHeader::NotFound => Err(FetchError::NotFound),
        BlobHeader::Busy => Err(FetchError::Busy),
        BlobHeader::Found { len } => {
            let (stream, head) = frames.into_parts();
            Ok(Blob { len, content: Box::new(io::Cursor::new(head).chain(stream)), pace, permit: None })
        }
    }
}

impl Source for Upstream {
    fn open(&self, generation: Generation) -> Opening<'_> {
        Box::pin(async move {
            let permit = self.fetches.clone().acquire_owned().await.expect("the semaphore is never closed");
            let asked = tokio::time::timeout(SILENCE, ask(&self.connection, generation)).await;
            let answer = asked.map_err(|_elapsed| FetchError::Silent)??;
            Ok(Blob { permit: Some(permit), ..blob(answer, Pace::Patient)? })
        })
    }

    fn origin(&self) -> Origin {
        self.origin.clone()
    }

    fn nearer(&self, generation: Generation) -> Asking<'_> {
        Box::pin(async move {
            let Some(peers) = self.peers.as_ref().filter(|peers| peers.may_be_asked()) else { return Vec::new() };
            match tokio::time::timeout(HINT_WITHIN, self.ask_nearer(generation)).await {
                Ok(Ok(hint)) => peers.sources(hint),
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "a router does not say who is nearer");
                    Vec::new()
                }
                Err(_elapsed) => Vec::new(),
            }
        })
    }
}
