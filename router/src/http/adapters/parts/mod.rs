//! Takes the two files of an upload off the wire: `multipart/form-data` with `adapter_config.json` and
//! `adapter_model.safetensors`, in any order. The weights go to the disk as they come. Everything is bounded while it is read:
//! bytes of the adapter, bytes that the multipart reader may hold back, and the time that so many bytes may take.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::Stream;
use hyper::body::Body as _;
use multer::{Field, Multipart};
use shoal_common::adapter::bundle::MAX_CONFIG;
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::time::{Instant, Sleep, sleep_until};

use super::refusal::fault;
use crate::adapters::spool::Spool;
use crate::adapters::stamp::FILES;
use crate::http::error::{ApiError, FaultKind, printable};

/// Bytes a second that an upload must make on average, once `limits.body_timeout` is over: 1 GiB may take half a day, but
/// nobody holds a place with a trickle.
const MIN_RATE: u64 = 16 << 10;

/// Bytes that may be taken, beside the last piece, before the reader has made anything of them: the headers of a part are a few hundred.
const MAX_HELD: u64 = 1 << 20;

/// After so many of them the reader is let to look at what it has.
const MOUTHFUL: u64 = 64 << 10;

/// Bytes of a body that are not the adapter's: boundaries and headers.
const OVERHEAD: u64 = 64 << 10;

/// Bytes gathered before they are written.
const WRITE: usize = 256 << 10;

/// What an upload must keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Bytes of both files together.
    pub(super) limit: u64,
    /// Time that is given whatever the speed.
    pub(super) patience: Duration,
}

impl Rules {
    /// Whether a body of so many bytes is worth beginning.
    pub(super) fn declared(&self, bytes: u64) -> Result<(), ApiError> {
        let most = self.limit.saturating_add(OVERHEAD);
        if bytes > most { Err(ApiError::TooLarge { limit: self.limit }) } else { Ok(()) }
    }

    /// How long `taken` bytes may take.
    fn allowed(&self, taken: u64) -> Duration {
        self.patience + Duration::from_secs(taken / MIN_RATE)
    }
}

/// The two files.
#[derive(Debug)]
pub(super) struct Parts {
    /// `adapter_config.json`
    pub(super) config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub(super) weights: Spool,
}

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Config,
    Weights,
}

/// Why no more of a body is taken.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Stop {
    #[error("the body is too long")]
    TooLong,
    #[error("the body is too slow")]
    TooSlow { after: Duration },
    #[error("a part's header is too long")]
    Held,
    #[error("the body broke off")]
    Broken,
}

impl Parts {
    /// Reads `body`, whose parts `boundary` separates; the weights into `spool`.
    pub(super) async fn receive(
        body: &mut Body,
        boundary: String,
        rules: Rules,
        spool: Spool,
    ) -> Result<Self, ApiError> {
        let claimed = Arc::new(AtomicU64::new(0));
        let metered = Metered::new(body, rules, Arc::clone(&claimed));
        let mut multipart = Multipart::new(metered, boundary);
        let mut taker = Taker { claimed, left: rules.limit, limit: rules.limit, config: None, weights: None };
        while let Some(field) = multipart.next_field().await.map_err(|error| told(&error, rules))? {
            taker.take(field, rules, &spool).await?;
        }
        match (taker.config, taker.weights) {
            (Some(config), Some(())) => Ok(Self { config, weights: spool }),
            (None, _) => Err(missing(FILES[0])),
            (_, None) => Err(missing(FILES[1])),
        }
    }
}

/// Takes the parts in, and counts.
struct Taker {
    claimed: Arc<AtomicU64>,
    left: u64,
    limit: u64,
    config: Option<Vec<u8>>,
    weights: Option<()>,
}

impl Taker {
    async fn take(&mut self, field: Field<'_>, rules: Rules, spool: &Spool) -> Result<(), ApiError> {
        match part_of(&field) {
            Some(Part::Config) if self.config.is_none() => {
                let config = self.config(field, rules).await?;
                self.config = Some(config);
            }
            Some(Part::Weights) if self.weights.is_none() => {
                self.weights(field, rules, spool).await?;
                self.weights = Some(());
            }
            Some(part) => return Err(fault(&["body", part.file()], FaultKind::Value, "is there twice")),
            None => {
                let name = printable(field.name().unwrap_or_default());
                let message = format!("has a part '{name}'; the parts are {} and {}", FILES[0], FILES[1]);
                return Err(fault(&["body"], FaultKind::Value, message));
            }
        }
        Ok(())
    }

