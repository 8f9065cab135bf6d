//! What requests and handlers read of the fleet: the latest snapshot, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use shoal_common::ids::{Generation, Name};
use shoal_common::watch;
use shoal_common::wire::hello::AdapterState;

use super::adapters::LoadKind;
use super::{Replica, Snapshot};
use crate::catalogue::{Catalogue, Readiness, ServedModel};

/// Shortest and longest `Retry-After`: below a second clients do not wait, and an estimate further out says nothing.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Reads the latest snapshot. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FleetView(watch::Receiver<Arc<Snapshot>>);

impl FleetView {
    /// A view of what `published` sends.
    pub fn new(published: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self(published)
    }

    /// The latest snapshot.
    pub fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow())
    }

    /// When there may be room again: what waits at the least loaded replica, at the speed it reports.
    pub fn expected_wait(&self) -> Duration {
        let wait = |replica: &Arc<Replica>| {
            let speed = replica.status.map_or(0, |status| status.tokens_per_second).max(1);
            Duration::from_secs(replica.queued_tokens() / u64::from(speed))
        };
        self.least(wait)
    }

    /// When an adapter that could not be had may be there: as long as a worker takes to fetch one.
    pub fn expected_load(&self) -> Duration {
        self.least(|replica| Duration::from_millis(replica.adapters.predict_ms(LoadKind::Fetch).into()))
    }

    fn least(&self, of: impl Fn(&Arc<Replica>) -> Duration) -> Duration {
        let least = self.now().replicas.iter().map(of).min().unwrap_or_default();
        least.clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }

    /// Where an adapter is: its state on every worker that has told of it, by worker name.
    pub fn residency(&self, generation: Generation) -> Vec<(Name, AdapterState)> {
        let on = |replica: &Arc<Replica>| {
            let state = replica.adapters.get(generation)?;
            Some((replica.worker.clone(), state.clone()))
        };
        self.now().replicas.iter().filter_map(on).collect()
    }

    /// Waits for a snapshot this view has not returned by `changed` yet; `false` once there will be no more.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl Catalogue for FleetView {
    fn models(&self) -> Vec<Arc<ServedModel>> {
        self.now().models.values().cloned().collect()
    }

    fn model(&self, name: &Name) -> Option<Arc<ServedModel>> {
        self.now().models.get(name).cloned()
    }

    fn readiness(&self) -> Readiness {
        let snapshot = self.now();
        if snapshot.models.is_empty() {
            return Readiness::NotReady { reason: "no worker has joined yet" };
        }
        if snapshot.replicas.iter().any(|replica| replica.takes_groups()) {
            Readiness::Ready
        } else {
            Readiness::NotReady { reason: "no worker takes requests now; GET /v1/cluster says why" }
        }
    }
}
