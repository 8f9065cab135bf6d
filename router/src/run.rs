//! Start and end of a router: binds both sockets, starts the root actor, serves HTTP, drains. Called by the binary and by
//! tests; nothing here knows a request.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use ractor::{Actor, ActorRef};
use shoal_common::ambient;
use shoal_common::block_hash::CacheSalt;
use shoal_common::config::{AdapterConfig, ApiConfig, Limits, RouterConfig, Timers};
use shoal_common::ids::{Generation, Name};
use shoal_common::pki::Identity;
use shoal_common::quic::{self, CloseCode, QuicError};
use shoal_common::shutdown::{self, Shutdown};
use shoal_common::watch;
use shoal_common::wire::hello::AdapterOrder;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::adapters::allow::Allowed;
use crate::adapters::disk::DiskError;
use crate::adapters::watch::Sources;
use crate::adapters::{Registry, Settings, WorkerAdapter, Workers, keep, watch as adapter_watch};
use crate::app::App;
use crate::dispatch::Dispatcher;
use crate::fleet::pick::ByAdapter;
use crate::fleet::{FleetView, Snapshot};
use crate::http;
use crate::http::foreign::HostPolicy;
use crate::http::server::Listen;
use crate::operations::Operations;
use crate::prompt_log::{PromptLog, PromptLogError};
use crate::recorder::{fold_samples, recorder};
use crate::supervisor::{RouterActor, RouterArguments, RouterMessage};

/// For clients to be told that their requests were cut, after the drain.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// What a router is configured with.
#[derive(Clone, Debug)]
pub struct RouterSettings {
    /// The cluster's name.
    pub cluster: Name,
    /// `[router]`
    pub router: RouterConfig,
    /// The models that the configuration names: no adapter may be called like one.
    pub models: BTreeSet<Name>,
    /// `[[adapter]]`
    pub adapters: Vec<AdapterConfig>,
    /// `[limits]`
    pub limits: Limits,
    /// `[api]`
    pub api: ApiConfig,
    /// `[cluster.timers]`
    pub timers: Timers,
}