    async fn config(&mut self, mut field: Field<'_>, rules: Rules) -> Result<Vec<u8>, ApiError> {
        let mut config = Vec::new();
        while let Some(bytes) = self.chunk(&mut field, rules).await? {
            if config.len() + bytes.len() > MAX_CONFIG {
                let message = format!("must have at most {MAX_CONFIG} bytes");
                return Err(fault(&["body", FILES[0]], FaultKind::TooLong, message));
            }
            config.extend_from_slice(&bytes);
        }
        Ok(config)
    }

    async fn weights(&mut self, mut field: Field<'_>, rules: Rules, spool: &Spool) -> Result<(), ApiError> {
        let stored = |error: std::io::Error| {
            tracing::error!(%error, "an upload cannot be stored");
            ApiError::Internal
        };
        let mut file = BufWriter::with_capacity(WRITE, File::from_std(spool.open().map_err(stored)?));
        while let Some(bytes) = self.chunk(&mut field, rules).await? {
            file.write_all(&bytes).await.map_err(stored)?;
        }
        file.flush().await.map_err(stored)
    }

    async fn chunk(&mut self, field: &mut Field<'_>, rules: Rules) -> Result<Option<Bytes>, ApiError> {
        let Some(bytes) = field.chunk().await.map_err(|error| told(&error, rules))? else { return Ok(None) };
        self.claimed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(ApiError::TooLarge { limit: self.limit })?;
        Ok(Some(bytes))
    }
}

impl Part {
    fn file(self) -> &'static str {
        match self {
            Self::Config => FILES[0],
            Self::Weights => FILES[1],
        }
    }
}

/// Which file a part is, by its file name or its own name.
fn part_of(field: &Field<'_>) -> Option<Part> {
    let is = |part: Part| [field.file_name(), field.name()].contains(&Some(part.file()));
    [Part::Config, Part::Weights].into_iter().find(|part| is(*part))
}

fn missing(file: &'static str) -> ApiError {
    fault(&["body", file], FaultKind::Missing, "is required")
}

/// What is wrong with a body, in fixed words.
fn told(error: &multer::Error, rules: Rules) -> ApiError {
    let malformed = |why: &'static str| ApiError::Malformed { param: None, why: why.into() };
    let multer::Error::StreamReadFailed(cause) = error else {
        return malformed("the body is not multipart/form-data throughout, or ends too soon");
    };
    match cause.downcast_ref::<Stop>() {
        Some(Stop::TooLong) => ApiError::TooLarge { limit: rules.limit },
        Some(Stop::TooSlow { after }) => ApiError::RequestTimeout { limit: *after },
        Some(Stop::Held) => malformed("the header of a part is too long"),
        Some(Stop::Broken) | None => malformed("the body broke off"),
    }
}

/// A body that is measured while the multipart reader takes it.
struct Metered<'b> {
    body: &'b mut Body,
    rules: Rules,
    started: Instant,
    timer: Pin<Box<Sleep>>,
    taken: u64,
    /// Bytes that came out of the reader as parts.
    claimed: Arc<AtomicU64>,
    /// `taken` when the reader was last let to look.
    paused_at: u64,
    /// Bytes of the last piece.
    last: u64,
}

impl<'b> Metered<'b> {
    fn new(body: &'b mut Body, rules: Rules, claimed: Arc<AtomicU64>) -> Self {
        let started = Instant::now();
        let timer = Box::pin(sleep_until(started + rules.patience));
        Self { body, rules, started, timer, taken: 0, claimed, paused_at: 0, last: 0 }
    }

    fn take(&mut self, bytes: Bytes) -> Result<Bytes, Stop> {
        self.last = bytes.len() as u64;
        self.taken += self.last;
        if self.taken > self.rules.limit.saturating_add(OVERHEAD) {
            return Err(Stop::TooLong);
        }
        let deadline = self.started + self.rules.allowed(self.taken);
        self.timer.as_mut().reset(deadline);
        Ok(bytes)
    }
}

impl Stream for Metered<'_> {
    type Item = Result<Bytes, Box<dyn Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let before_last = this.taken - this.last;
        if before_last.saturating_sub(this.claimed.load(Ordering::Relaxed)) > MAX_HELD + OVERHEAD {
            return Poll::Ready(Some(Err(Stop::Held.into())));
        }
        // The reader takes whatever is ready before it gives any of it.
        if this.taken - this.paused_at >= MOUTHFUL {
            this.paused_at = this.taken;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            match Pin::new(&mut *this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    return Poll::Ready(Some(this.take(bytes).map_err(Into::into)));
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(Err(Stop::Broken.into()))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    if this.timer.as_mut().poll(context).is_ready() {
                        let after = this.started.elapsed();
                        return Poll::Ready(Some(Err(Stop::TooSlow { after }.into())));
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
