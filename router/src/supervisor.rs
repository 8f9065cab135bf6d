//! The router's root actor: accepts workers' connections, keeps a link per worker and restarts nothing it does not have to.
//! A link that fails loses its worker only; the worker dials again. The fleet failing ends the router: its roster is the
//! one state that cannot be rebuilt while links live.

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_common::config::Timers;
use shoal_common::ids::Incarnation;
use shoal_common::quic::Acceptor;
use shoal_common::telemetry::Chain;
use tokio::sync::watch;

use crate::adapters::Registry;
use crate::fleet::{FleetActor, FleetMessage, FleetView, Snapshot};
use crate::link::{self, LinkActor, LinkContext};

/// Orders to the [`RouterActor`].
#[derive(Debug)]
pub enum RouterMessage {
    /// A worker's connection passed the TLS handshake.
    Accepted(quinn::Connection),
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
    /// What workers fetch.
    pub adapters: Registry,
}

/// The root.
#[derive(Debug)]
pub struct RouterActor;

/// What the root holds.
#[derive(Debug)]
pub struct RouterState {
    fleet: ActorRef<FleetMessage>,
    context: LinkContext,
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
        let view = FleetView::new(arguments.published.subscribe());
        let (fleet, _) = Actor::spawn_linked(None, FleetActor, arguments.published, myself.get_cell()).await?;
        let (router, adapters) = (Incarnation::draw(), arguments.adapters);
        let context = LinkContext { fleet: fleet.clone(), view, router, adapters };
        tokio::spawn(accept(arguments.endpoint, arguments.timers, myself));
        Ok(RouterState { fleet, context })
    }

    async fn handle(
        &self,
        myself: ActorRef<RouterMessage>,
        message: RouterMessage,
        state: &mut RouterState,
    ) -> Result<(), ActorProcessingErr> {
        let RouterMessage::Accepted(connection) = message;
        // Greeting waits for the worker, so it must not hold up this mailbox.
        tokio::spawn(welcome(connection, state.context.clone(), myself));
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
        } else if let SupervisionEvent::ActorFailed(_, error) = &event {
            tracing::error!(%error, "a link failed");
        }
        Ok(())
    }
}

/// Accepts connections until the endpoint closes. Bounded by the endpoint's own limit on handshakes in progress.
async fn accept(endpoint: quinn::Endpoint, timers: Timers, root: ActorRef<RouterMessage>) {
    let mut acceptor = Acceptor::new(endpoint, timers);
    while let Some(connection) = acceptor.next().await {
        if root.cast(RouterMessage::Accepted(connection)).is_err() {
            return;
        }
    }
}

async fn welcome(connection: quinn::Connection, context: LinkContext, root: ActorRef<RouterMessage>) {
    let remote = connection.remote_address();
    let greeted = match link::greet(connection, &context).await {
        Ok(greeted) => greeted,
        Err(error) => {
            metrics::counter!("shoal_workers_refused_total").increment(1);
            tracing::warn!(%remote, error = %Chain(&error), "a worker's connection was not taken");
            return;
        }
    };
    if let Err(error) = Actor::spawn_linked(None, LinkActor, greeted, root.get_cell()).await {
        tracing::error!(%remote, %error, "a link could not start");
    }
}
