//! Which workers are nearer to a worker than this router is and have an adapter that it lacks: those of its zone, where that is
//! not the router's. Asked by [`serve`](crate::adapters::serve) for each adapter that a worker is about to fetch. Pure but for
//! [`Nearby`], which looks at the latest snapshot.

use std::cmp::Reverse;

use shoal_common::ids::{Digest, Generation, Name, Zone};
use shoal_common::wire::blob::MAX_NEARER;
use shoal_common::wire::hello::{AdapterTier, Lending};

use super::{FleetView, Replica, Snapshot};
use crate::adapters::serve::Neighbours;

/// The neighbours of one worker.
#[derive(Clone, Debug)]
pub struct Nearby {
    /// Who is where.
    pub view: FleetView,
    /// Whose.
    pub worker: Name,
    /// The router's own zone.
    pub router: Option<Zone>,
}

impl Neighbours for Nearby {
    fn nearer(&self, generation: Generation) -> Vec<Name> {
        nearer(&self.view.now(), &self.worker, self.router.as_ref(), generation)
    }
}

/// The workers that `asker` may fetch `generation` from rather than from a router in zone `router`: at most [`MAX_NEARER`], in an
/// order that is another one for each asker, so that many who ask at once do not all go to the same.
pub fn nearer(snapshot: &Snapshot, asker: &Name, router: Option<&Zone>, generation: Generation) -> Vec<Name> {
    let own = snapshot.replicas.iter().find(|replica| replica.worker == *asker);
    let Some(own) = own.and_then(|replica| replica.locality.as_ref()) else { return Vec::new() };
    if router == Some(&own.zone) {
        return Vec::new();
    }
    let lends = |replica: &Replica| {
        let near = replica.locality.as_ref().is_some_and(|it| it.zone == own.zone && it.lending == Lending::Workers);
        near && replica.worker != *asker && replica.takes_groups() && has_file(replica, generation)
    };
    let mut holders: Vec<&Name> =
        snapshot.replicas.iter().filter(|replica| lends(replica)).map(|replica| &replica.worker).collect();
    // Names are unique in a fleet, so even equal weights have an order.
    holders.sort_by_cached_key(|holder| (Reverse(weight(asker, holder)), (*holder).clone()));
    holders.into_iter().take(MAX_NEARER).cloned().collect()
}

/// As far as it has told. What is in memory came from a file, which is nearly always still there.
fn has_file(replica: &Replica, generation: Generation) -> bool {
    replica.adapters.get(generation).is_some_and(|state| matches!(state.tier, AdapterTier::Memory | AdapterTier::Disk))
}

/// No name has a space.
fn weight(asker: &Name, holder: &Name) -> [u8; 32] {
    Digest::of(format!("{asker} {holder}").as_bytes()).0
}
