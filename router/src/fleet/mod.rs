//! Who serves what, now. The [`FleetActor`] owns the [`roster`] and publishes an immutable [`Snapshot`] after every change;
//! requests read the snapshot and never wait on a mailbox.
//!
//! 1. [`roster`]: the members, [`challenge`]: who may take the place of one; [`replica`] and [`adapters`]: what is known of
//!    one; [`pulse`]: whether its engine moves; [`orders`]: what it is told.
//! 2. [`traffic`]: what the router remembers of its own requests: [`demand`] by adapter, [`prefix`]es by replica.
//! 3. [`pick`] chooses a replica for a group from a snapshot and that memory; [`nearer`] those that another one fetches from.

pub mod adapters;
pub mod challenge;
pub mod demand;
mod gauges;
pub mod nearer;
pub mod orders;
pub mod pick;
pub mod prefix;
pub mod pulse;
pub mod replica;
pub mod roster;
#[cfg(test)]
mod sim;
pub mod traffic;
pub mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr, RpcReplyPort};
use shoal_common::ambient;
use shoal_common::ids::Name;
use shoal_common::watch;
use shoal_common::wire::hello::{AdapterOrder, AdapterState, Refusal, StageReport, Status};

use crate::catalogue::ServedModel;
use orders::Orders;
use pulse::Health;
pub use replica::{Line, Replica, Seat};
pub use roster::{Offer, Roster};
pub use view::FleetView;

/// Everything a request needs to know of the fleet, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Live replicas, by worker name.
    pub replicas: Vec<Arc<Replica>>,
    /// Every model seen since the router started, served now or not.
    pub models: BTreeMap<Name, Arc<ServedModel>>,
}

/// Orders to the [`FleetActor`]. Sent by links, a few a second each, and by whoever changes the adapters of the cluster.
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
    /// A worker told what became of an adapter.
    Adapter {
        /// Whose.
        worker: Name,
        /// Its place.
        seat: Seat,
        /// The adapter's state there.
        state: Box<AdapterState>,
        /// Answered when it is published, so that each link has one such message in the mailbox at most.
        noted: RpcReplyPort<()>,
    },
    /// A head told of its stages.
    Stages {
        /// Whose.
        worker: Name,
        /// Its place.
        seat: Seat,
        /// All of them, the head the first.
        stages: Vec<StageReport>,
        /// Answered when it is published, so that each link has one such message in the mailbox at most.
        noted: RpcReplyPort<()>,
    },
    /// Workers shall do something with an adapter.
    Order {
        /// Workers of this model only.
        model: Option<Name>,
        /// What they shall do.
        order: AdapterOrder,
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
    orders: Arc<Orders>,
}

impl Membership {
    /// Orders for the worker: the link writes them out.
    pub fn orders(&self) -> Arc<Orders> {
        Arc::clone(&self.orders)
    }

    /// Tells what became of an adapter on the worker. Fails only when the fleet is gone.
    pub fn adapter(&self, state: AdapterState, noted: RpcReplyPort<()>) -> Result<(), MessagingErr<FleetMessage>> {
        let (worker, state) = (self.worker.clone(), Box::new(state));
        self.fleet.cast(FleetMessage::Adapter { worker, seat: self.seat, state, noted })
    }

    /// Tells of the worker's stages. Fails only when the fleet is gone.
    pub fn stages(&self, stages: Vec<StageReport>, noted: RpcReplyPort<()>) -> Result<(), MessagingErr<FleetMessage>> {
        let worker = self.worker.clone();
        self.fleet.cast(FleetMessage::Stages { worker, seat: self.seat, stages, noted })
    }

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
    fn join(&mut self, offer: Offer, fleet: ActorRef<FleetMessage>) -> Result<Membership, Refusal> {
        let worker = offer.hello.worker.clone();
        let seat = self.roster.join(offer, ambient::now());
        self.publish();
        let orders = self.roster.orders(&worker).unwrap_or_default();
        Ok(Membership { fleet, worker, seat: seat?, orders })
    }

    fn publish(&self) {
        let snapshot = self.roster.snapshot();
        metrics::gauge!("shoal_replicas").set(snapshot.replicas.len() as f64);
        self.published.send_replace(Arc::new(snapshot));
    }
}

/// An engine got stuck, or moves again.
fn tell_health(health: Health, replica: &Replica) {
    let worker = &replica.worker;
    match health {
        Health::Stuck => {
            metrics::counter!("shoal_worker_stalls_total", "worker" => worker.to_string()).increment(1);
            let silence = ambient::since(replica.pulse.moved());
            let (status, prompt_tokens) = (&replica.status, replica.outstanding.prompts());
            tracing::warn!(
                %worker, ?silence, prompt_tokens, ?status,
                "a worker's engine stands still: its groups go on elsewhere, if there is another that could take them"
            );
        }
        Health::Moving => tracing::info!(%worker, "a worker's engine moves again"),
    }
}

impl Actor for FleetActor {
    type Msg = FleetMessage;
    type State = FleetState;
    type Arguments = (watch::Sender<Arc<Snapshot>>, Duration);

    async fn pre_start(
        &self,
        _myself: ActorRef<FleetMessage>,
        (published, patience): Self::Arguments,
    ) -> Result<FleetState, ActorProcessingErr> {
        Ok(FleetState { roster: Roster::new(patience), published })
    }

    async fn handle(
        &self,
        myself: ActorRef<FleetMessage>,
        message: FleetMessage,
        state: &mut FleetState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            FleetMessage::Join(offer, reply) => {
                // A link that died meanwhile drops the membership, and so leaves.
                let _ = reply.send(state.join(*offer, myself));
            }
            FleetMessage::Report { worker, seat, status } => {
                let news = state.roster.report(&worker, seat, status, ambient::now());
                if let (Some(health), Some(replica)) = (news, state.roster.member(&worker)) {
                    tell_health(health, replica);
                }
                gauges::tell_load(&worker, Some(&status));
                state.publish();
            }
            FleetMessage::Adapter { worker, seat, state: adapter, noted } => {
                state.roster.adapter(&worker, seat, *adapter);
                state.publish();
                // Nobody waits where the link died meanwhile.
                let _ = noted.send(());
            }
            FleetMessage::Stages { worker, seat, stages, noted } => {
                gauges::tell_stages(&worker, &stages);
                state.roster.stages(&worker, seat, stages.into());
                state.publish();
                let _ = noted.send(());
            }
            FleetMessage::Order { model, order } => state.roster.order(model.as_ref(), order),
            FleetMessage::Leave { worker, seat } => {
                let stages = state.roster.leave(&worker, seat);
                if state.roster.member(&worker).is_none() {
                    gauges::tell_load(&worker, None);
                    gauges::stages_gone(&worker, &stages);
                }
                state.publish();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
