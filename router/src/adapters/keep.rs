//! What has to be done about adapters by the clock, and when a model changes: old generations are swept, adapters whose model
//! has new widths are checked again. One task, started by [`crate::bind`].

use std::time::Duration;

use shoal_common::adapter::Geometry;
use shoal_common::ambient;
use shoal_common::ids::Name;

use super::registry::Registry;
use crate::fleet::FleetView;

/// Between two sweeps.
const SWEEP: Duration = Duration::from_secs(10);

/// Keeps until its task is dropped.
pub async fn keep(registry: Registry, view: FleetView) {
    let mut models = Models::new(view);
    let mut sweeps = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            biased;
            _ = sweeps.tick() => registry.sweep(ambient::now()).await,
            () = models.changed() => registry.recheck().await,
        }
        for (state, count) in registry.counts() {
            metrics::gauge!("shoal_adapters", "state" => state.as_str()).set(count as f64);
        }
    }
}

/// The models that workers have told of, and their widths.
#[derive(Debug)]
pub(super) struct Models {
    view: FleetView,
    seen: Vec<(Name, Geometry)>,
}

impl Models {
    pub(super) fn new(view: FleetView) -> Self {
        Self { view, seen: Vec::new() }
    }

    /// Resolves when they are others than when it last did; at first, when there are any. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        loop {
            let snapshot = self.view.now();
            let models = snapshot.models.iter().map(|(name, model)| (name.clone(), model.card.geometry));
            let models: Vec<_> = models.collect();
            if models != self.seen {
                self.seen = models;
                return;
            }
            wait(&mut self.view).await;
        }
    }
}

/// Waits for a snapshot; for ever once there will be no more.
async fn wait(view: &mut FleetView) {
    if !view.changed().await {
        std::future::pending().await
    }
}
