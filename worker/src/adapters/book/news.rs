//! What a router has yet to be told of the adapters here. Each connection keeps what it has told, so that changes which come
//! faster than they can be told are told as one, and what came and went in between is not told at all.

use std::collections::BTreeMap;
use std::time::Instant;

use shoal_common::ids::Generation;
use shoal_common::wire::hello::{AdapterState, AdapterTier};

use super::Book;
use super::blame::Verdict;

/// What one router was told. Bound: what was here when it was last told, however long it does not listen.
#[derive(Debug, Default)]
pub(in crate::adapters) struct Told(BTreeMap<Generation, u64>);

impl Book {
    /// What has changed since `told`, which it brings up to date.
    pub(in crate::adapters) fn news(&self, told: &mut Told, now: Instant) -> Vec<AdapterState> {
        let here = |generation: &Generation| self.is_here(*generation);
        let mut news: Vec<_> = told.0.keys().filter(|told| !here(told)).map(|left| gone(*left)).collect();
        told.0.retain(|generation, _| here(generation));
        let mut tell = |generation: Generation, change: u64, state: &dyn Fn() -> AdapterState| {
            if told.0.insert(generation, change) != Some(change) {
                news.push(state());
            }
        };
        for (&generation, verdict) in self.blame.verdicts() {
            tell(generation, verdict.change, &|| quarantined(generation, verdict));
        }
        for (&generation, entry) in self.entries.iter().filter(|(generation, _)| here(generation)) {
            tell(generation, entry.change, &|| entry.state(generation, now));
        }
        news
    }

    fn is_here(&self, generation: Generation) -> bool {
        let entry = self.entries.get(&generation);
        entry.is_some_and(|entry| entry.tier() != AdapterTier::Gone) || self.blame.verdict(generation).is_some()
    }
}

fn gone(generation: Generation) -> AdapterState {
    AdapterState {
        generation,
        tier: AdapterTier::Gone,
        bytes: 0,
        rank: 0,
        load_ms: None,
        idle_ms: None,
        pinned: false,
        reason: None,
    }
}

fn quarantined(generation: Generation, verdict: &Verdict) -> AdapterState {
    let reason = Some(verdict.reason.as_str().to_owned());
    AdapterState { tier: AdapterTier::Quarantined, reason, ..gone(generation) }
}
