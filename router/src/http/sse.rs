//! The streamed answer: server-sent events through a buffer that is bounded in events and bytes. The producer runs beside
//! the response's body, not inside it, because a body is polled only while the socket drains: deadlines, keep-alives and
//! the eviction of a reader that takes nothing must not depend on that reader.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Events that wait for the client at most.
const MAX_EVENTS: usize = 256;

/// Bytes of events that wait for the client at most. A single larger event takes all of it.
const MAX_BYTES: u32 = 64 << 10;

/// An event with its share of the byte bound, given back when the client takes it.
type Queued = (Bytes, OwnedSemaphorePermit);

/// Where the producer puts events.
#[derive(Debug)]
pub struct EventSink {
    events: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
    slow_reader: Duration,
}

/// The client is gone, or took nothing for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The connection closed.
    #[error("the client is gone")]
    Gone,
    /// The buffer stayed full.
    #[error("the client reads too slowly")]
    TooSlow,
    /// The producer panicked.
    #[error("the stream broke")]
    Broken,
}

impl EventSink {
    /// Sends `data` as one event.
    pub async fn event(&self, data: &str) -> Result<(), SinkError> {
        self.send(format!("data: {data}\n\n")).await
    }

    /// Sends a comment, which clients ignore and proxies take for life.
    pub async fn keep_alive(&self) -> Result<(), SinkError> {
        self.send(": keep-alive\n\n".to_owned()).await
    }

    async fn send(&self, text: String) -> Result<(), SinkError> {
        let share = u32::try_from(text.len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let queued = async {
            let permit = Arc::clone(&self.bytes).acquire_many_owned(share).await.map_err(|_| SinkError::Gone)?;
            self.events.send((text.into(), permit)).await.map_err(|_| SinkError::Gone)
        };
        tokio::select! {
            sent = tokio::time::timeout(self.slow_reader, queued) => sent.unwrap_or(Err(SinkError::TooSlow)),
            () = self.events.closed() => Err(SinkError::Gone),
        }
    }
}

/// The body's side of the buffer. Dropping it, because the client left, aborts the producer.
struct Source {
    events: mpsc::Receiver<Queued>,
    producer: JoinHandle<Result<(), SinkError>>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.producer.abort();
    }
}

/// Runs `produce` beside a body that carries what it sends. The body ends when the producer returns; it breaks, so that
/// the client cannot take a part for the whole, when the producer fails.
pub fn body<F>(slow_reader: Duration, produce: impl FnOnce(EventSink) -> F) -> Body
where
    F: Future<Output = Result<(), SinkError>> + Send + 'static,
{
    let (events, receiver) = mpsc::channel(MAX_EVENTS);
    let bytes = Arc::new(Semaphore::new(MAX_BYTES as usize));
    let producer = tokio::spawn(produce(EventSink { events, bytes, slow_reader }));
    let source = Source { events: receiver, producer };
    Body::from_stream(stream::unfold(Some(source), |source| async move {
        let mut source = source?;
        if let Some((event, permit)) = source.events.recv().await {
            drop(permit);
            return Some((Ok(event), Some(source)));
        }
        match (&mut source.producer).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((Err(error), None)),
            Err(_) => Some((Err(SinkError::Broken), None)),
        }
    }))
}
