//! Where tokenisation runs: blocking threads, no more at once than there are cores, and a bounded queue before them, so
//! that long prompts neither stall the runtime nor pile up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

/// Jobs that wait for a thread at most.
const MAX_WAITING: usize = 256;

/// A job could not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Too many wait already.
    #[error("too many texts wait to be tokenised")]
    Full,
    /// The job panicked.
    #[error("tokenisation failed")]
    Panicked,
}

/// Runs jobs on blocking threads. Cloning shares the bounds.
#[derive(Clone, Debug)]
pub struct TextPool {
    threads: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// Leaves the queue when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TextPool {
    /// A pool of `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self { threads: Arc::new(Semaphore::new(threads)), waiting: Arc::default() }
    }

    /// Runs `job` when a thread is free. A job that has begun runs to its end even if the caller leaves.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, PoolError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(PoolError::Full);
        }
        let place = Place(Arc::clone(&self.waiting));
        let permit = Arc::clone(&self.threads).acquire_owned().await.map_err(|_| PoolError::Full)?;
        drop(place);
        let work = move || {
            let result = job();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| PoolError::Panicked)
    }
}
