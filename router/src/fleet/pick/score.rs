//! What a group costs on a replica, in queued tokens: those that stand before it, those that would be worked off while its
//! adapter is loaded, less those of its prompt that are computed already. Pure.

use shoal_common::ids::Generation;

use super::fit::Candidate;
use crate::fleet::adapters::{LoadKind, Room};
use crate::fleet::prefix::Overlaps;

/// Tokens a second of a model that no replica has told its speed of.
const UNKNOWN_SPEED: u64 = 500;

/// Queued tokens that are worked off for one that is computed. A queue is told as the most that there can be, prompts and
/// `max_tokens`: most answers end before, and prompt tokens go several at the price of one.
const QUEUED_PER_COMPUTED: u64 = 4;

/// How time becomes queued tokens: by the speed of the model's fastest replica. One for all of them, or a worker that is
/// slow would seem to load in few tokens.
#[derive(Clone, Copy, Debug)]
pub struct Speed(u64);

impl Speed {
    /// The speed of the fastest of `candidates`.
    pub fn of(candidates: &[Candidate<'_>]) -> Self {
        let told = candidates.iter().filter_map(|candidate| candidate.replica.status);
        let fastest = told.map(|status| u64::from(status.tokens_per_second)).max().unwrap_or(0);
        Self(if fastest == 0 { UNKNOWN_SPEED } else { fastest })
    }

    fn tokens_in(self, ms: u32) -> u64 {
        QUEUED_PER_COMPUTED * self.0 * u64::from(ms) / 1_000
    }
}

/// What a group costs on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Whether the adapter has room.
    pub room: Room,
    /// Tokens that would be worked off until the adapter is in memory.
    pub load: u64,
    /// Tokens that stand before the group.
    pub queue: u64,
    /// Tokens of its prompt that are computed already.
    pub overlap: u64,
}

impl Cost {
    /// Of `candidate`.
    pub fn of(candidate: &Candidate<'_>, adapter: Option<Generation>, overlaps: &Overlaps, speed: Speed) -> Self {
        let replica = candidate.replica;
        let ready = adapter.map_or(0, |generation| speed.tokens_in(replica.adapters.ready_in_ms(generation)));
        // What goes for it will be wanted again: the load of that one is this one's doing.
        let load = if candidate.room == Room::Free { ready } else { 2 * ready };
        let (queue, overlap) = (replica.queued_tokens(), overlaps.tokens(replica.seat));
        Self { room: candidate.room, load, queue, overlap }
    }

    /// All in all. Lower is better.
    pub fn total(&self) -> i128 {
        i128::from(self.load) + i128::from(self.queue) - i128::from(self.overlap)
    }

    /// By what costs are compared: a replica on which the adapter would wait for a slot comes after all that have one.
    pub fn key(&self) -> (bool, i128) {
        (self.room == Room::Waits, self.total())
    }

    /// The same without what is computed already.
    pub fn without_overlap(&self) -> Self {
        Self { overlap: 0, ..*self }
    }
}

/// Whether a group had better go to `candidate`, which stands behind those that its adapter is worth, than to the best of
/// them: if the wait there is longer than the load here, and by more than queues differ by chance.
pub fn pays(candidate: &Candidate<'_>, here: &Cost, there: &Cost, speed: Speed) -> bool {
    // A copy that is here already is not free: to use it keeps it in memory.
    let copy = here.load.max(speed.tokens_in(candidate.replica.adapters.predict_ms(LoadKind::Read)));
    let is_long = there.queue > copy.saturating_add(here.queue.saturating_add(here.queue / 2));
    (is_long || there.room == Room::Waits) && here.key() < there.key()
}
