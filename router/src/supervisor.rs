//! The router's root actor: accepts workers' connections, keeps a link per worker and restarts nothing it does not have to.
//! A link that fails loses its worker only; the worker dials again. The fleet failing ends the router: its roster is the
//! one state that cannot be rebuilt while links live.

use ractor::actor::messages::BoxedState;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_common::ambient;
use shoal_common::config::Timers;
use shoal_common::ids::{Name, Zone};
use shoal_common::quic::{self, Acceptor, Admission};
use shoal_common::telemetry::Chain;
use shoal_common::watch;
use shoal_common::wire::hello::AdapterOrder;

use crate::adapters::Registry;
use crate::fleet::{FleetActor, FleetMessage, FleetView, Snapshot};
use crate::link::{self, Caller, LinkActor, LinkContext, LinkState};
use crate::operations::Operations;
use crate::operations::incidents::{Incident, Incidents};

/// Orders to the [`RouterActor`].
#[derive(Debug)]
pub enum RouterMessage {
    /// A worker's connection passed the TLS handshake.
    Accepted(quinn::Connection),
    /// Workers of a model, or all, shall do something with an adapter. Workers that join later are told of pins too.
    Order {
        /// Workers of this model only.
        model: Option<Name>,
        /// What they shall do.
        order: AdapterOrder,
    },
}

/// What the root starts with.
#[derive(Debug)]
pub struct RouterArguments {
    /// Where workers dial in.
    pub endpoint: quinn::Endpoint,
    /// Timers of the links.
    pub timers: Timers,
    /// Where the fleet publishes.
    pub published: watch::Sender<std::sync::Arc<Snapshot>>,
    /// Where the operator looks, and orders.
    pub operations: Operations,
    /// What workers fetch.
    pub adapters: Registry,
    /// Where the router is.
    pub zone: Option<Zone>,
}

/// The root.
#[derive(Debug)]
pub struct RouterActor;

/// What the root holds.
#[derive(Debug)]
pub struct RouterState {
    fleet: ActorRef<FleetMessage>,
    context: LinkContext,
    incidents: Incidents,
}

impl Actor for RouterActor {
    type Msg = RouterMessage;
    type State = RouterState;
    type Arguments = RouterArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<RouterMessage>,
        arguments: RouterArguments,
    ) -> Result<RouterState, ActorProcessingErr> {
        let RouterArguments { endpoint, timers, published, operations, adapters, zone } = arguments;
        let Operations { router, drains, incidents, .. } = operations;
        let view = FleetView::new(published.subscribe());
        let (fleet, _) = Actor::spawn_linked(None, FleetActor, (published, timers.stall), myself.get_cell()).await?;
        let context = LinkContext { fleet: fleet.clone(), view, router, drains, adapters, zone };
        tokio::spawn(accept(Acceptor::new(endpoint, timers), incidents.clone(), myself));
        Ok(RouterState { fleet, context, incidents })
    }

    async fn handle(
        &self,
        myself: ActorRef<RouterMessage>,
        message: RouterMessage,
        state: &mut RouterState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // Greeting waits for the worker, so it must not hold up this mailbox.
            RouterMessage::Accepted(connection) => {
                tokio::spawn(welcome(connection, state.context.clone(), state.incidents.clone(), myself));
            }
            RouterMessage::Order { model, order } => state.fleet.cast(FleetMessage::Order { model, order })?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RouterMessage>,
        event: SupervisionEvent,
        state: &mut RouterState,
    ) -> Result<(), ActorProcessingErr> {
        let (SupervisionEvent::ActorTerminated(who, ..) | SupervisionEvent::ActorFailed(who, _)) = &event else {
            return Ok(());
        };
        if who.get_id() == state.fleet.get_id() {
            myself.stop(Some("the fleet failed".to_owned()));
            return Ok(());
        }
        match event {
            SupervisionEvent::ActorFailed(_, error) => tracing::error!(%error, "a link failed"),
            SupervisionEvent::ActorTerminated(_, Some(link), reason) => note_lost(link, reason, &state.incidents),
            _ => {}
        }
        Ok(())
    }
}

fn note_lost(mut link: BoxedState, reason: Option<String>, incidents: &Incidents) {
    if let Ok(link) = link.take::<LinkState>() {
        let (worker, closed) = link.ended();
        incidents.note(Incident::lost(worker, closed, reason, ambient::now()));
    }
}

/// Accepts connections until the endpoint closes. Bounded by the endpoint's own limit on handshakes in progress.
async fn accept(mut acceptor: Acceptor, incidents: Incidents, root: ActorRef<RouterMessage>) {
    while let Some(admission) = acceptor.next_admission().await {
        match admission {
            Admission::Worker(connection) => {
                if root.cast(RouterMessage::Accepted(connection)).is_err() {
                    return;
                }
            }
            Admission::Refused { peer, error } => incidents.note(Incident::unproven(peer, &error, ambient::now())),
        }
    }
}

async fn welcome(
    connection: quinn::Connection,
    context: LinkContext,
    incidents: Incidents,
    root: ActorRef<RouterMessage>,
) {
    let (worker, remote) = (quic::peer_worker(&connection).ok(), connection.remote_address());
    let greeted = match link::greet(connection, &context).await {
        Ok(Caller::Worker(greeted)) => *greeted,
        Ok(Caller::Witness) => return,
        Err(error) => {
            metrics::counter!("shoal_workers_refused_total").increment(1);
            let name = worker.as_ref().map(tracing::field::display);
            tracing::warn!(worker = name, %remote, error = %Chain(&error), "a worker's connection was not taken");
            incidents.note(Incident::refused((worker, remote), &error, ambient::now()));
            return;
        }
    };
    if let Err(error) = Actor::spawn_linked(None, LinkActor, greeted, root.get_cell()).await {
        tracing::error!(%remote, %error, "a link could not start");
    }
}
