//! What a router remembers of its own traffic, for routing: the demand for each adapter and the prompts that each replica
//! has seen. One per router, behind one lock that is held for a fraction of a millisecond when a group starts or ends and
//! never on the way of a token. Pure: time is an argument.

use std::sync::Arc;
use std::time::Instant;

use shoal_common::block_hash::{BLOCK_TOKENS, BlockHash};
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Generation, Name};
use shoal_common::wire::message::Submit;

use super::demand::{Demand, Growth};
use super::pick::AdapterNeed;
use super::prefix::{LOOKED_AT, Overlaps, Prefixes};
use super::{Replica, Snapshot};

/// An adapter is worth another worker when it takes more than one in this many of a worker's sequence slots: the rest is for
/// the others, and a batch that is full is slow for all.
const SHARE_OF_SLOTS: u32 = 4;

/// What routing has to know of a group; made once and kept through its replays.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The model's name.
    pub model: Name,
    /// Answers must come under this fingerprint.
    pub fingerprint: Fingerprint,
    /// Absent: the base model.
    pub adapter: Option<Generation>,
    /// Sequences that it runs as; once it has entered, at most what a worker is worth.
    pub sequences: u32,
    /// The full blocks of its prompt, the first [`LOOKED_AT`] of them.
    pub blocks: Vec<BlockHash>,
    /// Whether it can use cached blocks.
    pub reuse: Reuse,
}

/// Whether a group can use what is cached of its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It can.
    Cached,
    /// It cannot: all of its prompt is scored.
    Nothing,
}

impl Profile {
    /// Of a submission to `model`. Hashes the prompt: 10 ns a token.
    pub fn of(submit: &Submit, model: &Name) -> Self {
        let begin = BlockHash::begin(submit.cache_salt, &submit.fingerprint);
        let full = submit.prompt.0.chunks_exact(BLOCK_TOKENS).take(LOOKED_AT);
        let blocks = full.scan(begin, |before, block| {
            *before = before.then(block);
            Some(*before)
        });
        Self {
            model: model.clone(),
            fingerprint: submit.fingerprint,
            adapter: submit.adapter,
            sequences: u32::try_from(submit.branches.len()).unwrap_or(u32::MAX).max(1),
            blocks: blocks.collect(),
            reuse: if submit.score_prompt.is_some() { Reuse::Nothing } else { Reuse::Cached },
        }
    }
}

/// Demand and prompts.
#[derive(Debug, Default)]
pub struct Traffic {
    demand: Demand,
    prefixes: Prefixes,
}

impl Traffic {
    /// A group comes; says whether its adapter has become worth more workers. Its [`Traffic::leave`] must follow.
    pub fn enter(&mut self, profile: &mut Profile, snapshot: &Snapshot, now: Instant) -> Growth {
        let Some(generation) = profile.adapter else { return Growth::Steady };
        let share = share(profile, snapshot);
        // A group goes to one worker whole: it can be worth one at most.
        profile.sequences = profile.sequences.min(share);
        self.demand.begin(generation, profile.sequences, share, now).1
    }

    /// A group that came is gone.
    pub fn leave(&mut self, profile: &Profile, now: Instant) {
        if let Some(generation) = profile.adapter {
            self.demand.end(generation, profile.sequences, now);
        }
    }

    /// What the group's adapter is worth now.
    pub fn adapter(&mut self, profile: &Profile, snapshot: &Snapshot, now: Instant) -> Option<AdapterNeed> {
        let generation = profile.adapter?;
        let width = self.demand.width(generation, share(profile, snapshot), now);
        Some(AdapterNeed { generation, width })
    }

    /// What replicas have of the group's prompt.
    pub fn overlaps(&self, profile: &Profile, replicas: &[Arc<Replica>]) -> Overlaps {
        match profile.reuse {
            Reuse::Cached => self.prefixes.overlaps(&profile.blocks, replicas),
            Reuse::Nothing => Overlaps::default(),
        }
    }

    /// The group was taken by `replica`.
    pub fn sent(&mut self, profile: &Profile, replica: &Replica) {
        self.prefixes.sent(&profile.blocks, replica);
    }
}

/// Sequences of one adapter that a worker of the model is worth: by the smallest of them.
fn share(profile: &Profile, snapshot: &Snapshot) -> u32 {
    let of_model = snapshot.replicas.iter().filter(|replica| replica.model.card.name == profile.model);
    let slots = of_model.map(|replica| replica.capacity.slots).min().unwrap_or(1);
    slots.div_ceil(SHARE_OF_SLOTS).max(1)
}