/// Why a router cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The HTTP address is taken, or not this machine's.
    #[error("cannot listen for HTTP on {address}")]
    Http {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The QUIC address cannot be used.
    #[error("cannot listen for workers")]
    Quic(#[from] QuicError),
    /// The socket's own address cannot be read.
    #[error("a socket failed")]
    Socket(#[from] io::Error),
    /// The data directory cannot be used.
    #[error(transparent)]
    PromptLog(#[from] PromptLogError),
    /// The adapters' directory cannot be used.
    #[error(transparent)]
    Adapters(#[from] DiskError),
    /// The root actor did not start.
    #[error("the router's supervisor did not start")]
    Supervisor(#[from] ractor::SpawnErr),
    /// The root actor ended by itself: nobody takes workers any more.
    #[error("the router's supervisor failed")]
    SupervisorEnded,
    /// The metrics recorder could not be installed.
    #[error("metrics cannot be recorded")]
    Metrics,
}

/// What the binary and the simulation wait for. Boxed here, it is compiled here, once, and not with everything that it waits for
/// in each crate that polls it.
type Boxed<T> = BoxFuture<'static, Result<T, RouterError>>;

/// Serves HTTP on the listener that it holds, as [`http::server::serve`] does.
type ServeHttp = Box<dyn FnOnce(axum::Router, Limits, Duration, Shutdown) -> BoxFuture<'static, ()> + Send>;

/// A router whose sockets are bound; workers are taken from now on.
pub struct Bound {
    settings: RouterSettings,
    serve_http: ServeHttp,
    http_addr: SocketAddr,
    quic_addr: SocketAddr,
    endpoint: quinn::Endpoint,
    root: ActorRef<RouterMessage>,
    root_ended: JoinHandle<()>,
    operations: Operations,
    prompt_log: PromptLog,
    metrics: PrometheusHandle,
    adapters: Registry,
    /// Bring adapters in, let old ones go, and keep the metrics small.
    _keepers: [AbortOnDropHandle<()>; 3],
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { http_addr, quic_addr, .. } = self;
        f.debug_struct("Bound").field("http_addr", http_addr).field("quic_addr", quic_addr).finish_non_exhaustive()
    }
}

/// Binds both sockets and begins to take workers.
pub fn bind(settings: RouterSettings, identity: Identity) -> Boxed<Bound> {
    Box::pin(async move {
        let address = settings.router.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| RouterError::Http { address, source })?;
        let endpoint = quic::router_endpoint(settings.router.quic, &identity, &settings.timers)?;
        bind_on(settings, listener, endpoint).await
    })
}

/// Begins to take workers on sockets that were made elsewhere.
pub fn bind_on(settings: RouterSettings, listener: impl Listen + 'static, endpoint: quinn::Endpoint) -> Boxed<Bound> {
    let http_addr = listener.address();
    let serve_http: ServeHttp = Box::new(|paths, limits, drain, shutdown| {
        Box::pin(async move { http::server::serve(listener, paths, &limits, drain, shutdown).await })
    });
    begin(settings, http_addr, serve_http, endpoint)
}

/// What does not depend on the listener.
fn begin(
    settings: RouterSettings,
    http_addr: io::Result<SocketAddr>,
    serve_http: ServeHttp,
    endpoint: quinn::Endpoint,
) -> Boxed<Bound> {
    Box::pin(async move { begun(settings, http_addr?, serve_http, endpoint).await })
}

async fn begun(
    settings: RouterSettings,
    http_addr: SocketAddr,
    serve_http: ServeHttp,
    endpoint: quinn::Endpoint,
) -> Result<Bound, RouterError> {
    if !http_addr.ip().is_loopback() {
        tracing::warn!(%http_addr, "HTTP is served without keys to everyone who can reach this address");
    }
    let quic_addr = endpoint.local_addr()?;
    let prompt_log = PromptLog::open(&settings.router.data_dir, settings.router.prompt_log)?;
    let metrics = recorder()?;
    let (published, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let view = FleetView::new(snapshots);
    let adapters = open_adapters(&settings, &view).await?;
    let operations = Operations::start(settings.cluster.clone(), view.clone());
    let arguments = RouterArguments {
        endpoint: endpoint.clone(),
        timers: settings.timers,
        published,
        operations: operations.clone(),
        adapters: adapters.clone(),
        zone: settings.router.zone.clone(),
    };
    let (root, root_ended) = Actor::spawn(None, RouterActor, arguments).await?;
    adapters.connect(Arc::new(FleetWorkers { root: root.clone(), view: view.clone() }));
    let _keepers = keepers(&settings, &adapters, &view, metrics.clone());
    Ok(Bound {
        settings,
        serve_http,
        http_addr,
        quic_addr,
        endpoint,
        root,
        root_ended,
        operations,
        prompt_log,
        metrics,
        adapters,
        _keepers,
    })
}

/// The fleet, as far as adapters concern it.
#[derive(Debug)]
struct FleetWorkers {
    root: ActorRef<RouterMessage>,
    view: FleetView,
}

impl Workers for FleetWorkers {
    fn order(&self, base: &Name, order: AdapterOrder) {
        // Fails only when the router ends, and its orders with it.
        let _ = self.root.cast(RouterMessage::Order { model: Some(base.clone()), order });
    }

    fn residency(&self, generation: Generation) -> Vec<WorkerAdapter> {
        let found = self.view.residency(generation).into_iter();
        found.map(|(worker, state)| WorkerAdapter { worker, state }).collect()
    }
}

/// The adapters of an earlier life.
async fn open_adapters(settings: &RouterSettings, view: &FleetView) -> Result<Registry, RouterError> {
    let router = &settings.router;
    let of_adapters = Settings {
        data_dir: router.data_dir.clone(),
        adapters: settings.limits.adapters,
        adapter_bytes: settings.limits.adapter_bytes,
        models: settings.models.clone(),
        allowed: Allowed::new(router.adapters.iter().chain(&router.adapter_paths).cloned()),
    };
    let catalogue = Arc::new(view.clone());
    let opened = ambient::off_runtime(move || Registry::open(of_adapters, catalogue)).await;
    Ok(opened.map_err(io::Error::other)??)
}

fn keepers(
    settings: &RouterSettings,
    adapters: &Registry,
    view: &FleetView,
    metrics: PrometheusHandle,
) -> [AbortOnDropHandle<()>; 3] {
    let sources = Sources { configured: settings.adapters.clone(), directory: settings.router.adapters.clone() };
    let watching = tokio::spawn(adapter_watch::watch(adapters.clone(), view.clone(), sources));
    let keeping = tokio::spawn(keep::keep(adapters.clone(), view.clone()));
    let folding = tokio::spawn(async move { match fold_samples(metrics).await {} });
    [watching, keeping, folding].map(AbortOnDropHandle::new)
}

impl Bound {
    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where workers dial.
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic_addr
    }

    /// Who serves what.
    pub fn view(&self) -> FleetView {
        self.operations.view.clone()
    }

    /// Serves until `shutdown` fires; then lets running requests finish for the drain time, cuts the rest, and closes. Ends
    /// at once when the root actor does.
    pub fn serve(self, shutdown: Shutdown) -> Boxed<()> {
        Box::pin(self.serve_until(shutdown))
    }

    async fn serve_until(mut self, mut shutdown: Shutdown) -> Result<(), RouterError> {
        let (cut_trigger, cut) = shutdown::channel();
        let app = Arc::new(self.app(cut));
        let drain = self.settings.timers.drain;
        let drain_and_cut = drain + CUT_GRACE;
        let paths = http::router(app);
        let server = (self.serve_http)(paths, self.settings.limits.clone(), drain_and_cut, shutdown.clone());
        let cutter = async {
            shutdown.fired().await;
            tracing::info!(drain_seconds = drain.as_secs(), "draining");
            tokio::time::sleep(drain).await;
            cut_trigger.fire();
            std::future::pending::<()>().await
        };
        let served = tokio::select! {
            biased;
            () = server => Ok(()),
            () = cutter => Ok(()),
            _ = &mut self.root_ended => Err(RouterError::SupervisorEnded),
        };
        self.root.stop(Some("shutdown".to_owned()));
        self.endpoint.close(CloseCode::Shutdown.into(), CloseCode::Shutdown.reason().as_bytes());
        self.prompt_log.flush().await;
        self.endpoint.wait_idle().await;
        served
    }

    fn app(&self, cut: Shutdown) -> App {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        App {
            limits: self.settings.limits.clone(),
            api: self.settings.api,
            hosts: HostPolicy::for_address(self.http_addr),
            cache_salt: CacheSalt::of_cluster(&self.settings.cluster),
            catalogue: Arc::new(self.operations.view.clone()),
            metrics: self.metrics.clone(),
            prompt_log: self.prompt_log.clone(),
            adapters: self.adapters.clone(),
            dispatcher: Dispatcher {
                replays: self.settings.limits.replays,
                patience: 5 * self.settings.timers.stall,
                ..Dispatcher::new(self.operations.view.clone(), Arc::new(ByAdapter))
            },
            text_threads: Arc::new(Semaphore::new(cores)),
            operations: self.operations.clone(),
            requests: Arc::new(Semaphore::new(self.settings.limits.requests)),
            cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_common::pki::{Authority, Role};

    use super::*;
    use crate::testing::settings;

    #[tokio::test]
    async fn a_router_whose_root_actor_failed_does_not_serve_on() {
        let authority = Authority::create(&Name::new("test").unwrap()).unwrap();
        let identity = authority.issue(Role::Router, &Name::new("router").unwrap()).unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut settings = settings();
        settings.router.data_dir = data.path().to_owned();
        let bound = bind(settings, identity).await.unwrap();
        bound.root.stop(None);
        let (_trigger, shutdown) = shutdown::channel();
        assert!(matches!(bound.serve(shutdown).await, Err(RouterError::SupervisorEnded)));
    }
}
