//! The worker's root: starts the engine, keeps one session per router alive, and ends everything in order. A session that
//! panics is started again, but not for ever. A worker that has only a [`part`] of its model keeps that together, too. Called by
//! the composition root through [`run`].

mod capacity;
mod neighbourhood;
mod part;
mod restarts;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::Endpoint;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use shoal_common::ambient;
use shoal_common::config::{Timers, WorkerConfig};
use shoal_common::ids::{Incarnation, Name};
use shoal_common::pki::Identity;
use shoal_common::quic::{self, QuicError};
use shoal_common::shutdown::{self, Shutdown};
use shoal_common::telemetry::Chain;
use shoal_common::watch;
use shoal_common::wire::hello::{Capacity, Hello, Locality, ModelCard, Status, WorkerState};
use tokio::task::{JoinError, JoinHandle};

use crate::adapters::peers::Dialling;
use crate::engine::{self, Drive, EngineHandle, EngineRun, Served, StartError};
use crate::model::{LoadedModel, NoRoom};
use crate::scheduler::Bounds;
use crate::session::{Offer, SessionActor, SessionArgs};
use crate::stage::{Dial, HeadOffer, Member};
use neighbourhood::Lending;
pub use neighbourhood::Neighbourhood;
use part::Stages;
pub use part::{Hosting, Part};
use restarts::{Restarts, Verdict};

/// For sessions to close and for the close to reach the routers: what a session takes for its farewell, and a little.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// For the close to leave the machine. A router that is gone never answers it, and a dial that was under way would be waited
/// on for seconds.
const FAREWELL: Duration = Duration::from_millis(300);

