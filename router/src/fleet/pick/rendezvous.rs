//! The order of an adapter's workers: by the highest random weight of (generation, worker name). Every router has the same
//! order from the names alone, and a worker that comes or goes moves only the adapters that it is first for. Pure.

use shoal_common::ids::{Digest, Generation, Name};

use super::fit::Candidate;

/// The weight of a worker for an adapter.
pub fn weight(generation: Generation, worker: &Name) -> u64 {
    let Digest(hash) = Digest::of(&[&generation.0.0[..], worker.as_str().as_bytes()].concat());
    let [a, b, c, d, e, f, g, h, ..] = hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Sorts candidates into the adapter's order, the first one first.
pub fn sort(candidates: &mut [Candidate<'_>], generation: Generation) {
    let weight_of = |candidate: &Candidate<'_>| weight(generation, &candidate.replica.worker);
    // Names are unique in a fleet, so even equal weights have an order.
    candidates
        .sort_by_cached_key(|candidate| (std::cmp::Reverse(weight_of(candidate)), candidate.replica.worker.clone()));
}
