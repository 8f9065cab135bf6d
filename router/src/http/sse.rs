//! The streamed answer: server-sent events through a buffer that is bounded in events and bytes. The producer runs beside
//! the response's body, not inside it, because a body is polled only while the socket drains: deadlines, keep-alives and
//! the eviction of a reader that takes nothing must not depend on that reader.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

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
    patience: Patience,
    /// When something was sent last.
    quiet_since: Instant,
}

/// How long a stream may be quiet, on either side.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Of a client that takes nothing: then it is cut off.
    pub slow_reader: Duration,
    /// Of a producer that has nothing to tell: then a comment is sent.
    pub keep_alive: Duration,
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
    /// Waits for `work`, and sends a comment whenever the stream has been quiet for too long: also when much comes of the
    /// work and nothing is to be told yet, as with candidates that are not ranked.
    pub async fn wait<T>(&mut self, work: impl Future<Output = T>) -> Result<T, SinkError> {
        let mut work = pin!(work);
        loop {
            let due = self.quiet_since + self.patience.keep_alive;
            if due > Instant::now()
                && let Ok(done) = timeout_at(due, work.as_mut()).await
            {
                return Ok(done);
            }
            self.keep_alive().await?;
        }
    }

    /// Sends `data` as one event.
    pub async fn event(&mut self, data: &str) -> Result<(), SinkError> {
        self.send(format!("data: {data}\n\n")).await
    }

    /// Sends a comment, which clients ignore and proxies take for life.
    async fn keep_alive(&mut self) -> Result<(), SinkError> {
        self.send(": keep-alive\n\n".to_owned()).await
    }

    async fn send(&mut self, text: String) -> Result<(), SinkError> {
        let share = u32::try_from(text.len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let queued = async {
            let permit = Arc::clone(&self.bytes).acquire_many_owned(share).await.map_err(|_| SinkError::Gone)?;
            self.events.send((text.into(), permit)).await.map_err(|_| SinkError::Gone)
        };
        let sent = tokio::select! {
            biased;
            sent = timeout(self.patience.slow_reader, queued) => sent.unwrap_or(Err(SinkError::TooSlow)),
            () = self.events.closed() => Err(SinkError::Gone),
        };
        self.quiet_since = Instant::now();
        sent
    }
}

/// Runs `produce` beside a body that carries what it sends. The body ends when the producer returns; it breaks, so that
/// the client cannot take a part for the whole, when the producer fails. Dropping it, because the client left, aborts the
/// producer.
pub fn body<F>(patience: Patience, produce: impl FnOnce(EventSink) -> F) -> Body
where
    F: Future<Output = Result<(), SinkError>> + Send + 'static,
{
    let (events, receiver) = mpsc::channel(MAX_EVENTS);
    let bytes = Arc::new(Semaphore::new(MAX_BYTES as usize));
    let sink = EventSink { events, bytes, patience, quiet_since: Instant::now() };
    let producer = AbortOnDropHandle::new(tokio::spawn(produce(sink)));
    let told = ReceiverStream::new(receiver).map(|(event, _share)| Ok(event));
    let end = async {
        match producer.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Err(error)),
            Err(_panicked) => Some(Err(SinkError::Broken)),
        }
    };
    Body::from_stream(told.chain(futures_util::stream::once(end).filter_map(|end| end)))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn a_stream_that_has_nothing_to_tell_is_kept_alive_however_busy_its_producer_is() {
        let patience = Patience { slow_reader: Duration::from_secs(30), keep_alive: Duration::from_millis(40) };
        let body = body(patience, async |mut sink| {
            for _ in 0..30 {
                sink.wait(tokio::time::sleep(Duration::from_millis(5))).await?;
            }
            sink.event("told").await
        });
        let sent = to_bytes(body, 1 << 20).await.unwrap();
        let sent = String::from_utf8(sent.to_vec()).unwrap();
        assert!(sent.starts_with(": keep-alive\n\n") && sent.ends_with("data: told\n\n"), "{sent:?}");
    }
}
