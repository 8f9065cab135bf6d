//! The hosts of a simulation: routers and workers as they run everywhere, on the simulated network and with the engine in
//! virtual time. Owns their start and the books of who runs. Called by `play`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use shoal_common::config::{
    ApiConfig, Exposure, Limits, ModelConfig, ModelSource, Peering, PromptLogPolicy, RouterConfig, WorkerConfig,
};
use shoal_common::ids::Name;
use shoal_common::pki::{Identity, Role};
use shoal_common::quic;
use shoal_common::shutdown::{self, Trigger};
use shoal_router::RouterSettings;
use shoal_router::fleet::FleetView;
use shoal_worker::Footing;
use shoal_worker::engine::Drive;
use shoal_worker::model::Layers;
use tempfile::TempDir;
use tokio::runtime::Handle;
use turmoil::Sim;

use crate::net::{self, Listener, Place, Sky};
use crate::pki::{Authority, CLUSTER};
use crate::requests::MODEL;
use crate::scenario::Shape;

const HTTP_PORT: u16 = 8080;
const QUIC_PORT: u16 = 7843;
/// For the last packets of a process that ended in order: the transport keeps a closed connection for a few round trips.
const LEFTOVERS: Duration = Duration::from_secs(10);

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A router.
    Router(usize),
    /// A worker.
    Worker(usize),
}

impl Host {
    /// Its name in the network and in its certificate.
    pub fn name(self) -> String {
        match self {
            Self::Router(at) => format!("router-{at}"),
            Self::Worker(at) => format!("worker-{at}"),
        }
    }

    fn role(self) -> Role {
        match self {
            Self::Router(_) => Role::Router,
            Self::Worker(_) => Role::Worker,
        }
    }
}

/// A process that runs.
#[derive(Clone, Debug)]
pub struct Life {
    /// Tells it to end.
    pub trigger: Trigger,
    /// Its runtime.
    pub runtime: Handle,
    /// Whom it knows, if it is a router.
    pub view: Option<FleetView>,
}

/// Who runs now, and what ended wrong.
#[derive(Debug, Default)]
pub struct Books {
    /// Processes that run.
    pub lives: BTreeMap<Host, Life>,
    /// Processes that ended in order and left tasks behind.
    pub leaks: Vec<(Host, usize)>,
}

/// What all hosts of a simulation share.
#[derive(Debug)]
pub struct World {
    shape: Shape,
    sky: Sky,
    identities: BTreeMap<Host, Identity>,
    data: TempDir,
    /// Who runs now.
    pub books: RefCell<Books>,
}

impl World {
    /// A world without hosts yet.
    pub fn new(shape: Shape, sky: Sky) -> anyhow::Result<Self> {
        let mut authority = Authority::new()?;
        let mut identities = BTreeMap::new();
        for host in hosts(&shape) {
            identities.insert(host, authority.issue(host.role(), &Name::new(host.name())?)?);
        }
        Ok(Self { shape, sky, identities, data: tempfile::tempdir()?, books: RefCell::default() })
    }
}

/// Every process of a cluster.
pub fn hosts(shape: &Shape) -> impl Iterator<Item = Host> + use<> {
    (0..shape.routers).map(Host::Router).chain((0..shape.workers).map(Host::Worker))
}

/// Puts the cluster's hosts into `sim`, where they start.
pub fn start(sim: &mut Sim<'_>, world: &Rc<World>) {
    for host in hosts(&world.shape) {
        let world = Rc::clone(world);
        sim.host(host.name(), move || run(host, Rc::clone(&world)));
    }
}

/// Where clients of the routers connect.
pub fn http_addresses(sim: &Sim<'_>, shape: &Shape) -> Vec<SocketAddr> {
    (0..shape.routers).map(|at| SocketAddr::new(sim.lookup(Host::Router(at).name()), HTTP_PORT)).collect()
}

