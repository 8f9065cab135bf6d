//! `shoal router` and `shoal worker`: one role of a cluster each, with its certificate from `cluster.pki`. Called by `main`;
//! [`host`] is dev mode's way to run a worker, too.

use std::path::Path;

use anyhow::Context;
use shoal_common::config::{Config, ModelConfig, Timers, WorkerConfig};
use shoal_common::ids::Name;
use shoal_common::pki::{Identity, Role};
use shoal_common::shutdown::Shutdown;
use shoal_router::RouterSettings;
use shoal_worker::model::{self, LoadedModel};

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
    let hosted = Hosted { worker, model, timers: config.cluster.timers, identity };
    host(hosted, shutdown).await
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
    pub(crate) timers: Timers,
    pub(crate) identity: Identity,
}

/// Loads the model and runs the worker. A signal while the model loads ends it at once: nothing is running yet.
pub(crate) async fn host(hosted: Hosted, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let Hosted { worker, model, timers, identity } = hosted;
    let loaded = tokio::select! {
        loaded = load(model, worker.threads) => loaded?,
        () = shutdown.fired() => return Ok(()),
    };
    Ok(shoal_worker::run(worker, timers, identity, loaded, shutdown).await?)
}

/// Reads the weights away from the runtime: it takes seconds.
async fn load(model: ModelConfig, threads: Option<u32>) -> anyhow::Result<LoadedModel> {
    tracing::info!(model = %model.name, "loading");
    let name = model.name.clone();
    let loaded = tokio::task::spawn_blocking(move || model::load(&model, threads)).await?;
    loaded.with_context(|| format!("cannot load model {name}"))
}

fn pki(config: &Config) -> anyhow::Result<&Path> {
    config.cluster.pki.as_deref().context("cluster.pki is not set")
}
