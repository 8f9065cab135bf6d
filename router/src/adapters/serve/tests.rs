//! Blobs over real QUIC on loopback: the test is the worker.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use shoal_common::config::Timers;
use shoal_common::ids::{Digest, Name};
use shoal_common::pki::{Authority, Role};
use shoal_common::quic::{self, Acceptor, QuicError};

use super::super::entry::Source;
use super::super::intake::Payload;
use super::*;
use crate::testing::{Fleet, adapter_settings, golden, order};

/// Somebody is always nearer.
#[derive(Debug)]
struct Always;

impl Neighbours for Always {
    fn nearer(&self, _generation: Generation) -> Vec<Name> {
        vec![Name::new("near").unwrap()]
    }
}

struct Scene {
    worker: quinn::Connection,
    registry: Registry,
    digest: Digest,
    data: tempfile::TempDir,
    _endpoints: (quinn::Endpoint, quinn::Endpoint),
}

impl Scene {
    /// A worker and a router that has an adapter.
    async fn new() -> Self {
        let (data, fleet) = (tempfile::tempdir().unwrap(), Arc::new(Fleet::default()));
        fleet.join("tiny");
        let registry = Registry::open(adapter_settings(data.path()), fleet).unwrap();
        let payload = Payload::Directory(golden("tiny/tiny-all"));
        let listing = registry.register(order("a", Source::Api), payload).await.unwrap();
        let digest = listing.version.unwrap().generation.0;

        let name = |text: &str| Name::new(text).unwrap();
        let authority = Authority::create(&name("test")).unwrap();
        // Long enough for a machine that is busy with something else.
        let patient = Duration::from_secs(60);
        let timers = Timers { idle: patient, connect: patient, ..Timers::default() };
        let identity = authority.issue(Role::Router, &name("router")).unwrap();
        let router = quic::router_endpoint((Ipv4Addr::LOCALHOST, 0).into(), &identity, &timers).unwrap();
        let endpoint = quic::worker_endpoint(&authority.issue(Role::Worker, &name("w")).unwrap(), &timers).unwrap();
        let mut acceptor = Acceptor::new(router.clone(), timers);
        let address = router.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(quic::dial(&endpoint, address, &timers), acceptor.next());
        let stock = Stock { registry: registry.clone(), neighbours: Arc::new(Always) };
        tokio::spawn(streams(accepted.unwrap(), stock));
        Self { worker: dialled.unwrap(), registry, digest, data, _endpoints: (router, endpoint) }
    }

    async fn ask_nearer(&self, digest: Digest) -> Nearer {
        let (mut writer, reader) = self.worker.open_bi().await.unwrap();
        codec::write_frame(&mut writer, &WorkerOpen::Nearer(BlobRequest { digest })).await.unwrap();
        FrameReader::new(reader).next().await.unwrap()
    }

    async fn ask(&self, digest: Digest) -> (BlobHeader, Vec<u8>) {
        let (mut writer, reader) = self.worker.open_bi().await.unwrap();
        codec::write_frame(&mut writer, &WorkerOpen::Blob(BlobRequest { digest })).await.unwrap();
        let mut reader = FrameReader::new(reader);
        let header = reader.next().await.unwrap();
        let (mut stream, head) = reader.into_parts();
        let mut bytes = head.to_vec();
        bytes.extend(stream.read_to_end(1 << 20).await.unwrap());
        (header, bytes)
    }
}

#[tokio::test]
async fn a_worker_gets_the_bytes_that_the_generation_names() {
    let scene = Scene::new().await;
    for _ in 0..3 {
        let (header, bytes) = scene.ask(scene.digest).await;
        assert_eq!(header, BlobHeader::Found { len: bytes.len() as u64 });
        assert_eq!(Digest::of(&bytes), scene.digest);
    }
}

#[tokio::test]
async fn a_worker_is_told_who_is_nearer_of_what_is_here_and_gets_it_here_all_the_same() {
    let scene = Scene::new().await;
    let hint = scene.ask_nearer(scene.digest).await;
    assert_eq!(hint.peers, [Name::new("near").unwrap()]);
    let (_, bytes) = scene.ask(scene.digest).await;
    assert_eq!((bytes.len() as u64, Digest::of(&bytes)), (hint.len, scene.digest));
    let unknown = scene.ask_nearer(Digest::of(b"nobody's")).await;
    assert_eq!(unknown, Nearer { len: 0, peers: Vec::new() }, "what was removed does not spread");
}

#[tokio::test]
async fn more_fetches_than_there_are_streams_wait_for_each_other() {
    let scene = Scene::new().await;
    let asked = (0..3 * quic::MAX_FETCHES).map(|_| scene.ask(scene.digest));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|(_, bytes)| Digest::of(bytes) == scene.digest));
}

#[tokio::test]
async fn a_replaced_generation_is_still_served_while_a_request_needs_it() {
    let scene = Scene::new().await;
    let lease = scene.registry.blob(scene.digest).unwrap().lease;
    let payload = Payload::Directory(golden("tiny/tiny-qv"));
    scene.registry.register(order("a", Source::Api), payload).await.unwrap();
    assert_eq!(Digest::of(&scene.ask(scene.digest).await.1), scene.digest);
    drop(lease);
}

#[tokio::test]
async fn what_is_not_here_is_not_found() {
    let scene = Scene::new().await;
    assert_eq!(scene.ask(Digest::of(b"nobody's")).await, (BlobHeader::NotFound, Vec::new()));
    let blob = scene.registry.blob(scene.digest).unwrap().path;
    std::fs::OpenOptions::new().write(true).open(&blob).unwrap().set_len(100).unwrap();
    assert_eq!(scene.ask(scene.digest).await.0, BlobHeader::NotFound, "a truncated blob was sent");
    std::fs::remove_file(blob).unwrap();
    assert_eq!(scene.ask(scene.digest).await.0, BlobHeader::NotFound);
    assert!(scene.data.path().exists());
}

#[tokio::test]
async fn a_stream_that_breaks_the_protocol_ends_the_connection() {
    for frame in [&[5, 0, 0, 0, 9, 9, 9, 9, 9][..], &[255, 255, 255, 255], &[]] {
        let scene = Scene::new().await;
        let (mut writer, _reader) = scene.worker.open_bi().await.unwrap();
        writer.write_all(frame).await.unwrap();
        writer.finish().unwrap();
        let closed = QuicError::from(scene.worker.closed().await);
        assert!(matches!(closed, QuicError::Closed(CloseCode::Protocol)), "{closed}");
    }
}

#[tokio::test]
async fn a_fetch_that_is_given_up_harms_no_other() {
    let scene = Scene::new().await;
    let (mut given_up, _reader) = scene.worker.open_bi().await.unwrap();
    given_up.write_all(&[1]).await.unwrap();
    given_up.reset(0u32.into()).unwrap();
    let (mut stopped, mut reader) = scene.worker.open_bi().await.unwrap();
    let request = WorkerOpen::Blob(BlobRequest { digest: scene.digest });
    codec::write_frame(&mut stopped, &request).await.unwrap();
    reader.stop(0u32.into()).unwrap();
    assert_eq!(Digest::of(&scene.ask(scene.digest).await.1), scene.digest);
}
