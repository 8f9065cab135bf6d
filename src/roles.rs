//! `shoal router` and `shoal worker`: one role of a cluster each, with its certificate from `cluster.pki`. Called by `main`;
//! [`host`] is dev mode's way to run a worker, too.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::Context;
use shoal_common::config::{Config, ModelConfig, PeerListen, Timers, WorkerConfig};
use shoal_common::ids::{Incarnation, Name};
use shoal_common::pki::{Identity, Role};
use shoal_common::quic::{self, QuicError, ResetKey};
use shoal_common::shutdown::Shutdown;
use shoal_router::{MetricsServer, RouterSettings};
use shoal_worker::model::{self, Layers, LoadedModel};
use shoal_worker::{Hosting, Neighbourhood, Part};

use crate::parts::{self, Place};
use crate::witness::{ANSWERED_FOR, Witness};

/// The name of [`router_name`].
pub(crate) const ROUTER: &str = "router";

/// Runs the router until `shutdown` fires and what was running is done.
pub(crate) async fn router(config: Config, name: &Name, shutdown: Shutdown) -> anyhow::Result<()> {
    let identity = Identity::load(pki(&config)?, name, Role::Router)?;
    let bound = shoal_router::bind(settings(&config), identity).await?;
    tracing::info!(http = %bound.http_addr(), quic = %bound.quic_addr(), "router is listening");
    Ok(bound.serve(shutdown).await?)
}

/// Runs the worker `name` of the configuration until `shutdown` fires and what was running is done.
pub(crate) async fn worker(config: Config, name: &str, shutdown: Shutdown) -> anyhow::Result<()> {
    let worker = config.worker(name).with_context(|| format!("the configuration names no worker {name}"))?.clone();
    let identity = Identity::load(pki(&config)?, &worker.name, Role::Worker)?;
    let model = config.model(&worker.model).context("the worker's model is not in the configuration")?.clone();
    let timers = config.cluster.timers;
    let place = parts::place(&config, &worker.name)?;
    let layers = place.layers();
    let neighbourhood = neighbourhood(&config, &worker, &identity)?;
    let metrics = match worker.metrics {
        Some(address) => Some(metrics(address).await?),
        None => None,
    };
    let incarnation = Incarnation::draw();
    let (part, stage) = match place {
        Place::Whole(_) => (Part::Whole, None),
        Place::Head(_, members) => (Part::Head(members), None),
        Place::Stage(_) => {
            let listen = worker.stage_listen.context("a stage has no address to listen on")?;
            // Before the model is read: a port that is taken is told at once.
            let (socket, key) = (stage_socket(listen).await?, ResetKey::draw());
            let endpoint = quic::stage_endpoint_on(socket.try_clone()?, &key, &identity, &timers)?;
            (Part::Stage(endpoint), Some((socket, key)))
        }
    };
    let witness = match stage {
        Some((socket, key)) => Witness::of_stage(socket, &key),
        None => Witness::of_worker(&worker, incarnation, pki(&config)?, &timers),
    };
    let witness = witness.inspect_err(|error| {
        tracing::warn!(%error, "no witness could be started: a crash will be noticed by silence alone");
    });
    let hosted = Hosted { worker, model, layers, part, neighbourhood, timers, identity, incarnation };
    let ended = tokio::select! {
        ended = host(hosted, shutdown) => ended,
        // Not in order: the witness tells the others, as it does of any other death.
        Some(failed) = async { Some(metrics?.serve().await) } => match failed? {},
    };
    if let Ok(witness) = witness {
        witness.dismiss();
    }
    ended
}

/// A stage's socket. Its address is taken for a moment after an earlier life of it has died.
async fn stage_socket(listen: SocketAddr) -> Result<UdpSocket, QuicError> {
    let until = tokio::time::Instant::now() + 2 * ANSWERED_FOR;
    loop {
        match quic::stage_socket(listen) {
            Err(QuicError::Bind { source, .. })
                if source.kind() == ErrorKind::AddrInUse && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(ANSWERED_FOR / 20).await;
            }
            bound => return bound,
        }
    }
}

/// The worker's own `GET /metrics`.
async fn metrics(address: SocketAddr) -> anyhow::Result<MetricsServer> {
    let server = MetricsServer::bind(address).await.context("the worker's `metrics` cannot be served")?;
    tracing::info!(at = %server.address()?, "metrics are served");
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "metrics are served to everyone who can reach this address");
    }
    Ok(server)
}

/// The workers that adapters of `worker` come from and go to beside the router. A stage's come from its head.
fn neighbourhood(config: &Config, worker: &WorkerConfig, identity: &Identity) -> anyhow::Result<Neighbourhood> {
    let bind = |listen: &PeerListen| quic::peer_endpoint(listen.at, identity, &config.cluster.timers);
    let listen = worker.peering.listen.as_ref().map(bind).transpose()?;
    Ok(Neighbourhood { listen, addresses: config.neighbours(&worker.name) })
}

/// The router's name in its certificate, where nothing else is said.
pub(crate) fn router_name() -> Name {
    Name::new(ROUTER).expect("it begins with a letter")
}

/// What the router takes of a configuration.
pub(crate) fn settings(config: &Config) -> RouterSettings {
    RouterSettings {
        cluster: config.cluster.name.clone(),
        router: config.router.clone(),
        models: config.models.iter().map(|model| model.name.clone()).collect(),
        adapters: config.adapters.clone(),
        limits: config.limits.clone(),
        api: config.api,
        timers: config.cluster.timers,
    }
}

/// A worker and all it needs.
pub(crate) struct Hosted {
    pub(crate) worker: WorkerConfig,
    pub(crate) model: ModelConfig,
    /// Those that it hosts.
    pub(crate) layers: Layers,
    /// How it is connected with whoever has the others.
    pub(crate) part: Part,
    /// Whom it shares adapters with.
    pub(crate) neighbourhood: Neighbourhood,
    pub(crate) timers: Timers,
    pub(crate) identity: Identity,
    /// This life of it.
    pub(crate) incarnation: Incarnation,
}

/// Loads the model and runs the worker. A signal while the model loads ends it at once: nothing is running yet.
pub(crate) async fn host(hosted: Hosted, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let Hosted { worker, model, layers, part, neighbourhood, timers, identity, incarnation } = hosted;
    let loaded = tokio::select! {
        loaded = load(model, worker.threads, layers) => loaded?,
        () = shutdown.fired() => return Ok(()),
    };
    let hosting = Hosting { model: loaded, part, neighbourhood, incarnation };
    Ok(shoal_worker::run(worker, timers, identity, hosting, shutdown).await?)
}

/// Reads the weights away from the runtime: it takes seconds.
async fn load(model: ModelConfig, threads: Option<u32>, layers: Layers) -> anyhow::Result<LoadedModel> {
    tracing::info!(model = %model.name, "loading");
    let name = model.name.clone();
    let loaded = tokio::task::spawn_blocking(move || model::load(&model, threads, layers)).await?;
    loaded.with_context(|| format!("cannot load model {name}"))
}

fn pki(config: &Config) -> anyhow::Result<&Path> {
    config.cluster.pki.as_deref().context("cluster.pki is not set")
}
