//! One load, from wherever the adapter is into memory: fetch it if it is not on disk, wait for room, read, check and pack it on
//! a blocking thread. It runs to its end whoever leaves meanwhile, and ends with one landing, which everybody who waits is told.

use std::sync::Arc;
use std::time::Duration;

use shoal_common::adapter::bundle::MAX_BUNDLE;
use shoal_common::ambient;
use shoal_common::ids::Generation;
use shoal_common::telemetry::Chain;

use super::desk::SourceId;
use super::{Inner, discard};
use crate::adapters::book::{File, Room, Settled};
use crate::adapters::disk::ReadError;
use crate::adapters::elsewhere::Hold;
use crate::adapters::error::{AcquireError, Reason, Unavailable};
use crate::adapters::fetch::{self, Blob, FetchError, Source};
use crate::adapters::loader::{Loaded, Unusable};
use crate::metrics::{self, Tier};

/// Times that a flight goes back to the file: once because it was damaged, once because the adapter turned out larger than
/// its file and had to wait for room. A disk that damages it again is not to be used.
const ROUNDS: usize = 3;

/// Begins a flight that the book has in its entry.
pub(super) fn begin(inner: Arc<Inner>, generation: Generation, via: SourceId) {
    tokio::spawn(async move {
        let flight = Flight { inner: inner.clone(), generation, via, took: Duration::ZERO, announced: 0 };
        // In a task of its own: nobody must wait for ever for a flight that panicked.
        let landing = tokio::spawn(flight.fly()).await.unwrap_or_else(|panic| {
            tracing::error!(adapter = %generation.0.short(), error = %Chain(&panic), "a load panicked");
            Err(Unavailable::Aborted.into())
        });
        report(generation, &landing);
        inner.with(|desk| desk.land(generation, &landing, &inner.moved));
    });
}

fn report(generation: Generation, landing: &Result<Duration, AcquireError>) {
    let adapter = generation.0.short();
    match landing {
        Ok(took) => tracing::info!(%adapter, ?took, "adapter loaded"),
        Err(reason) => tracing::warn!(%adapter, %reason, "adapter not loaded"),
    }
    metrics::adapter_landed(landing);
}

struct Flight {
    inner: Arc<Inner>,
    generation: Generation,
    /// Whose group or order it was.
    via: SourceId,
    /// Time of fetching and loading, without that of waiting for room.
    took: Duration,
    /// Length of the content in the last answer.
    announced: u64,
}

/// What came of asking those who are nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nearer {
    Fetched,
    Nobody,
}

/// Why an adapter was not loaded from its file.
enum LoadFault {
    Damaged,
    Failed(Unavailable),
    Unusable(Reason),
}

impl Flight {
    async fn fly(mut self) -> Result<Duration, AcquireError> {
        for _ in 0..ROUNDS {
            let bytes = self.file().await?;
            self.room().await?;
            match self.load(bytes).await {
                Ok(loaded) => {
                    // Whoever is told that it is ready may use it at once.
                    let _held = self.elsewhere().await?;
                    let (settled, evicted) = self.inner.with(|desk| desk.settle(self.generation, loaded));
                    discard(evicted);
                    if let Settled::Kept(_) = settled {
                        return Ok(self.took);
                    }
                }
                Err(LoadFault::Damaged) => self.drop_file().await,
                Err(LoadFault::Failed(why)) => return Err(why.into()),
                Err(LoadFault::Unusable(reason)) => {
                    self.drop_file().await;
                    return Err(AcquireError::Quarantined(reason));
                }
            }
        }
        Err(Unavailable::DiskFailed.into())
    }

    /// Sees to it that the file is here; its length in bytes.
    async fn file(&mut self) -> Result<u64, Unavailable> {
        loop {
            let inner = self.inner.clone();
            let moved = inner.moved.notified();
            match self.inner.with(|desk| desk.book.file(self.generation)) {
                File::Here(bytes) => return Ok(bytes),
                // The name is free once the old file is gone.
                File::Leaving => moved.await,
                File::Absent | File::Coming(_) => {
                    let began = ambient::now();
                    self.fetch().await?;
                    self.took += ambient::since(began);
                }
            }
        }
    }

    /// From somebody nearer, or else from the first router that has it.
    async fn fetch(&mut self) -> Result<(), Unavailable> {
        let mut last = Unavailable::Unreachable;
        let sources = self.inner.with(|desk| desk.sources(self.via));
        if self.fetch_nearer(sources.first()).await == Nearer::Fetched {
            return Ok(());
        }
        for source in sources {
            let Err(error) = self.fetch_making_room(&*source).await else { return Ok(()) };
            last = Unavailable::from(&error);
            match last {
                Unavailable::NotFound | Unavailable::Unreachable | Unavailable::Corrupt => {}
                _ours => return Err(last),
            }
        }
        Err(last)
    }

    /// From one of those whom the first router names, if that goes well. Whatever goes wrong with them, the routers are asked.
    async fn fetch_nearer(&mut self, router: Option<&Arc<dyn Source>>) -> Nearer {
        let Some(router) = router else { return Nearer::Nobody };
        for peer in router.nearer(self.generation).await {
            match self.fetch_making_room(&*peer).await {
                Ok(()) => return Nearer::Fetched,
                Err(error) => peer.failed(&error),
            }
        }
        Nearer::Nobody
    }

