//! The threads that kernels run on: a team that stays awake within a step and sleeps between requests.
//!
//! A piece of work is published as one word (its number, whether it is open, how many helpers are inside); helpers enter
//! by adding themselves to that word while it is open, then all claim ranges from one counter. The caller never waits for
//! a helper that has not entered: a thread that the system has taken away costs its help and nothing else.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::Isa;

/// Looks of a helper for new work before it sleeps: about 50 µs, longer than any pause within a step and short enough to
/// leave the cores to the network between steps.
const LOOKS_BEFORE_SLEEP: u32 = 4_000;
/// Looks for what another thread is about to end before other threads of the machine may run.
const LOOKS_BEFORE_YIELD: u32 = 20_000;

/// Bit of [`Shared::state`]: helpers may enter.
const OPEN: u64 = 1 << 16;
/// Bits of [`Shared::state`]: helpers inside.
const INSIDE: u64 = OPEN - 1;
/// One piece of work more, in [`Shared::state`].
const NEXT: u64 = 1 << 17;
/// Most threads of a pool: they are counted in [`INSIDE`].
const MAX_THREADS: usize = 1024;

/// What is to be done, valid while the work is open or a helper is inside.
#[derive(Clone, Copy)]
struct Work {
    call: unsafe fn(*const (), usize, Range<usize>),
    closure: *const (),
    items: usize,
    grain: usize,
}

struct Shared {
    /// Number of the work, [`OPEN`], helpers inside.
    state: AtomicU64,
    work: UnsafeCell<Work>,
    /// First item that nobody has claimed.
    next: AtomicUsize,
    sleepers: AtomicUsize,
    ends: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written only while the state is closed and nobody is inside, and read only by threads that are inside;
// the closure it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// A persistent team of threads, the calling one among them.
pub struct Pool {
    isa: Isa,
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    sleeping: Vec<Thread>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("isa", &self.isa).field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts `threads - 1` threads (1023 at most); the caller of [`Pool::split`] is the remaining one.
    pub fn new(threads: NonZero<usize>, isa: Isa) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(Work { call: nothing, closure: std::ptr::null(), items: 0, grain: 1 }),
            next: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let helper = |index: usize| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("compute-{index}")).spawn(move || shared.help(index))
        };
        let helpers: Vec<_> = (1..threads.get().min(MAX_THREADS)).map(helper).collect::<io::Result<_>>()?;
        let sleeping = helpers.iter().map(|helper| helper.thread().clone()).collect();
        Ok(Self { isa, shared, helpers, sleeping })
    }

    /// What its kernels are compiled for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How many threads, the caller among them.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work(thread, range)` with disjoint ranges of at most `grain` items that together are `0..items`, on all
    /// threads, and returns when all are done. Ranges are claimed in ascending order and worked off at once by who claimed
    /// them: work may wait for what items before its own do, never for later ones. `thread` is below [`Pool::threads`] and the same for one thread. A panic
    /// of `work` is the caller's, once nobody is inside any more.
    pub fn split<W: Fn(usize, Range<usize>) + Sync>(&mut self, items: usize, grain: usize, work: W) {
        let grain = grain.max(1);
        if items <= grain || self.helpers.is_empty() {
            for begin in (0..items).step_by(grain) {
                work(0, begin..items.min(begin + grain));
            }
            return;
        }
        let posted = Work { call: call::<W>, closure: std::ptr::from_ref(&work).cast(), items, grain };
        let open = Open::post(self, posted);
        posted.claim(&self.shared.next, 0);
        drop(open);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn wake(&self) {
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            self.sleeping.iter().for_each(Thread::unpark);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.sleeping.iter().for_each(Thread::unpark);
        for helper in self.helpers.drain(..) {
            // A helper's panic was told to the caller of `split`.
            let _ = helper.join();
        }
    }
}

/// Work that helpers may enter. Dropped, it is closed and nobody is inside.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn post(pool: &'a Pool, work: Work) -> Self {
        let shared = &*pool.shared;
        // SAFETY: the state is closed and nobody is inside: the last `Open` saw to it, and `split` is exclusive.
        unsafe { *shared.work.get() = work };
        shared.next.store(0, Ordering::Relaxed);
        let number = shared.state.load(Ordering::Relaxed) & !(NEXT - 1);
        // In one total order with the helpers' announcement that they sleep: one of the two sees the other.
        shared.state.store(number.wrapping_add(NEXT) | OPEN, Ordering::SeqCst);
        pool.wake();
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        wait_until(|| self.0.state.load(Ordering::Acquire) & INSIDE == 0);
        if thread::panicking() {
            // The caller's own panic is told; a helper's must not be taken for the next work's.
            *self.0.panic.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Waits for what another thread does at this moment.
pub(crate) fn wait_until(is_so: impl Fn() -> bool) {
    let mut looks = 0;
    while !is_so() {
        looks += 1;
        if looks < LOOKS_BEFORE_YIELD { spin_loop() } else { thread::yield_now() }
    }
}

impl Work {
    /// Takes ranges until none is left.
    fn claim(&self, next: &AtomicUsize, thread: usize) {
        loop {
            let begin = next.fetch_add(self.grain, Ordering::Relaxed);
            if begin >= self.items {
                return;
            }
            let range = begin..self.items.min(begin + self.grain);
            // SAFETY: the closure is alive while the work is open or somebody is inside, and `call` was made for it.
            unsafe { (self.call)(self.closure, thread, range) };
        }
    }
}

/// # Safety
/// `closure` points to a live `W`.
unsafe fn call<W: Fn(usize, Range<usize>) + Sync>(closure: *const (), thread: usize, range: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { (*closure.cast::<W>())(thread, range) }
}

/// # Safety
/// None is needed.
unsafe fn nothing(_closure: *const (), _thread: usize, _range: Range<usize>) {}

impl Shared {
    /// A helper's life.
    fn help(&self, index: usize) {
        let mut done = 0;
        while let Some(number) = self.enter(done) {
            done = number;
            // SAFETY: this thread is inside.
            let work = unsafe { *self.work.get() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work.claim(&self.next, index))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for work after that of number `done` and enters it. `None` at the end.
    fn enter(&self, done: u64) -> Option<u64> {
        let mut looks = 0;
        while !self.ends.load(Ordering::Relaxed) {
            let state = self.state.load(Ordering::Acquire);
            if is_new(state, done) {
                let entered = self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    return Some(number(state));
                }
                continue;
            }
            looks += 1;
            if looks < LOOKS_BEFORE_SLEEP {
                spin_loop();
            } else {
                self.sleep(done);
                looks = 0;
            }
        }
        None
    }

    fn sleep(&self, done: u64) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        if !is_new(self.state.load(Ordering::SeqCst), done) && !self.ends.load(Ordering::SeqCst) {
            // Wakes without a reason are harmless: the caller looks again.
            thread::park();
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

fn number(state: u64) -> u64 {
    state / NEXT
}

fn is_new(state: u64, done: u64) -> bool {
    state & OPEN > 0 && number(state) != done
}

#[cfg(test)]
mod tests;
