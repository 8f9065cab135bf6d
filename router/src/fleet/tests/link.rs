//! A worker's link over real QUIC on loopback: what the worker tells reaches the snapshot, what it shall do reaches the worker.

use std::net::{Ipv4Addr, SocketAddr};

use ractor::Actor;
use shoal_common::config::Timers;
use shoal_common::pki::{Authority, Role};
use shoal_common::quic;
use shoal_common::watch;
use shoal_common::wire::codec::{self, FrameReader};
use shoal_common::wire::hello::{AdapterOrder, RouterControl, WorkerControl};

use super::*;
use crate::fleet::{FleetView, Snapshot};
use crate::supervisor::{RouterActor, RouterArguments, RouterMessage};

#[tokio::test]
async fn adapters_are_told_and_ordered_over_the_control_stream() {
    let authority = Authority::create(&name("test")).unwrap();
    let identity = authority.issue(Role::Router, &name("router")).unwrap();
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let endpoint = quic::router_endpoint(loopback, &identity, &Timers::default()).unwrap();
    let address = endpoint.local_addr().unwrap();
    // The tokenizer is known, so that the worker is not asked for it.
    let models = [(model().card.name.clone(), model())].into();
    let (published, snapshots) = watch::channel(Arc::new(Snapshot { replicas: Vec::new(), models }));
    let mut view = FleetView::new(snapshots);
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

    let identity = authority.issue(Role::Worker, &name("w")).unwrap();
    let endpoint = quic::worker_endpoint(&identity, &Timers::default()).unwrap();
    let connection = quic::dial(&endpoint, address, &Timers::default()).await.unwrap();
    let (mut writer, reader) = connection.open_bi().await.unwrap();
    let mut orders = FrameReader::new(reader);
    let hello = offer("w", 1, &model()).0.hello;
    codec::write_frame(&mut writer, &WorkerControl::Hello(Box::new(hello))).await.unwrap();
    assert!(matches!(orders.next().await.unwrap(), RouterControl::Welcome { .. }));

    let told = adapter(1, AdapterTier::Disk);
    codec::write_frame(&mut writer, &WorkerControl::Adapter(told.clone())).await.unwrap();
    while view.residency(generation(1)).is_empty() {
        assert!(view.changed().await);
    }
    assert_eq!(view.residency(generation(1)), [(name("w"), told)]);

    let pin = AdapterOrder::Pin(generation(1));
    root.cast(RouterMessage::Order { model: Some(model().card.name.clone()), order: pin }).unwrap();
    assert_eq!(orders.next::<RouterControl>().await.unwrap(), RouterControl::Adapter(pin));
    let load = AdapterOrder::Load(generation(2));
    view.now().replicas[0].orders.give(load);
    assert_eq!(orders.next::<RouterControl>().await.unwrap(), RouterControl::Adapter(load));

    root.stop(None);
    ended.await.unwrap();
}