    /// A disk may be full before the limit is reached, of other things. Then adapters that are not needed now make way, and
    /// the fetch is tried once more.
    async fn fetch_making_room(&mut self, source: &dyn Source) -> Result<(), FetchError> {
        let fetched = self.fetch_from(source).await;
        let Err(FetchError::DiskFull(_)) = &fetched else { return fetched };
        let leaving = self.inner.with(|desk| desk.book.shed_files(self.announced));
        if leaving.is_empty() {
            return fetched;
        }
        metrics::adapters_evicted(Tier::Disk, leaving.len());
        self.inner.delete(leaving).await;
        self.fetch_from(source).await
    }

    async fn fetch_from(&mut self, source: &dyn Source) -> Result<(), FetchError> {
        let (adapter, from) = (self.generation.0.short(), source.origin());
        let fetched = self.fetch_over(source).await;
        match &fetched {
            Ok(()) => tracing::info!(%adapter, %from, bytes = self.announced, "adapter fetched"),
            Err(error) => tracing::warn!(%adapter, %from, error = %Chain(error), "an adapter was not fetched"),
        }
        metrics::adapter_fetched(&from, &fetched);
        fetched
    }

    async fn fetch_over(&mut self, source: &dyn Source) -> Result<(), FetchError> {
        let blob = source.open(self.generation).await?;
        self.announced = blob.len;
        let leaving = self.expect(blob.len).map_err(FetchError::Room)?;
        metrics::adapters_evicted(Tier::Disk, leaving.len());
        self.inner.delete(leaving).await;
        let written = self.write(blob).await;
        self.inner.with(|desk| match &written {
            Ok(()) => desk.book.file_here(self.generation),
            Err(_) => desk.book.file_gone(self.generation),
        });
        written
    }

    fn expect(&self, len: u64) -> Result<Vec<Generation>, Unavailable> {
        if len > MAX_BUNDLE {
            return Err(Unavailable::TooLarge);
        }
        self.inner.with(|desk| desk.book.expect_file(self.generation, len))
    }

    async fn write(&self, blob: Blob) -> Result<(), FetchError> {
        let (inner, generation) = (self.inner.clone(), self.generation);
        let part = ambient::off_runtime(move || inner.disk.begin(generation)).await??;
        let part = fetch::pour(blob, part).await?;
        Ok(ambient::off_runtime(move || part.finish()).await??)
    }

    /// Waits for a slot, as long as the most patient of those who wait for this flight.
    async fn room(&self) -> Result<(), Unavailable> {
        loop {
            let moved = self.inner.moved.notified();
            let ((room, evicted), patience) =
                self.inner.with(|desk| (desk.reserve(self.generation), desk.book.patience(self.generation)));
            discard(evicted);
            match room {
                Room::Never => return Err(Unavailable::TooLarge),
                Room::Granted(_) => {
                    // The next in line may fit beside it.
                    self.inner.moved.notify_waiters();
                    return Ok(());
                }
                Room::Wait => {
                    let until = patience.ok_or(Unavailable::Aborted)?;
                    if until <= ambient::now() {
                        return Err(Unavailable::Late);
                    }
                    // Late or not, it looks again: somebody more patient may have come.
                    let _ = tokio::time::timeout_at(until.into(), moved).await;
                }
            }
        }
    }

    /// Reads, checks and packs, on a thread that may block.
    async fn load(&mut self, bytes: u64) -> Result<Loaded, LoadFault> {
        let _permit = self.inner.loading.acquire().await.expect("the semaphore is never closed");
        let began = ambient::now();
        let (inner, generation) = (self.inner.clone(), self.generation);
        let loaded = ambient::off_runtime(move || {
            let content = inner.disk.read(generation, bytes).map_err(LoadFault::from)?;
            inner.loader.load(generation, &content).map_err(LoadFault::from)
        });
        // Whatever made it panic is in the bundle, and would do so again.
        let loaded =
            loaded.await.unwrap_or_else(|panic| Err(LoadFault::Unusable(Reason::new(&Chain(&panic).to_string()))));
        self.took += ambient::since(began);
        loaded
    }

    /// Everybody else who must have it has it, too.
    async fn elsewhere(&mut self) -> Result<Option<Hold>, AcquireError> {
        let patience = self.inner.with(|desk| desk.book.patience(self.generation)).ok_or(Unavailable::Aborted)?;
        let began = ambient::now();
        let held = self.inner.hold_elsewhere(self.generation, patience.saturating_duration_since(began)).await;
        self.took += ambient::since(began);
        held
    }

    /// The file is of no use; nor is the slot for now.
    async fn drop_file(&self) {
        self.inner.with(|desk| desk.book.release(self.generation));
        self.inner.delete(vec![self.generation]).await;
    }
}

impl From<ReadError> for LoadFault {
    fn from(error: ReadError) -> Self {
        tracing::warn!(error = %Chain(&error), "an adapter file cannot be used");
        match error {
            ReadError::Damaged => Self::Damaged,
            ReadError::Failed(_) => Self::Failed(Unavailable::DiskFailed),
        }
    }
}

impl From<Unusable> for LoadFault {
    fn from(error: Unusable) -> Self {
        Self::Unusable(Reason::new(&Chain(&*error).to_string()))
    }
}
