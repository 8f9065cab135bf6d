//! Which replicas may serve a group at all. The one place that asks for access, fingerprint, quarantine and budgets, so
//! that no policy can forget one of them. Pure.

use std::sync::Arc;

use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::Generation;
use shoal_common::wire::hello::{AdapterState, AdapterTier};

use super::{Access, Need, Unroutable};
use crate::catalogue::ServedModel;
use crate::fleet::adapters::Room;
use crate::fleet::{Replica, Snapshot};

/// A replica that may serve the group.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Which.
    pub replica: &'a Arc<Replica>,
    /// Whether it has room in memory for the adapter; [`Room::Free`] without one.
    pub room: Room,
}

/// The replicas that may serve the group, by worker name; at least one.
pub fn candidates<'a>(snapshot: &'a Snapshot, need: &Need<'_>) -> Result<Vec<Candidate<'a>>, Unroutable> {
    if need.access == Access::Denied {
        return Err(Unroutable::Forbidden);
    }
    let serving = serving(snapshot, need);
    let adapter = need.adapter.map(|adapter| adapter.generation);
    if let Some(reason) = adapter.and_then(|generation| refused(&serving, generation)) {
        return Err(Unroutable::AdapterRefused { reason });
    }
    let is_usable = |replica: &&Arc<Replica>| {
        let quarantined = adapter.is_some_and(|generation| quarantine(replica, generation).is_some());
        replica.takes_groups() && !quarantined && !need.excluded.contains(&replica.seat)
    };
    let usable: Vec<_> = serving.into_iter().filter(is_usable).collect();
    if usable.is_empty() {
        return Err(Unroutable::Nobody);
    }
    let bytes = adapter.map_or(0, |generation| bytes_of(snapshot, generation));
    let with_room = |replica| Candidate { replica, room: room(replica, adapter, bytes) };
    let fitting: Vec<_> = usable.into_iter().map(with_room).filter(|candidate| candidate.room != Room::Never).collect();
    if fitting.is_empty() { Err(Unroutable::NoRoom) } else { Ok(fitting) }
}

/// The replicas whose answers come under the fingerprint, whether they take groups or not.
fn serving<'a>(snapshot: &'a Snapshot, need: &Need<'_>) -> Vec<&'a Arc<Replica>> {
    let adapter = need.adapter.map(|adapter| adapter.generation);
    let of_model = snapshot.replicas.iter().filter(|replica| replica.model.card.name == *need.model);
    // Replicas of one model share its entry, so the hash is computed once.
    let mut known: Option<(&Arc<ServedModel>, Fingerprint)> = None;
    let mut serving = Vec::new();
    for replica in of_model {
        let fingerprint = match known {
            Some((model, fingerprint)) if Arc::ptr_eq(model, &replica.model) => fingerprint,
            _ => replica.model.card.fingerprint_with(adapter),
        };
        known = Some((&replica.model, fingerprint));
        if fingerprint == need.fingerprint {
            serving.push(replica);
        }
    }
    serving
}

/// The state of an adapter that a replica has found unusable.
fn quarantine(replica: &Replica, generation: Generation) -> Option<&AdapterState> {
    replica.adapters.get(generation).filter(|state| state.tier == AdapterTier::Quarantined)
}

/// If no replica can use the adapter: what one of them says about it.
fn refused(serving: &[&Arc<Replica>], generation: Generation) -> Option<Option<String>> {
    let said: Option<Vec<_>> = serving.iter().map(|replica| quarantine(replica, generation)).collect();
    let said = said.filter(|said| !said.is_empty())?;
    Some(said.iter().find_map(|state| state.reason.clone()))
}

/// An adapter's bytes in memory, as any worker that has it there has told; 0 while unknown. On disk an adapter may take twice
/// as many.
fn bytes_of(snapshot: &Snapshot, generation: Generation) -> u64 {
    let told = snapshot.replicas.iter().filter_map(|replica| replica.adapters.get(generation));
    let told = told.filter(|state| state.tier == AdapterTier::Memory);
    told.map(|state| state.bytes).max().unwrap_or(0)
}

fn room(replica: &Replica, adapter: Option<Generation>, bytes: u64) -> Room {
    let Some(generation) = adapter else { return Room::Free };
    let in_use = replica.outstanding.adapters_besides(generation);
    replica.adapters.room_for(generation, bytes, &in_use, &replica.capacity)
}