/// For a stopped engine to end its step; no step of a useful worker takes longer.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Why a worker ended other than by its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The engine could not be started.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// What it hosts does not fit this machine.
    #[error("the worker has no room for what it hosts")]
    NoRoom(#[from] NoRoom),
    /// The endpoint could not be made.
    #[error("no quic endpoint")]
    Endpoint(#[from] QuicError),
    /// The root actor could not be started.
    #[error("the sessions cannot be started")]
    Spawn(#[from] SpawnErr),
    /// Sessions failed more often than they are restarted.
    #[error("the sessions with the routers keep failing")]
    SessionsFail,
    /// The engine's thread ended by itself.
    #[error("the engine has ended unexpectedly")]
    EngineGone,
    /// A stage's endpoint closed by itself.
    #[error("the stage's endpoint has closed unexpectedly")]
    StageClosed,
    /// The engine did not end its step when it was stopped.
    #[error("the engine hangs in a step")]
    EngineHangs,
    /// A task of the worker panicked.
    #[error("a task of the worker panicked")]
    Panicked(#[from] JoinError),
}

/// The end of a worker. Boxed here, all that it waits for is compiled here, once, and not again in each crate that polls it.
type Boxed = BoxFuture<'static, Result<(), WorkerError>>;

/// Serves what it hosts until `shutdown` fires: a stage its head, all others the routers of `config`. Resolves when all that ran
/// is finished or failed, the connections are closed and the engine's thread has ended. A thread that hangs is left behind: an
/// error tells of it, and the process must end.
pub fn run(config: WorkerConfig, timers: Timers, identity: Identity, hosting: Hosting, shutdown: Shutdown) -> Boxed {
    Box::pin(async move {
        let Hosting { model, part, neighbourhood, incarnation } = hosting;
        let split = match part {
            Part::Stage(listen) => return part::run_stage(config, timers, model, listen, shutdown).await,
            Part::Whole => None,
            Part::Head(members) => Some((members, identity.clone())),
        };
        let footing = Footing { endpoint: quic::worker_endpoint(&identity, &timers)?, drive: Drive::Thread };
        let dialling = Dialling { endpoint: footing.endpoint.clone(), identity, timers };
        let beside = Beside { split, lending: neighbourhood.with(dialling) };
        serve_routers(footing, (config, incarnation, timers), (model, beside), shutdown).await
    })
}

/// What a worker stands on.
#[derive(Debug)]
pub struct Footing {
    /// From where it dials routers, with its identity.
    pub endpoint: Endpoint,
    /// Who runs its engine.
    pub drive: Drive,
}

/// [`run`] with a whole model, on an endpoint that was made elsewhere.
pub fn run_on(footing: Footing, config: WorkerConfig, timers: Timers, model: LoadedModel, shutdown: Shutdown) -> Boxed {
    let named = (config, Incarnation::draw(), timers);
    Box::pin(serve_routers(footing, named, (model, Beside::default()), shutdown))
}

/// Other workers that this one has to do with.
#[derive(Default)]
struct Beside {
    /// The other stages of a split model, and who the head is to them.
    split: Option<(Vec<Member>, Identity)>,
    /// Those that adapters come from and go to.
    lending: Lending,
}

async fn serve_routers(
    footing: Footing,
    (config, incarnation, timers): (WorkerConfig, Incarnation, Timers),
    (model, Beside { split, lending }): (LoadedModel, Beside),
    shutdown: Shutdown,
) -> Result<(), WorkerError> {
    let Footing { endpoint, drive } = footing;
    let (members, dial) = match split {
        Some((members, identity)) => (members, Some(Dial { endpoint: endpoint.clone(), identity, timers })),
        None => (Vec::new(), None),
    };
    let kv_bytes_per_token = model.backend.kv_bytes_per_token();
    let bounds = capacity::bounds(&config, &model.card, kv_bytes_per_token);
    capacity::check(bounds.blocks, model.weight_bytes, kv_bytes_per_token)?;
    let (stages, model) = Stages::gather(members, head_offer(&config, incarnation, &model, &bounds), model);
    let LoadedModel { card, bundle, backend, adapters, .. } = model;
    let card = capacity::held(card, &bounds);
    let adapters = capacity::adapter_store(&config, adapters).await;
    stages.share(&adapters);
    let (engine, run) = engine::spawn(drive, Served::from(&card), bounds, backend)?;
    let capacity = capacity::announced(&bounds, &capacity::adapters(&config));
    let locality = lending.locality(&config);
    let offer = Arc::new(Offer { hello: hello((config.name.clone(), incarnation), capacity, card, locality), bundle });
    let (closer, closing) = shutdown::channel();
    let peers = lending.begin(timers, &adapters, &closing);
    let board = stages.board();
    let session = |router: &String| SessionArgs {
        router: router.clone(),
        endpoint: endpoint.clone(),
        timers,
        engine: engine.clone(),
        adapters: adapters.clone(),
        peers: peers.clone(),
        offer: offer.clone(),
        stages: board.clone(),
        closing: closing.clone(),
    };
    let sessions = config.routers.iter().map(session).collect();
    let (_root, mut ended) = WorkerActor::spawn(None, WorkerActor, sessions).await?;
    let mut keeper = stages.keep(dial, closing);
    let served = tokio::select! {
        biased;
        kept = keeper.ended() => kept.map_err(WorkerError::from),
        ended = &mut ended => ended.map_err(WorkerError::from).and(Err(WorkerError::SessionsFail)),
        end = serve(&engine, timers.drain, shutdown) => end,
    };
    engine.stop();
    let stopped = join(run, engine.status(), STOP_WITHIN).await;
    closer.fire();
    keeper.join().await;
    close(&endpoint, ended).await;
    served.and(stopped)
}

/// Waits for the engine, but not for a step that hangs. `status` closes when the engine ends.
async fn join(run: EngineRun, mut status: watch::Receiver<Status>, within: Duration) -> Result<(), WorkerError> {
    if tokio::time::timeout(within, closed(&mut status)).await.is_err() {
        return Err(WorkerError::EngineHangs);
    }
    run.join().await.map_err(|_panic| WorkerError::EngineGone)
}

fn hello(
    (worker, incarnation): (Name, Incarnation),
    capacity: Capacity,
    model: ModelCard,
    locality: Option<Locality>,
) -> Hello {
    Hello { worker, incarnation, build: env!("CARGO_PKG_VERSION").to_owned(), capacity, model, locality }
}

fn head_offer(config: &WorkerConfig, incarnation: Incarnation, model: &LoadedModel, bounds: &Bounds) -> HeadOffer {
    HeadOffer {
        head: config.name.clone(),
        incarnation,
        weights: model.card.weights,
        numerics_class: model.card.numerics_class.clone(),
        blocks: u32::try_from(bounds.blocks).unwrap_or(u32::MAX),
    }
}

/// Waits until the sessions have closed their connections and the routers know.
async fn close(endpoint: &Endpoint, sessions: JoinHandle<()>) {
    if !sessions.is_finished() && tokio::time::timeout(CLOSE_WITHIN, sessions).await.is_err() {
        tracing::warn!("a session did not close in time");
    }
    if tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await.is_err() {
        tracing::debug!("a router did not acknowledge the close");
    }
}

/// Until the shutdown, and then until the engine has nothing left or the drain time is over.
async fn serve(engine: &EngineHandle, drain: Duration, mut shutdown: Shutdown) -> Result<(), WorkerError> {
    let mut status = engine.status();
    tokio::select! {
        biased;
        () = shutdown.fired() => {}
        () = closed(&mut status) => return Err(WorkerError::EngineGone),
    }
    tracing::info!("draining");
    engine.drain();
    match tokio::time::timeout(drain, status.wait_for(is_drained)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_closed)) => Err(WorkerError::EngineGone),
        Err(_late) => {
            tracing::warn!("groups that are left after the drain time fail");
            Ok(())
        }
    }
}

async fn closed(status: &mut watch::Receiver<Status>) {
    while status.changed().await.is_ok() {}
}

fn is_drained(status: &Status) -> bool {
    status.state == WorkerState::Draining && status.running == 0 && status.waiting == 0
}

/// The root actor: supervises one [`SessionActor`] per router.
#[derive(Debug)]
struct WorkerActor;

/// The root's books.
struct RootState {
    sessions: HashMap<ActorId, SessionArgs>,
    restarts: Restarts,
}

/// The root is told nothing but what its sessions' lives tell.
#[derive(Debug)]
enum WorkerMessage {}

impl Actor for WorkerActor {
    type Msg = WorkerMessage;
    type State = RootState;
    type Arguments = Vec<SessionArgs>;

    async fn pre_start(
        &self,
        myself: ActorRef<WorkerMessage>,
        sessions: Vec<SessionArgs>,
    ) -> Result<RootState, ActorProcessingErr> {
        let mut state = RootState { sessions: HashMap::new(), restarts: Restarts::default() };
        for args in sessions {
            state.start(&myself, args).await?;
        }
        Ok(state)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<WorkerMessage>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, error) => state.restart(&myself, who.get_id(), error).await?,
            SupervisionEvent::ActorTerminated(who, ..) => {
                state.sessions.remove(&who.get_id());
            }
            _ => {}
        }
        if state.sessions.is_empty() {
            myself.stop(None);
        }
        Ok(())
    }
}

impl RootState {
    async fn start(&mut self, myself: &ActorRef<WorkerMessage>, args: SessionArgs) -> Result<(), ActorProcessingErr> {
        let (session, _) = SessionActor::spawn_linked(None, SessionActor, args.clone(), myself.get_cell()).await?;
        self.sessions.insert(session.get_id(), args);
        Ok(())
    }

    async fn restart(
        &mut self,
        myself: &ActorRef<WorkerMessage>,
        who: ActorId,
        error: ActorProcessingErr,
    ) -> Result<(), ActorProcessingErr> {
        let Some(args) = self.sessions.remove(&who) else { return Ok(()) };
        tracing::error!(router = %args.router, error = %Chain(error.as_ref()), "a session failed");
        match self.restarts.record(ambient::now()) {
            Verdict::Restart => self.start(myself, args).await,
            Verdict::Escalate => Err(error),
        }
    }
}
