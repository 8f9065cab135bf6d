//! Takes the pages of the KV pool from the system before a step writes to them. A first write to a page waits until the system
//! has found and cleared it: 0.1 ms for a huge page, several where a virtual machine's host must find it first, and all
//! layers come to the end of theirs in the same step. So a thread of its own takes them, a few at a time, some blocks ahead of
//! the highest that was written; memory still grows only with what is used.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::memory::{HUGE_PAGE, Zeroed, take_pages};

/// Blocks beyond the highest that was written: 2,048 positions, more than any machine writes while they are taken.
const AHEAD: usize = 128;
/// Between two takings: whoever computes on the same core is to be held up by no more than one at a time.
const PAUSE: Duration = Duration::from_millis(5);

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Ahead {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Blocks from the first on that are to be there.
    wanted: AtomicUsize,
    ends: Mutex<bool>,
    changed: Condvar,
}

/// What the thread knows of the pool.
struct Layers {
    /// Where each layer begins.
    begins: Vec<NonNull<u8>>,
    block_bytes: usize,
    blocks: usize,
}

// SAFETY: the addresses are only given to the system, which takes pages and changes no content.
unsafe impl Send for Layers {}

impl Ahead {
    /// Takes the first blocks' pages at once, and others as [`Ahead::written`] tells. `layers` outlive it. Nothing where pages
    /// cannot be taken in advance.
    pub(crate) fn start(layers: &[Zeroed], block_bytes: usize, blocks: usize) -> Option<Self> {
        let begins = layers.iter().map(Zeroed::first).collect();
        let layers = Layers { begins, block_bytes, blocks };
        let first = AHEAD.min(blocks);
        if !(0..layers.begins.len()).all(|layer| layers.take(layer, 0, first)) || first == blocks {
            return None;
        }
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let work = move || layers.follow(&theirs, first);
        let thread = std::thread::Builder::new().name("kv-pages".to_owned()).spawn(work).ok()?;
        Some(Self { shared, thread: Some(thread) })
    }

    /// The block is being written to.
    pub(crate) fn written(&self, block: u32) {
        let wanted = block as usize + 1 + AHEAD;
        if self.shared.wanted.fetch_max(wanted, Ordering::Relaxed) < wanted {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        *self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; and if it did, nothing would be lost.
            let _ = thread.join();
        }
    }
}

impl Layers {
    /// Until all blocks are there or the pool goes. A notification that comes between the look at `wanted` and the wait is
    /// missed; the next step's is not.
    fn follow(&self, shared: &Shared, mut there: usize) {
        // As many blocks as fill a huge page.
        let stretch = HUGE_PAGE.div_ceil(self.block_bytes);
        let mut ends = shared.ends.lock().unwrap_or_else(PoisonError::into_inner);
        while there < self.blocks && !*ends {
            if shared.wanted.load(Ordering::Relaxed) <= there {
                ends = shared.changed.wait(ends).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let until = (there + stretch).min(self.blocks);
            for layer in 0..self.begins.len() {
                drop(ends);
                if !self.take(layer, there, until) {
                    return;
                }
                ends = shared.ends.lock().unwrap_or_else(PoisonError::into_inner);
                ends = pause(shared, ends);
                if *ends {
                    return;
                }
            }
            there = until;
        }
    }

    /// Takes the pages of some blocks of a layer. False where the system does not know how.
    fn take(&self, layer: usize, from: usize, until: usize) -> bool {
        let (from, until) = (from * self.block_bytes, until * self.block_bytes);
        // SAFETY: inside the layer.
        take_pages(unsafe { self.begins[layer].add(from) }, until - from)
    }
}

/// A while, or until the pool goes.
fn pause<'a>(shared: &Shared, ends: std::sync::MutexGuard<'a, bool>) -> std::sync::MutexGuard<'a, bool> {
    let waited = shared.changed.wait_timeout_while(ends, PAUSE, |ends| !*ends);
    waited.unwrap_or_else(PoisonError::into_inner).0
}