/// A process, from its start to its end in order.
async fn run(host: Host, world: Rc<World>) -> turmoil::Result {
    tracing::info!("starts");
    match host {
        Host::Router(_) => router(host, &world).await?,
        Host::Worker(_) => worker(host, &world).await?,
    }
    world.books.borrow_mut().lives.remove(&host);
    tracing::info!("has ended");
    let left = leftovers().await;
    if left > 0 {
        world.books.borrow_mut().leaks.push((host, left));
    }
    Ok(())
}

/// Tasks that are still there when the transport has said its last.
async fn leftovers() -> usize {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let patience = async {
        while tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let _ = tokio::time::timeout(LEFTOVERS, patience).await;
    tasks()
}

impl World {
    /// Where `host` keeps its files, in each of its lives.
    fn data_dir(&self, host: Host) -> PathBuf {
        self.data.path().join(host.name())
    }

    fn place(&self, host: Host) -> Place {
        Place { own: turmoil::lookup(host.name()), sky: self.sky.clone() }
    }

    /// The process of `host` is up.
    fn up(&self, host: Host, trigger: Trigger, view: Option<FleetView>) {
        let life = Life { trigger, runtime: Handle::current(), view };
        self.books.borrow_mut().lives.insert(host, life);
    }
}

async fn router(host: Host, world: &World) -> turmoil::Result {
    let shape = &world.shape;
    let config = quic::router_config(&world.identities[&host], &shape.timers)?;
    let endpoint = net::router_endpoint(QUIC_PORT, config, &world.place(host)).await?;
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let settings = RouterSettings {
        cluster: Name::new(CLUSTER)?,
        router: RouterConfig {
            listen: any(HTTP_PORT),
            quic: any(QUIC_PORT),
            exposure: Exposure::Insecure,
            data_dir: world.data_dir(host),
            prompt_log: PromptLogPolicy::Off,
            adapters: None,
            adapter_paths: Vec::new(),
            zone: None,
        },
        models: BTreeSet::new(),
        adapters: Vec::new(),
        limits: Limits {
            deadline: shape.deadline,
            slow_reader: shape.slow_reader,
            sse_keep_alive: Duration::from_secs(1),
            ..Limits::default()
        },
        api: ApiConfig::default(),
        timers: shape.timers,
    };
    let bound = shoal_router::bind_on(settings, Listener::bind(HTTP_PORT).await?, endpoint).await?;
    let (trigger, shutdown) = shutdown::channel();
    world.up(host, trigger, Some(bound.view()));
    bound.serve(shutdown).await?;
    Ok(())
}

async fn worker(host: Host, world: &World) -> turmoil::Result {
    let shape = &world.shape;
    let config = quic::worker_config(&world.identities[&host], &shape.timers)?;
    let endpoint = net::worker_endpoint(config, &world.place(host)).await?;
    let name = Name::new(MODEL)?;
    let router = |at| SocketAddr::new(turmoil::lookup(Host::Router(at).name()), QUIC_PORT).to_string();
    let config = WorkerConfig {
        name: Name::new(host.name())?,
        model: name.clone(),
        routers: (0..shape.routers).map(router).collect(),
        slots: shape.slots,
        groups: shape.groups,
        kv_tokens: Some(shape.kv_tokens),
        step_tokens: shape.step_tokens,
        threads: None,
        data_dir: world.data_dir(host),
        adapter_slots: 4,
        adapter_bytes: Some(1 << 20),
        adapter_disk_bytes: 1 << 20,
        stage_listen: None,
        memory: None,
        speed: 1,
        peering: Peering::default(),
        metrics: None,
    };
    let model = ModelConfig { name, source: ModelSource::Scripted(shape.script) };
    let model = shoal_worker::model::load(&model, None, Layers::All)?;
    let (trigger, shutdown) = shutdown::channel();
    world.up(host, trigger, None);
    let footing = Footing { endpoint, drive: Drive::Task };
    shoal_worker::run_on(footing, config, shape.timers, model, shutdown).await?;
    Ok(())
}
