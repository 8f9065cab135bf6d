//! Promises of the transport, over real sockets on loopback.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use quinn::{ConnectionError, Endpoint, VarInt};

use super::settings::{client_tls, client_with, server_tls, server_with};
use super::*;
use crate::pki::Authority;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Long enough for a machine that is busy with something else; no test waits for one to pass.
const TIMERS: Timers = Timers {
    keep_alive: Duration::from_millis(250),
    idle: Duration::from_secs(30),
    connect: Duration::from_secs(30),
    stall: Duration::from_secs(30),
    drain: Duration::from_secs(30),
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn authority() -> Authority {
    Authority::create(&name("reef")).unwrap()
}

fn router(identity: &Identity) -> (Endpoint, SocketAddr) {
    let endpoint = router_endpoint(LOOPBACK, identity, &TIMERS).unwrap();
    let addr = endpoint.local_addr().unwrap();
    (endpoint, addr)
}

/// A worker's connection to a router, seen from both ends; the endpoints keep it alive.
struct Pair {
    worker: Connection,
    router: Connection,
    _endpoints: (Endpoint, Acceptor),
}

async fn pair(worker_name: &str) -> Pair {
    let authority = authority();
    let (endpoint, addr) = router(&authority.issue(Role::Router, &name("r")).unwrap());
    let dialling = worker_endpoint(&authority.issue(Role::Worker, &name(worker_name)).unwrap(), &TIMERS).unwrap();
    let mut acceptor = Acceptor::new(endpoint, TIMERS);
    let (worker, router) = tokio::join!(dial(&dialling, addr, &TIMERS), acceptor.next());
    Pair { worker: worker.unwrap(), router: router.unwrap(), _endpoints: (dialling, acceptor) }
}

/// What a dialling `worker` ends up with, and whether the router let it in. In TLS 1.3 a client learns after its own
/// handshake that the server refused it, hence the wait for the close.
async fn attempt(router_id: &Identity, worker: &Endpoint) -> (QuicError, bool) {
    let (endpoint, addr) = router(router_id);
    let mut acceptor = Acceptor::new(endpoint.clone(), TIMERS);
    let accepting = tokio::spawn(async move { acceptor.next().await.is_some() });
    let error = match dial(worker, addr, &TIMERS).await {
        Ok(connection) => connection.closed().await.into(),
        Err(error) => error,
    };
    endpoint.close(CloseCode::Shutdown.into(), b"");
    (error, accepting.await.unwrap())
}

fn assert_refused(outcome: (QuicError, bool), expected_by: RefusedBy, expected_why: Rejection) {
    let (error, admitted) = outcome;
    assert!(!admitted, "the router admitted it");
    match error {
        QuicError::Handshake { by, why, .. } => assert_eq!((by, why), (expected_by, expected_why)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_router_knows_the_worker_by_name_and_bytes_flow_both_ways() {
    let Pair { worker: dialled, router: accepted, _endpoints } = pair("Org/w_1.x").await;
    assert_eq!(peer_worker(&accepted).unwrap(), name("Org/w_1.x"));
    assert!(matches!(peer_worker(&dialled), Err(QuicError::Identity(_))), "a router is no worker");

    let (mut send, mut recv) = dialled.open_bi().await.unwrap();
    send.write_all(b"hello").await.unwrap();
    send.finish().unwrap();
    let (mut answer, mut asked) = accepted.accept_bi().await.unwrap();
    assert_eq!(asked.read_to_end(16).await.unwrap(), b"hello");
    answer.write_all(b"welcome").await.unwrap();
    answer.finish().unwrap();
    assert_eq!(recv.read_to_end(16).await.unwrap(), b"welcome");

    assert!(dialled.max_datagram_size().is_none(), "datagrams are off");
    CloseCode::Replaced.close(&accepted);
    assert!(matches!(dialled.closed().await.into(), QuicError::Closed(CloseCode::Replaced)));
}

#[tokio::test]
async fn a_worker_certificate_cannot_act_as_router() {
    let authority = authority();
    let impostor = authority.issue(Role::Worker, &name("impostor")).unwrap();
    let worker = worker_endpoint(&authority.issue(Role::Worker, &name("w")).unwrap(), &TIMERS).unwrap();
    assert!(matches!(router_endpoint(LOOPBACK, &impostor, &TIMERS), Err(QuicError::Identity(_))));

    // An impostor does not ask our own constructor for leave.
    let config = server_with(server_tls(&impostor).unwrap(), &TIMERS).unwrap();
    let endpoint = Endpoint::server(config, LOOPBACK).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let mut acceptor = Acceptor::new(endpoint, TIMERS);
    let refused = tokio::select! {
        dialled = dial(&worker, addr, &TIMERS) => dialled.unwrap_err(),
        admitted = acceptor.next() => panic!("{admitted:?} came through"),
    };
    assert!(
        matches!(refused, QuicError::Handshake { by: RefusedBy::Us, why: Rejection::WrongRole, .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_router_certificate_cannot_act_as_worker() {
    let authority = authority();
    let id = authority.issue(Role::Router, &name("r")).unwrap();
    assert!(matches!(worker_endpoint(&id, &TIMERS), Err(QuicError::Identity(_))));
    let impostor = client_endpoint(client_tls(&id).unwrap());
    assert_refused(attempt(&id, &impostor).await, RefusedBy::Peer, Rejection::WrongRole);
}

fn client_endpoint(tls: rustls::ClientConfig) -> Endpoint {
    let mut endpoint = Endpoint::client(LOOPBACK).unwrap();
    endpoint.set_default_client_config(client_with(tls, &TIMERS).unwrap());
    endpoint
}

#[tokio::test]
async fn a_router_refuses_a_client_without_certificate() {
    let authority = authority();
    let id = authority.issue(Role::Router, &name("r")).unwrap();
    let mut tls = client_tls(&authority.issue(Role::Worker, &name("w")).unwrap()).unwrap();
    tls.client_auth_cert_resolver = Arc::new(Nobody);
    assert_refused(attempt(&id, &client_endpoint(tls)).await, RefusedBy::Peer, Rejection::NoCertificate);
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused() {
    let (ours, theirs) = (authority(), authority());
    let id = ours.issue(Role::Router, &name("r")).unwrap();
    // A stranger that believes nobody's certificates but its own authority's refuses the router ...
    let stranger = theirs.issue(Role::Worker, &name("w")).unwrap();
    let dialling = worker_endpoint(&stranger, &TIMERS).unwrap();
    assert_refused(attempt(&id, &dialling).await, RefusedBy::Us, Rejection::OtherCluster);
    // ... and one that was given our authority's certificate is refused by the router.
    let mut tls = client_tls(&ours.issue(Role::Worker, &name("w")).unwrap()).unwrap();
    let provider = crate::pki::provider();
    let own = rustls::sign::CertifiedKey::from_der(stranger.chain(), stranger.key().into(), &provider).unwrap();
    tls.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(own));
    assert_refused(attempt(&id, &client_endpoint(tls)).await, RefusedBy::Peer, Rejection::OtherCluster);
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = authority();
    let long_ago = SystemTime::now() - Duration::from_secs(826 * 86_400);
    let valid = |role| authority.issue(role, &name("x")).unwrap();
    let expired = |role| authority.issue_at(role, &name("x"), long_ago).unwrap();

    let worker = worker_endpoint(&expired(Role::Worker), &TIMERS).unwrap();
    assert_refused(attempt(&valid(Role::Router), &worker).await, RefusedBy::Peer, Rejection::Expired);
    let worker = worker_endpoint(&valid(Role::Worker), &TIMERS).unwrap();
    assert_refused(attempt(&expired(Role::Router), &worker).await, RefusedBy::Us, Rejection::Expired);
}

#[tokio::test]
async fn alpn_mismatch_is_refused() {
    let authority = authority();
    let id = authority.issue(Role::Router, &name("r")).unwrap();
    for offered in [vec![b"shoal/0".to_vec()], vec![b"h3".to_vec(), b"shoal".to_vec()], vec![]] {
        let mut tls = client_tls(&authority.issue(Role::Worker, &name("w")).unwrap()).unwrap();
        tls.alpn_protocols = offered;
        assert_refused(attempt(&id, &client_endpoint(tls)).await, RefusedBy::Peer, Rejection::Version);
    }
}

/// What the two ends of a connection speak, between a router and a worker of such versions.
async fn spoken(router_has: Protocol, worker_has: Protocol) -> Option<[Option<ProtocolVersion>; 2]> {
    let authority = authority();
    let mut tls = server_tls(&authority.issue(Role::Router, &name("r")).unwrap()).unwrap();
    tls.alpn_protocols = router_has.alpn();
    let endpoint = Endpoint::server(server_with(tls, &TIMERS).unwrap(), LOOPBACK).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let mut tls = client_tls(&authority.issue(Role::Worker, &name("w")).unwrap()).unwrap();
    tls.alpn_protocols = worker_has.alpn();
    let dialling = client_endpoint(tls);
    let mut acceptor = Acceptor::new(endpoint, TIMERS);
    match tokio::join!(dial(&dialling, addr, &TIMERS), acceptor.next_admission()) {
        (Ok(dialled), Some(Admission::Worker(accepted))) => {
            Some([router_has.picked(&accepted), worker_has.picked(&dialled)])
        }
        (Err(dialled), Some(Admission::Refused { error: accepted, .. })) => {
            for error in [dialled, accepted] {
                assert!(matches!(error, QuicError::Handshake { why: Rejection::Version, .. }), "{error:?}");
            }
            None
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_sides_speak_the_highest_version_that_both_know_or_not_at_all() {
    const V: [ProtocolVersion; 3] = [ProtocolVersion(4), ProtocolVersion(3), ProtocolVersion(2)];
    let of = |versions| Protocol::new("shoal", versions);
    let (both, new, old, older) = (of(&V[..2]), of(&V[..1]), of(&V[1..2]), of(&V[1..]));
    for (router, worker, expected) in [
        (both, both, Some(V[0])),
        (both, old, Some(V[1])),
        (old, both, Some(V[1])),
        (both, older, Some(V[1])),
        (older, both, Some(V[1])),
        (new, both, Some(V[0])),
        (new, old, None),
        (old, new, None),
        (new, older, None),
    ] {
        let picked = spoken(router, worker).await;
        assert_eq!(picked, expected.map(|version| [Some(version); 2]), "a router of {router}, a worker of {worker}");
    }
}

#[tokio::test]
async fn a_connection_of_this_version_says_so_and_speaks_no_other_protocol() {
    let Pair { worker, router, _endpoints } = pair("w").await;
    for end in [&worker, &router] {
        assert_eq!(Protocol::ROUTER.picked(end), Some(Protocol::ROUTER.newest()));
        assert_eq!(Protocol::STAGE.picked(end), None);
    }
    assert_eq!(Protocol::ROUTER.spelled(Protocol::ROUTER.newest()), "shoal/4");
    assert_eq!(Protocol::STAGE.to_string(), "shoal-stage/1");
}

#[test]
fn versions_are_listed_once_each_with_the_newest_first() {
    for protocol in [Protocol::ROUTER, Protocol::STAGE] {
        let listed = protocol.alpn();
        let mut sorted = listed.clone();
        sorted.sort_by_key(|text| std::cmp::Reverse((text.len(), text.clone())));
        sorted.dedup();
        assert_eq!(listed, sorted, "{protocol}");
        assert!(!listed.is_empty());
    }
}

#[tokio::test]
async fn a_router_sends_every_unproven_address_a_retry() {
    let authority = authority();
    let (endpoint, addr) = router(&authority.issue(Role::Router, &name("r")).unwrap());
    let worker = worker_endpoint(&authority.issue(Role::Worker, &name("w")).unwrap(), &TIMERS).unwrap();
    let dialling = worker.connect(addr, Role::Router.server_name()).unwrap();
    let first = endpoint.accept().await.unwrap();
    assert!(!first.remote_address_validated());
    first.retry().unwrap();
    let second = endpoint.accept().await.unwrap();
    assert!(second.remote_address_validated());
    let (accepted, dialled) = tokio::join!(async { second.accept().unwrap().await }, dialling);
    accepted.unwrap();
    dialled.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_stuck_in_its_handshake_holds_up_no_other() {
    let authority = authority();
    let (endpoint, addr) = router(&authority.issue(Role::Router, &name("r")).unwrap());
    let (slow, quick) =
        (authority.issue(Role::Worker, &name("slow")).unwrap(), authority.issue(Role::Worker, &name("quick")).unwrap());
    let (release, stuck) = std::sync::mpsc::sync_channel::<()>(0);
    let (reached, mut reaching) = tokio::sync::mpsc::channel(1);
    let mut tls = client_tls(&slow).unwrap();
    tls.client_auth_cert_resolver = Arc::new(Stuck { reached, stuck: stuck.into() });
    let slow = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { dial(&client_endpoint(tls), addr, &TIMERS).await.map(drop) })
    });
    let mut acceptor = Acceptor::new(endpoint, TIMERS);
    tokio::select! {
        at = reaching.recv() => at.unwrap(),
        early = acceptor.next() => panic!("{early:?} has shown no certificate yet"),
    }
    let worker = worker_endpoint(&quick, &TIMERS).unwrap();
    let (dialled, accepted) = tokio::join!(dial(&worker, addr, &TIMERS), acceptor.next());
    dialled.unwrap();
    assert_eq!(peer_worker(&accepted.unwrap()).unwrap(), name("quick"));
    drop(release);
    // It shows no certificate in the end; whatever it is told, its thread comes back.
    let _ = slow.join().unwrap();
}

/// Stops its thread in the middle of the handshake, after the router has sent its certificate.
#[derive(Debug)]
struct Stuck {
    reached: tokio::sync::mpsc::Sender<()>,
    stuck: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl rustls::client::ResolvesClientCert for Stuck {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.reached.try_send(()).unwrap();
        self.stuck.lock().unwrap().recv().unwrap_err();
        None
    }
    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_head_reaches_the_stage_it_means_and_no_other() {
    let authority = authority();
    let issue = |role, text| authority.issue(role, &name(text)).unwrap();
    let stage = stage_endpoint(LOOPBACK, &issue(Role::Worker, "beta"), &TIMERS).unwrap();
    let (head, addr) = (issue(Role::Worker, "alpha"), stage.local_addr().unwrap());
    let dialling = worker_endpoint(&head, &TIMERS).unwrap();
    let mut acceptor = Acceptor::new(stage, TIMERS);
    let beta = name("beta");
    let (dialled, accepted) = tokio::join!(dial_stage(&dialling, (addr, &beta), &head, &TIMERS), acceptor.next());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!(peer_worker(&dialled).unwrap(), name("beta"));
    assert_eq!(peer_worker(&accepted).unwrap(), name("alpha"));
    let accepting = tokio::spawn(async move { acceptor.next().await });
    let gamma = name("gamma");
    let wrong = dial_stage(&dialling, (addr, &gamma), &head, &TIMERS).await;
    assert!(matches!(wrong, Err(QuicError::Identity(CertificateFault::WrongName { .. }))), "{wrong:?}");
    accepting.abort();
}

#[tokio::test]
async fn a_router_and_a_stage_do_not_take_each_other_for_what_they_are_not() {
    let authority = authority();
    let issue = |role, text| authority.issue(role, &name(text)).unwrap();
    let head = issue(Role::Worker, "alpha");
    let dialling = worker_endpoint(&head, &TIMERS).unwrap();
    let (router, router_addr) = router(&issue(Role::Router, "r"));
    let stage = stage_endpoint(LOOPBACK, &issue(Role::Worker, "beta"), &TIMERS).unwrap();
    let stage_addr = stage.local_addr().unwrap();
    let accepting = [router, stage].map(|endpoint| {
        let mut acceptor = Acceptor::new(endpoint, TIMERS);
        tokio::spawn(async move { acceptor.next().await })
    });
    let beta = name("beta");
    assert!(dial_stage(&dialling, (router_addr, &beta), &head, &TIMERS).await.is_err(), "a router passed for a stage");
    assert!(dial(&dialling, stage_addr, &TIMERS).await.is_err(), "a stage passed for a router");
    accepting.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(stage_endpoint(LOOPBACK, &issue(Role::Router, "s"), &TIMERS).is_err(), "a router hosts no stage");
}

#[tokio::test]
async fn a_head_hears_at_once_of_a_stage_that_died_from_whoever_has_its_socket_and_its_key() {
    let authority = authority();
    let issue = |text| authority.issue(Role::Worker, &name(text)).unwrap();
    let (head, beta) = (issue("alpha"), issue("beta"));
    for knows_the_key in [false, true] {
        let (socket, key) = (stage_socket(LOOPBACK).unwrap(), ResetKey::draw());
        let (left_behind, addr) = (socket.try_clone().unwrap(), socket.local_addr().unwrap());
        let dialling = worker_endpoint(&head, &TIMERS).unwrap();
        let (accepted, has_accepted) = tokio::sync::oneshot::channel();
        let (kill, killed) = tokio::sync::oneshot::channel::<()>();
        let (key_of_stage, beta) = (key.clone(), beta.clone());
        let life = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let connection = runtime.block_on(async {
                let stage = stage_endpoint_on(socket, &key_of_stage, &beta, &TIMERS).unwrap();
                let connection = Acceptor::new(stage, TIMERS).next().await.unwrap();
                accepted.send(()).unwrap();
                killed.await.unwrap_err();
                connection
            });
            // Nothing moves any more, so that it can say no farewell.
            drop(runtime);
            drop(connection);
        });
        let connection = dial_stage(&dialling, (addr, &name("beta")), &head, &TIMERS).await.unwrap();
        has_accepted.await.unwrap();
        drop(kill);
        life.join().unwrap();
        let key = if knows_the_key { key } else { ResetKey::draw() };
        let ended = tokio::select! {
            ended = connection.closed() => Some(ended),
            answered = reset_connections(left_behind, &key, 8 * TIMERS.keep_alive) => answered.map(|()| None).unwrap(),
        };
        match ended {
            Some(error) => assert!(knows_the_key && matches!(error, ConnectionError::Reset), "{error:?}"),
            None => assert!(!knows_the_key, "the head was not told"),
        }
    }
}

#[tokio::test]
async fn an_acceptor_ends_with_its_endpoint() {
    let (endpoint, _) = router(&authority().issue(Role::Router, &name("r")).unwrap());
    let mut acceptor = Acceptor::new(endpoint.clone(), TIMERS);
    endpoint.close(CloseCode::Shutdown.into(), b"");
    assert!(acceptor.next().await.is_none());
    assert!(acceptor.next().await.is_none());
}

#[tokio::test]
async fn a_peer_that_opens_more_streams_than_allowed_waits() {
    let Pair { worker, router, _endpoints } = pair("w").await;
    let mut open = Vec::new();
    for _ in 0..MAX_CONTROL_STREAMS {
        open.push(worker.open_bi().await.unwrap());
    }
    let mut another = Box::pin(worker.open_bi());
    assert!(is_pending(&mut another), "one stream more was allowed");
    let mut uni = Box::pin(router.open_uni());
    assert!(is_pending(&mut uni), "unidirectional streams are not used");
}

#[tokio::test]
async fn streams_that_nobody_reads_take_no_credit_from_their_neighbours() {
    let Pair { worker, router, _endpoints } = pair("w").await;
    // More in all than the 8 MiB that would do for a connection whose streams are read at once.
    let full = vec![7; 64 << 10];
    let mut unread = Vec::new();
    for _ in 0..160 {
        let (mut ask, answer) = router.open_bi().await.unwrap();
        ask.write_all(b"?").await.unwrap();
        let (mut send, _) = worker.accept_bi().await.unwrap();
        send.write_all(&full).await.unwrap();
        assert!(is_pending(&mut Box::pin(send.write(b"more"))), "a stream holds 64 KiB and not more");
        unread.push((ask, answer, send));
    }
    let (mut ask, mut answer) = router.open_bi().await.unwrap();
    ask.write_all(b"?").await.unwrap();
    let (mut send, _) = worker.accept_bi().await.unwrap();
    send.write_all(b"through").await.unwrap();
    send.finish().unwrap();
    assert_eq!(answer.read_to_end(16).await.unwrap(), b"through");
}

fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut context).is_pending()
}

#[tokio::test]
async fn nobody_at_the_address_is_a_timeout() {
    let authority = authority();
    let worker = worker_endpoint(&authority.issue(Role::Worker, &name("w")).unwrap(), &TIMERS).unwrap();
    let silent = UdpSocket::bind(LOOPBACK).unwrap();
    let short = Timers { connect: Duration::from_millis(50), ..TIMERS };
    let error = dial(&worker, silent.local_addr().unwrap(), &short).await.unwrap_err();
    assert!(matches!(error, QuicError::Timeout(after) if after == short.connect), "{error:?}");
}

#[test]
fn a_close_code_is_known_by_its_number_and_no_other_is() {
    for (number, code) in [
        (0, CloseCode::Shutdown),
        (1, CloseCode::Refused),
        (2, CloseCode::Protocol),
        (3, CloseCode::Replaced),
        (4, CloseCode::Internal),
        (5, CloseCode::Cancelled),
    ] {
        assert_eq!(VarInt::from(code), VarInt::from_u32(number));
        assert_eq!(CloseCode::from_code(VarInt::from_u32(number)), Some(code));
    }
    assert_eq!(CloseCode::from_code(VarInt::from_u32(6)), None);
    assert!(matches!(ConnectionError::TimedOut.into(), QuicError::Lost(ConnectionError::TimedOut)));
}

#[tokio::test]
async fn a_refused_handshake_is_told_with_its_address_and_its_reason() {
    let authority = authority();
    let (endpoint, addr) = router(&authority.issue(Role::Router, &name("r")).unwrap());
    let mut tls = client_tls(&authority.issue(Role::Worker, &name("w")).unwrap()).unwrap();
    tls.alpn_protocols = vec![b"shoal/1".to_vec()];
    let old = client_endpoint(tls);
    let mut acceptor = Acceptor::new(endpoint, TIMERS);
    let (dialled, admission) = tokio::join!(dial(&old, addr, &TIMERS), acceptor.next_admission());
    let Some(Admission::Refused { peer, error }) = admission else { panic!("{admission:?}") };
    assert_eq!(peer, old.local_addr().unwrap());
    for error in [error, dialled.unwrap_err()] {
        assert!(matches!(error, QuicError::Handshake { why: Rejection::Version, .. }), "{error:?}");
        assert!(error.advice().is_some_and(|advice| advice.starts_with("run the same version of shoal on both sides")));
        assert!(error.to_string().contains("this side speaks shoal/4 with workers"), "{error}");
    }
}
