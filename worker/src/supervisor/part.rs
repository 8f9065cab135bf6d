//! Which part of its model a worker hosts, and what follows from that for the worker: a head keeps its stages beside its engine,
//! a stage has neither engine nor sessions. Called by [`run`](super::run).

use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use shoal_common::config::{Timers, WorkerConfig};
use shoal_common::ids::{Incarnation, LayerRange};
use shoal_common::quic::CloseCode;
use shoal_common::shutdown::{self, Shutdown};
use shoal_common::wire::hello::ModelCard;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::{FAREWELL, Neighbourhood, WorkerError, capacity};
use crate::adapters::AdapterStore;
use crate::engine::StartError;
use crate::model::LoadedModel;
use crate::stage::{Board, Busy, Dial, HeadOffer, Member, Pipeline, Replica, StageOffer, StageServer};

/// A stage that is told to end has rested when no step has come for so long: its head computes nothing, or is gone.
const RESTED: Duration = Duration::from_millis(500);

/// Which part of its model a worker hosts.
#[derive(Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first layers and the ends; these have the others, in the order of their layers.
    Head(Vec<Member>),
    /// Layers of another head's replica, which dials this endpoint.
    Stage(Endpoint),
}

/// A model and the part of it that was loaded.
#[derive(Debug)]
pub struct Hosting {
    /// Its layers are those of `part`.
    pub model: LoadedModel,
    /// Which part that is.
    pub part: Part,
    /// The workers that its adapters may come from and go to; of no use to a stage, which has its head.
    pub neighbourhood: Neighbourhood,
    /// This life of the worker, as routers are told; of no use to a stage.
    pub incarnation: Incarnation,
}

/// A head's stages. Nothing, for a worker that hosts a whole model.
pub(super) struct Stages(Option<(Replica, Board)>);

/// The task that keeps a head's stages together.
pub(super) struct Keeper(Option<JoinHandle<()>>);

impl Stages {
    /// Makes the head of a replica with these members of `model`: with them it is whole.
    pub(super) fn gather(members: Vec<Member>, offer: HeadOffer, model: LoadedModel) -> (Self, LoadedModel) {
        if members.is_empty() {
            return (Self(None), model);
        }
        let replica = Replica::new(offer, members);
        let board = replica.board(model.card.layers);
        let layers = LayerRange { begin: 0, end: model.card.layer_count };
        let card = ModelCard { layers, ..model.card };
        let backend = Box::new(Pipeline::new(model.backend, &replica));
        (Self(Some((replica, board))), LoadedModel { card, backend, ..model })
    }

    /// What routers are told.
    pub(super) fn board(&self) -> Option<Board> {
        self.0.as_ref().map(|(_, board)| board.clone())
    }

    /// Has every stage have its part of an adapter before anything runs with it, from the files of `store`.
    pub(super) fn share(&self, store: &AdapterStore) {
        if let Some((replica, _)) = &self.0 {
            replica.lend(store.clone());
            store.require(Arc::new(replica.adapters()));
        }
    }

    /// Dials the stages and keeps them together until `closing` fires.
    pub(super) fn keep(self, dial: Option<Dial>, closing: Shutdown) -> Keeper {
        let split = self.0.zip(dial);
        Keeper(split.map(|((replica, _), dial)| tokio::spawn(async move { replica.keep(dial, closing).await })))
    }
}

impl Keeper {
    /// Resolves when the task has ended; never where there is none.
    pub(super) async fn ended(&mut self) -> Result<(), JoinError> {
        match &mut self.0 {
            Some(task) => task.await,
            None => std::future::pending().await,
        }
    }

    /// Waits for the task, which was told to end.
    pub(super) async fn join(self) {
        if let Some(task) = self.0
            && task.await.is_err()
        {
            tracing::error!("what keeps the stages together panicked");
        }
    }
}

/// Serves the head that dials `listen` until `shutdown` fires and it has rested, or left.
pub(super) async fn run_stage(
    config: WorkerConfig,
    timers: Timers,
    model: LoadedModel,
    listen: Endpoint,
    shutdown: Shutdown,
) -> Result<(), WorkerError> {
    let LoadedModel { card, backend, adapters, weight_bytes, .. } = model;
    let offer = StageOffer {
        worker: config.name.clone(),
        incarnation: Incarnation::draw(),
        weights: card.weights,
        numerics_class: card.numerics_class,
        layers: card.layers,
        blocks: capacity::stage_blocks(&config, weight_bytes, backend.kv_bytes_per_token()),
        width: backend.width(),
    };
    let (closer, closing) = shutdown::channel();
    let server = StageServer::new(offer, backend, closing).map_err(StartError::Thread)?;
    server.use_adapters(capacity::adapter_store(&config, adapters).await);
    tracing::info!(
        address = listen.local_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string()),
        layers = %format_args!("{} to {}", card.layers.begin, card.layers.end),
        "waiting for the head of the replica"
    );
    tokio::select! {
        () = server.run(listen.clone(), timers) => return Err(WorkerError::StageClosed),
        () = end_of_work(shutdown, server.busy(), timers.drain) => {}
    }
    closer.fire();
    listen.close(CloseCode::Shutdown.into(), b"");
    if tokio::time::timeout(FAREWELL, listen.wait_idle()).await.is_err() {
        tracing::debug!("the head did not acknowledge the close");
    }
    Ok(())
}

/// Until the shutdown, and then until no steps come any more or the drain time is over.
async fn end_of_work(mut shutdown: Shutdown, mut busy: watch::Receiver<Busy>, drain: Duration) {
    shutdown.fired().await;
    let rest =
        async { while tokio::time::timeout(RESTED, busy.changed()).await.is_ok_and(|changed| changed.is_ok()) {} };
    if tokio::time::timeout(drain, rest).await.is_err() {
        tracing::warn!("the head still computes after the drain time: its groups fail");
    }
}
