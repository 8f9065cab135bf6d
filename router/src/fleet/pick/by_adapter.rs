//! The policy of a router: an adapter's groups go to as many workers as its traffic is worth, the first in its order, and
//! among these to where they cost the least; beyond, only where that pays. Pure.

use std::sync::Arc;

use shoal_common::ids::Generation;
use shoal_common::wire::hello::AdapterTier;

use super::fit::{self, Candidate};
use super::score::{self, Cost, Speed};
use super::{AdapterNeed, Choice, Need, Pick, Unroutable, Why, rendezvous};
use crate::fleet::adapters::Room;
use crate::fleet::{Replica, Snapshot};

/// By adapter, prefix and queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByAdapter;

impl Pick for ByAdapter {
    fn pick(&self, snapshot: &Snapshot, need: &Need<'_>) -> Result<Choice, Unroutable> {
        let mut candidates = fit::candidates(snapshot, need)?;
        let (chosen, why) = if let [only] = &candidates[..] {
            (*only, Why::OnlyOne)
        } else if let Some(adapter) = need.adapter {
            rendezvous::sort(&mut candidates, adapter.generation);
            among(&candidates, adapter, need)
        } else {
            let speed = Speed::of(&candidates);
            cheapest(&candidates, |candidate| Cost::of(candidate, None, need.overlaps, speed), Why::LeastQueued)
        };
        Ok(Choice { replica: Arc::clone(chosen.replica), why })
    }

    fn ahead(&self, snapshot: &Snapshot, need: &Need<'_>) -> Vec<Arc<Replica>> {
        let (Some(adapter), Ok(mut candidates)) = (need.adapter, fit::candidates(snapshot, need)) else {
            return Vec::new();
        };
        rendezvous::sort(&mut candidates, adapter.generation);
        candidates.truncate(adapter.width.0);
        let lacks = |candidate: &&Candidate<'_>| {
            let tier = candidate.replica.adapters.get(adapter.generation).map(|state| state.tier);
            let is_coming = matches!(tier, Some(AdapterTier::Memory | AdapterTier::Loading));
            !is_coming && candidate.room <= Room::Evicts
        };
        candidates.iter().filter(lacks).map(|candidate| Arc::clone(candidate.replica)).collect()
    }
}

/// The choice for an adapter. `candidates` are in its order, at least two.
fn among<'a>(candidates: &[Candidate<'a>], adapter: AdapterNeed, need: &Need<'_>) -> (Candidate<'a>, Why) {
    let speed = Speed::of(candidates);
    let cost = |candidate: &Candidate<'_>| Cost::of(candidate, Some(adapter.generation), need.overlaps, speed);
    let (worth, beyond) = candidates.split_at(adapter.width.0.clamp(1, candidates.len()));
    let (mut best, mut why) = cheapest(worth, cost, Why::Resident);
    if why == Why::Resident {
        why = tier(best.replica, adapter.generation);
    }
    let at_best = cost(&best);
    // The next in the order that is worth it, not the cheapest of all: spills of one adapter should meet each other.
    let pays = |candidate: &&Candidate<'_>| score::pays(candidate, &cost(candidate), &at_best, speed);
    if let Some(spill) = beyond.iter().find(pays) {
        (best, why) = (*spill, Why::Spill);
    }
    (best, why)
}

/// The cheapest candidate, the first of equals; `why`, unless it is there for its prefix alone.
fn cheapest<'a>(candidates: &[Candidate<'a>], cost: impl Fn(&Candidate<'_>) -> Cost, why: Why) -> (Candidate<'a>, Why) {
    let least = |key: &dyn Fn(Cost) -> Cost| {
        let of = |index: &usize| key(cost(&candidates[*index])).key();
        (0..candidates.len()).min_by_key(of).expect("there is at least one candidate")
    };
    let chosen = least(&|cost| cost);
    let without_prefix = least(&|cost| cost.without_overlap());
    (candidates[chosen], if chosen == without_prefix { why } else { Why::Prefix })
}

/// Where the chosen replica has the adapter.
fn tier(replica: &Replica, generation: Generation) -> Why {
    match replica.adapters.get(generation).map(|state| state.tier) {
        Some(AdapterTier::Memory) => Why::Resident,
        Some(AdapterTier::Loading) => Why::Loading,
        Some(AdapterTier::Disk) => Why::Disk,
        Some(AdapterTier::Quarantined | AdapterTier::Gone) | None => Why::Fetch,
    }
}
