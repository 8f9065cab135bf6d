//! Who serves what, now. The [`FleetActor`] owns the [`roster`] and publishes an immutable [`Snapshot`] after every change;
//! requests read the snapshot and never wait on a mailbox. [`pick`] chooses a replica from it.

pub mod pick;
pub mod roster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr, RpcReplyPort};
use shoal_common::ids::Name;
use shoal_common::wire::hello::{Refusal, Status};
use tokio::sync::watch;

use crate::catalogue::{Catalogue, Readiness, ServedModel};
pub use roster::{Offer, Replica, Roster, Seat};

/// Longest `Retry-After`: an estimate further out says nothing.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Everything a request needs to know of the fleet, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Live replicas, by worker name.
    pub replicas: Vec<Arc<Replica>>,
    /// Every model seen since the router started, served now or not.
    pub models: BTreeMap<Name, Arc<ServedModel>>,
}

/// Orders to the [`FleetActor`]. Sent by links only, a few a second each.
#[derive(Debug)]
pub enum FleetMessage {
    /// A worker asks to serve.
    Join(Box<Offer>, RpcReplyPort<Result<Membership, Refusal>>),
    /// A worker told its load.
    Report {
        /// Whose.
        worker: Name,
        /// Its place.
        seat: Seat,
        /// The load.
        status: Status,
    },
    /// A worker's connection is gone.
    Leave {
        /// Whose.
        worker: Name,
        /// Its place.
        seat: Seat,
    },
}

/// A worker's place in the fleet. Dropping it leaves, so that no way in which a link ends keeps a worker that is gone.
#[derive(Debug)]
pub struct Membership {
    fleet: ActorRef<FleetMessage>,
    worker: Name,
    seat: Seat,
}

impl Membership {
    /// Tells the worker's load. Fails only when the fleet is gone.
    pub fn report(&self, status: Status) -> Result<(), MessagingErr<FleetMessage>> {
        self.fleet.cast(FleetMessage::Report { worker: self.worker.clone(), seat: self.seat, status })
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // Fails only when the fleet is gone, and then there is nothing to leave.
        let _ = self.fleet.cast(FleetMessage::Leave { worker: self.worker.clone(), seat: self.seat });
    }
}

/// Owns the roster; the only writer of the snapshot.
#[derive(Debug)]
pub struct FleetActor;

/// Roster and the place it is published.
#[derive(Debug)]
pub struct FleetState {
    roster: Roster,
    published: watch::Sender<Arc<Snapshot>>,
}

impl FleetState {
    fn publish(&self) {
        let snapshot = self.roster.snapshot();
        metrics::gauge!("shoal_replicas").set(snapshot.replicas.len() as f64);
        self.published.send_replace(Arc::new(snapshot));
    }
}

/// A worker's load as `/metrics` shows it: workers have no HTTP of their own. A worker that left has none.
fn tell_load(worker: &Name, status: Option<&Status>) {
    let tell = |name: &'static str, value: fn(&Status) -> f64| {
        metrics::gauge!(name, "worker" => worker.to_string()).set(status.map_or(0.0, value));
    };
    tell("shoal_worker_sequences_running", |status| status.running.into());
    tell("shoal_worker_groups_waiting", |status| status.waiting.into());
    tell("shoal_worker_tokens_queued", |status| status.queued_tokens as f64);
    tell("shoal_worker_kv_tokens_used", |status| status.kv_used as f64);
    tell("shoal_worker_prefix_tokens_looked_up", |status| status.looked_up_tokens as f64);
    tell("shoal_worker_prefix_tokens_cached", |status| status.cached_tokens as f64);
    tell("shoal_worker_sequences_preempted", |status| status.preemptions as f64);
}

impl Actor for FleetActor {
    type Msg = FleetMessage;
    type State = FleetState;
    type Arguments = watch::Sender<Arc<Snapshot>>;

    async fn pre_start(
        &self,
        _myself: ActorRef<FleetMessage>,
        published: Self::Arguments,
    ) -> Result<FleetState, ActorProcessingErr> {
        Ok(FleetState { roster: Roster::default(), published })
    }

    async fn handle(
        &self,
        myself: ActorRef<FleetMessage>,
        message: FleetMessage,
        state: &mut FleetState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            FleetMessage::Join(offer, reply) => {
                let worker = offer.hello.worker.clone();
                let seat = state.roster.join(*offer, Instant::now());
                state.publish();
                let membership = seat.map(|seat| Membership { fleet: myself, worker, seat });
                // A link that died meanwhile drops the membership, and so leaves.
                let _ = reply.send(membership);
            }
            FleetMessage::Report { worker, seat, status } => {
                state.roster.report(&worker, seat, status, Instant::now());
                tell_load(&worker, Some(&status));
                state.publish();
            }
            FleetMessage::Leave { worker, seat } => {
                state.roster.leave(&worker, seat);
                if !state.roster.has(&worker) {
                    tell_load(&worker, None);
                }
                state.publish();
            }
        }
        Ok(())
    }
}

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
        let least = self.now().replicas.iter().map(wait).min().unwrap_or_default();
        least.clamp(Duration::from_secs(1), LONGEST_RETRY_AFTER)
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
            Readiness::NotReady { reason: "every worker is gone or draining" }
        }
    }
}

#[cfg(test)]
mod tests;
