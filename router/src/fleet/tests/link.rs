//! A worker's link over real QUIC on loopback: what the worker tells reaches the snapshot, what it shall do reaches the worker.

use std::net::{Ipv4Addr, SocketAddr};

use ractor::{Actor, ActorRef};
use shoal_common::config::Timers;
use shoal_common::pki::{Authority, Role};
use shoal_common::quic;
use shoal_common::watch;
use shoal_common::wire::codec::{self, FrameReader};
use shoal_common::wire::hello::{AdapterOrder, RouterControl, WorkerControl};

use super::*;
use crate::fleet::{FleetView, Snapshot};
use crate::supervisor::{RouterActor, RouterArguments, RouterMessage};

/// A router without HTTP, and the authority of its cluster.
struct Rig {
    authority: Authority,
    address: SocketAddr,
    view: FleetView,
    root: ActorRef<RouterMessage>,
    ended: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn start() -> Self {
        let authority = Authority::create(&name("test")).unwrap();
        let identity = authority.issue(Role::Router, &name("router")).unwrap();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = quic::router_endpoint(loopback, &identity, &Timers::default()).unwrap();
        let address = endpoint.local_addr().unwrap();
        // The tokenizer is known, so that the worker is not asked for it.
        let models = [(model().card.name.clone(), model())].into();
        let (published, snapshots) = watch::channel(Arc::new(Snapshot { replicas: Vec::new(), models }));
        let view = FleetView::new(snapshots);
        let operations = crate::operations::Operations::start(name("test"), view.clone());
        let arguments = RouterArguments {
            endpoint,
            timers: Timers::default(),
            published,
            operations,
            adapters: crate::testing::no_adapters(),
            zone: None,
        };
        let (root, ended) = Actor::spawn(None, RouterActor, arguments).await.unwrap();
        Self { authority, address, view, root, ended }
    }

    /// A connection of whoever has the certificate of worker `worker`, and its control stream.
    async fn dial(&self, worker: &str) -> (quinn::Connection, quinn::SendStream, FrameReader<quinn::RecvStream>) {
        let identity = self.authority.issue(Role::Worker, &name(worker)).unwrap();
        let endpoint = quic::worker_endpoint(&identity, &Timers::default()).unwrap();
        let connection = quic::dial(&endpoint, self.address, &Timers::default()).await.unwrap();
        let (writer, reader) = connection.open_bi().await.unwrap();
        (connection, writer, FrameReader::new(reader))
    }

    /// A worker that was welcomed.
    async fn welcome(
        &self,
        worker: &str,
        life: u64,
    ) -> (quinn::Connection, quinn::SendStream, FrameReader<quinn::RecvStream>) {
        let (connection, mut writer, mut orders) = self.dial(worker).await;
        let hello = offer(worker, life, &model()).0.hello;
        codec::write_frame(&mut writer, &WorkerControl::Hello(Box::new(hello))).await.unwrap();
        assert!(matches!(orders.next().await.unwrap(), RouterControl::Welcome { .. }));
        (connection, writer, orders)
    }

    /// What the witness of a worker says, until the router has heard it.
    async fn is_told_of_the_death(&self, worker: &str, life: u64) {
        let (connection, mut writer, _orders) = self.dial(worker).await;
        codec::write_frame(&mut writer, &WorkerControl::Died(Incarnation(life))).await.unwrap();
        connection.closed().await;
    }

    async fn stop(self) {
        self.root.stop(None);
        self.ended.await.unwrap();
    }
}

#[tokio::test]
async fn adapters_are_told_and_ordered_over_the_control_stream() {
    let mut rig = Rig::start().await;
    let (_connection, mut writer, mut orders) = rig.welcome("w", 1).await;

    let told = adapter(1, AdapterTier::Disk);
    codec::write_frame(&mut writer, &WorkerControl::Adapter(told.clone())).await.unwrap();
    while rig.view.residency(generation(1)).is_empty() {
        assert!(rig.view.changed().await);
    }
    assert_eq!(rig.view.residency(generation(1)), [(name("w"), told)]);

    let pin = AdapterOrder::Pin(generation(1));
    rig.root.cast(RouterMessage::Order { model: Some(model().card.name.clone()), order: pin }).unwrap();
    assert_eq!(orders.next::<RouterControl>().await.unwrap(), RouterControl::Adapter(pin));
    let load = AdapterOrder::Load(generation(2));
    rig.view.now().replicas[0].orders.give(load);
    assert_eq!(orders.next::<RouterControl>().await.unwrap(), RouterControl::Adapter(load));
    rig.stop().await;
}

#[tokio::test]
async fn a_worker_whose_witness_tells_of_its_death_is_gone_at_once_and_no_other_worker_or_life_of_it() {
    let mut rig = Rig::start().await;
    let (first, _writer, _orders) = rig.welcome("a", 1).await;
    let (second, _writer, _orders) = rig.welcome("b", 1).await;
    rig.is_told_of_the_death("a", 2).await;
    assert!(first.close_reason().is_none(), "another life of it has died");
    let lost = rig.view.now().replicas.iter().find(|replica| replica.worker == name("a")).cloned().unwrap();
    rig.is_told_of_the_death("a", 1).await;
    assert!(lost.vital.is_over() && lost.line.is_closed());
    while rig.view.now().replicas.len() > 1 {
        assert!(rig.view.changed().await);
    }
    assert_eq!(rig.view.now().replicas[0].worker, name("b"));
    assert!(second.close_reason().is_none() && !rig.view.now().replicas[0].vital.is_over());
    rig.stop().await;
}
