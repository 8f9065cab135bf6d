//! The stage: a worker, or a session alone, and the routers that it dials.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use ractor::Actor;
use shoal_common::config::{Peering, Timers, WorkerConfig};
use shoal_common::ids::{Digest, Generation, Incarnation, Name, Zone};
use shoal_common::pki::{Authority, Identity, Role};
use shoal_common::quic::{self, Acceptor};
use shoal_common::shutdown::Trigger;
use shoal_common::wire::codec::{CodecError, read_frame, write_frame};
use shoal_common::wire::hello::{
    AdapterState, AdapterTier, Capacity, Hello, ModelCard, RouterControl, Status, WorkerControl,
};
use shoal_common::wire::message::{GroupFrame, StreamOpen, Submit};
use shoal_kernels::Precision;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::adapters::{AdapterStore, Limits, PeftLoader, StoreSettings};
use crate::engine::tests::backend::HashBackend;
use crate::engine::tests::bench::{self, Heard, ROOMY, submission};
use crate::engine::{Drive, EngineHandle, EngineRun, Served};
use crate::model::LoadedModel;
use crate::session::{Offer, SessionActor, SessionArgs};
use crate::{Hosting, Neighbourhood, Part, WorkerError};

/// Groups that the worker takes.
pub(super) const GROUPS: u32 = 3;

fn bundle() -> Vec<u8> {
    (0..300_000u32).map(|at| at as u8).collect()
}

fn model() -> LoadedModel {
    let card = ModelCard { tokenizer: Digest::of(&bundle()), ..bench::card() };
    let adapters = Arc::new(PeftLoader::new(&card, Precision::Exact));
    LoadedModel { card, bundle: bundle(), backend: Box::new(HashBackend::default()), adapters, weight_bytes: 0 }
}

/// The routers' side: an endpoint for each, and the worker that dials them.
pub(super) struct Stage {
    pub(super) acceptor: Acceptor,
    /// The second router, if there is one.
    pub(super) other: Option<Acceptor>,
    pub(super) worker: JoinHandle<Result<(), WorkerError>>,
    pub(super) shutdown: Trigger,
    _data: TempDir,
}

/// One connection of the worker, welcomed.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) control: (SendStream, RecvStream),
    pub(super) hello: Hello,
    /// What the worker has told of its adapters.
    pub(super) told: BTreeMap<Generation, AdapterState>,
}

/// Routers' endpoints and what a worker needs to dial them.
struct Network {
    authority: Authority,
    worker: Identity,
    timers: Timers,
}

impl Network {
    fn new() -> Self {
        let authority = Authority::create(&Name::new("test").unwrap()).unwrap();
        let worker = authority.issue(Role::Worker, &Name::new("worker").unwrap()).unwrap();
        Self { authority, worker, timers: Timers::default() }
    }

    /// Another router, and its address.
    fn router(&self) -> (Acceptor, String) {
        let identity = self.authority.issue(Role::Router, &Name::new("router").unwrap()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = quic::router_endpoint(address, &identity, &self.timers).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        (Acceptor::new(endpoint, self.timers), address)
    }
}

pub(super) fn stage() -> Stage {
    Stage::start(1, None)
}

pub(super) fn stage_with_kv(kv_tokens: u64) -> Stage {
    Stage::start(1, Some(kv_tokens))
}

pub(super) fn stage_with_two_routers() -> Stage {
    Stage::start(2, None)
}

/// Two workers of one zone: the second may fetch from the first, which is called so.
pub(super) fn stages_of_one_zone() -> [Stage; 2] {
    let network = Network::new();
    let lender = Name::new("lender").unwrap();
    let identity = network.authority.issue(Role::Worker, &lender).unwrap();
    let listen = quic::peer_endpoint((Ipv4Addr::LOCALHOST, 0).into(), &identity, &network.timers).unwrap();
    let addresses = [(lender, listen.local_addr().unwrap().to_string())].into();
    let lends = Neighbourhood { listen: Some(listen), addresses: BTreeMap::new() };
    let asks = Neighbourhood { listen: None, addresses };
    [
        Stage::among(&network, identity, (1, None), lends),
        Stage::among(&network, network.worker.clone(), (1, None), asks),
    ]
}

impl Stage {
    fn start(routers: usize, kv_tokens: Option<u64>) -> Self {
        let network = Network::new();
        Self::among(&network, network.worker.clone(), (routers, kv_tokens), Neighbourhood::default())
    }

    fn among(
        network: &Network,
        identity: Identity,
        (routers, kv_tokens): (usize, Option<u64>),
        neighbourhood: Neighbourhood,
    ) -> Self {
        let is_alone = neighbourhood.listen.is_none() && neighbourhood.addresses.is_empty();
        let zone = (!is_alone).then(|| Zone::new("rack").unwrap());
        let (mut acceptors, addresses): (Vec<_>, Vec<_>) = (0..routers).map(|_| network.router()).unzip();
        let data = tempfile::tempdir().unwrap();
        let config = WorkerConfig {
            name: identity.name().clone(),
            model: Name::new("hash").unwrap(),
            routers: addresses,
            slots: 16,
            groups: GROUPS,
            kv_tokens,
            step_tokens: 32,
            threads: None,
            adapter_slots: 4,
            adapter_bytes: Some(1 << 20),
            adapter_disk_bytes: 1 << 20,
            data_dir: data.path().to_owned(),
            stage_listen: None,
            memory: None,
            speed: 1,
            peering: Peering { zone, listen: None },
            metrics: None,
        };
        let (shutdown, fired) = shoal_common::shutdown::channel();
        let hosting = Hosting { model: model(), part: Part::Whole, neighbourhood, incarnation: Incarnation(7) };
        let worker = tokio::spawn(crate::run(config, network.timers, identity, hosting, fired));
        let other = (routers > 1).then(|| acceptors.pop().unwrap());
        Self { acceptor: acceptors.pop().unwrap(), other, worker, shutdown, _data: data }
    }

