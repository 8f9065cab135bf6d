//! The threads that kernels run on.

use std::io;
use std::num::NonZero;
use std::ops::Range;

use crate::Isa;

/// A persistent team of threads, the calling one among them.
#[derive(Debug)]
pub struct Pool {
    isa: Isa,
    threads: NonZero<usize>,
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of [`Pool::split`] is the remaining one.
    pub fn new(threads: NonZero<usize>, isa: Isa) -> io::Result<Self> {
        Ok(Self { isa, threads })
    }

    /// What its kernels are compiled for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How many threads, the caller among them.
    pub fn threads(&self) -> usize {
        self.threads.get()
    }

    /// Calls `work(thread, range)` with disjoint ranges of at most `grain` items that together are `0..items`, on all
    /// threads, and returns when all are done. `thread` is below [`Pool::threads`] and the same for one thread.
    pub fn split(&mut self, items: usize, grain: usize, work: impl Fn(usize, Range<usize>) + Sync) {
        for begin in (0..items).step_by(grain.max(1)) {
            work(0, begin..items.min(begin + grain.max(1)));
        }
    }
}
