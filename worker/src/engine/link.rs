//! What a group's stream and the engine share without a lock: whether the router still wants the group, which branches it
//! has stopped, and how much is said but not yet sent. Written by the session and the writer, read by the engine between
//! steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use shoal_common::ids::BranchIndex;
use shoal_common::wire::message::MAX_BRANCHES;

use super::Command;

/// Unsent frames of a group with which it is no longer scheduled.
pub const UNSENT_FRAMES: usize = 64;
/// Unsent bytes of a group with which it is no longer scheduled.
pub const UNSENT_BYTES: usize = 64 << 10;
const _: () = assert!(MAX_BRANCHES <= u64::BITS as usize, "a stopped branch is one bit");

/// Ends the engine's sleep. At most one wake-up is queued.
#[derive(Debug)]
pub(super) struct Waker {
    commands: SyncSender<Command>,
    queued: Arc<AtomicBool>,
}

impl Waker {
    pub(super) fn new(commands: SyncSender<Command>) -> Self {
        Self { commands, queued: Arc::new(AtomicBool::new(false)) }
    }

    /// Set while a wake-up is queued; cleared by the engine before it reads what it was woken for. The engine holds this
    /// and not the waker, so that its inbox closes when nobody else is left.
    pub(super) fn queued(&self) -> Arc<AtomicBool> {
        self.queued.clone()
    }

    pub(super) fn wake(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) && self.commands.try_send(Command::Wake).is_err() {
            // Full: the engine has commands to read, so it is not asleep.
            self.queued.store(false, Ordering::Release);
        }
    }
}

/// Shared state of one group. Bound: at most [`UNSENT_FRAMES`] frames or [`UNSENT_BYTES`] bytes wait for its stream, and
/// the frames of the steps that were under way when they exceeded it.
#[derive(Debug)]
pub struct GroupLink {
    cancelled: AtomicBool,
    /// One bit for each of [`MAX_BRANCHES`].
    stopped: AtomicU64,
    unsent_frames: AtomicUsize,
    unsent_bytes: AtomicUsize,
    waker: Arc<Waker>,
}

impl GroupLink {
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            cancelled: AtomicBool::new(false),
            stopped: AtomicU64::new(0),
            unsent_frames: AtomicUsize::new(0),
            unsent_bytes: AtomicUsize::new(0),
            waker,
        }
    }

    /// Nobody wants the group any more. More than once, and after its end, is the same as once.
    pub fn cancel(&self) {
        if !self.cancelled.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// The branch is to end. One that the group does not have is passed over.
    pub fn stop_branch(&self, branch: BranchIndex) {
        if branch.index() < MAX_BRANCHES {
            self.stopped.fetch_or(1 << branch.index(), Ordering::AcqRel);
            self.waker.wake();
        }
    }

    /// A frame of `bytes` was handed to the transport, or dropped with its stream.
    pub fn sent(&self, bytes: usize) {
        let was_clogged = self.is_clogged();
        self.unsent_frames.fetch_sub(1, Ordering::AcqRel);
        self.unsent_bytes.fetch_sub(bytes, Ordering::AcqRel);
        if was_clogged && !self.is_clogged() {
            self.waker.wake();
        }
    }

    /// Bytes said but not sent.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent_bytes.load(Ordering::Acquire)
    }

    /// A frame of `bytes` is on its way to the writer.
    pub(crate) fn said(&self, bytes: usize) {
        self.unsent_frames.fetch_add(1, Ordering::AcqRel);
        self.unsent_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn is_clogged(&self) -> bool {
        self.unsent_frames.load(Ordering::Acquire) >= UNSENT_FRAMES || self.unsent_bytes() >= UNSENT_BYTES
    }

    /// Whether nobody wants the group any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// The branches stopped since the last call.
    pub(super) fn take_stopped(&self) -> impl Iterator<Item = BranchIndex> + use<> {
        let bits = self.stopped.swap(0, Ordering::AcqRel);
        (0..MAX_BRANCHES as u16).filter(move |at| bits >> at & 1 == 1).map(BranchIndex)
    }
}