    pub(super) async fn meet(&mut self) -> Link {
        self.answer(RouterControl::Welcome { router: Incarnation(1) }).await
    }

    pub(super) async fn answer(&mut self, answer: RouterControl) -> Link {
        meet(&mut self.acceptor, answer).await
    }
}

pub(super) async fn meet(acceptor: &mut Acceptor, answer: RouterControl) -> Link {
    let connection = acceptor.next().await.unwrap();
    let (mut send, mut recv) = connection.accept_bi().await.unwrap();
    let WorkerControl::Hello(hello) = read_frame(&mut recv).await.unwrap() else { panic!("no hello") };
    write_frame(&mut send, &answer).await.unwrap();
    Link { connection, control: (send, recv), hello: *hello, told: BTreeMap::new() }
}

/// A session without a supervisor: the test ends its engine and closes it.
pub(super) struct Alone {
    pub(super) acceptor: Acceptor,
    pub(super) session: JoinHandle<()>,
    pub(super) engine: EngineHandle,
    pub(super) run: EngineRun,
    pub(super) closer: Trigger,
}

pub(super) async fn session_alone() -> Alone {
    let network = Network::new();
    let (acceptor, router) = network.router();
    let LoadedModel { card, bundle, backend, adapters, .. } = model();
    let (engine, run) = crate::engine::spawn(Drive::Thread, Served::from(&card), ROOMY, backend).unwrap();
    // Nothing is ever written there.
    let limits = Limits { slots: 4, bytes: 1 << 20, disk_bytes: 1 << 20 };
    let settings = StoreSettings { limits, directory: "/nonexistent".into() };
    let hello = Hello {
        worker: Name::new("worker").unwrap(),
        incarnation: Incarnation(7),
        build: "test".into(),
        capacity: Capacity { slots: 16, kv_tokens: 8192, groups: 64, adapter_slots: 4, adapter_bytes: 1 << 20 },
        model: card,
        locality: None,
    };
    let (closer, closing) = shoal_common::shutdown::channel();
    let args = SessionArgs {
        router,
        endpoint: quic::worker_endpoint(&network.worker, &network.timers).unwrap(),
        timers: network.timers,
        engine: engine.clone(),
        adapters: AdapterStore::open(settings, adapters).await,
        peers: None,
        offer: Arc::new(Offer { hello, bundle }),
        stages: None,
        closing,
    };
    let (_, session) = SessionActor::spawn(None, SessionActor, args).await.unwrap();
    Alone { acceptor, session, engine, run, closer }
}

impl Link {
    pub(super) async fn open(&self, first: StreamOpen) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        write_frame(&mut send, &first).await.unwrap();
        (send, recv)
    }

    pub(super) async fn submit(&self, submit: Submit) -> (SendStream, RecvStream) {
        self.open(StreamOpen::Group(Box::new(submit))).await
    }

    /// Reads what the worker tells until there is a status like this.
    pub(super) async fn status_where(&mut self, wanted: impl Fn(&Status) -> bool) -> Status {
        loop {
            match read_frame(&mut self.control.1).await.unwrap() {
                WorkerControl::Status(status) if wanted(&status) => return status,
                WorkerControl::Status(_) => {}
                WorkerControl::Adapter(state) => self.note(state),
                WorkerControl::Stages(_) => panic!("the model is whole"),
                WorkerControl::Hello(_) => panic!("it is said once"),
                WorkerControl::Died(_) => panic!("it lives"),
            }
        }
    }

    /// Reads what the worker tells until it has the adapter there.
    pub(super) async fn told_in(&mut self, generation: Generation, tier: AdapterTier) -> AdapterState {
        loop {
            match self.told.get(&generation) {
                Some(state) if state.tier == tier => return state.clone(),
                _ => drop(self.status_where(|_| true).await),
            }
        }
    }

    fn note(&mut self, state: AdapterState) {
        self.told.insert(state.generation, state);
    }

    pub(super) async fn close_code(&self) -> VarInt {
        match self.connection.closed().await {
            ConnectionError::ApplicationClosed(close) => close.error_code,
            other => panic!("{other}"),
        }
    }
}

pub(super) async fn hear(recv: &mut RecvStream) -> Heard {
    let mut heard = Heard::default();
    loop {
        match read_frame::<GroupFrame, _>(recv).await {
            Ok(frame) => heard.note(frame),
            Err(CodecError::Ended) => return heard,
            Err(error) => panic!("{error}"),
        }
    }
}

/// More than the link and the worker hold for a router that does not read: the group is parked, running.
pub(super) fn more_than_is_buffered() -> Submit {
    let mut submit = submission(&[1, 2, 3], 400, 8);
    submit.score_tokens = Some(20);
    submit
}
