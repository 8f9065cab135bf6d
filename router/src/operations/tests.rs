//! What an operator sees of a whole router, over real sockets, with workers that the test plays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use serde_json::{Value, json};
use shoal_common::config::Timers;
use shoal_common::ids::{Digest, Incarnation, Name};
use shoal_common::pki::{Authority, Identity, Role};
use shoal_common::quic::{self, CloseCode, QuicError, RefusedBy, Rejection};
use shoal_common::shutdown::{self, Trigger};
use shoal_common::wire::blob::BlobHeader;
use shoal_common::wire::codec::{self, read_frame, write_frame};
use shoal_common::wire::hello::{
    Capacity, Hello, ModelCard, Refusal, RouterControl, Status, WorkerControl, WorkerState,
};
use shoal_common::wire::message::StreamOpen;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::incidents::{Cause, Event, Incident, Incidents};
use crate::link::LinkError;
use crate::testing::{bundle, model, settings};

/// A router that serves, and the authority of its cluster.
struct Stage {
    authority: Authority,
    http: SocketAddr,
    quic: SocketAddr,
    _running: Trigger,
    /// A directory that no other router has: it is locked.
    _data: tempfile::TempDir,
}

/// A worker that the test plays, as far as its answer to the hello.
struct Played {
    connection: quinn::Connection,
    control: (SendStream, RecvStream),
    answer: RouterControl,
    _endpoint: quinn::Endpoint,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn card() -> ModelCard {
    ModelCard { tokenizer: Digest::of(&codec::encode(&bundle()).unwrap()), ..model().card.clone() }
}

fn hello(worker: &str, incarnation: u64) -> Hello {
    let capacity = Capacity { slots: 8, kv_tokens: 640, groups: 9, adapter_slots: 4, adapter_bytes: 1 << 20 };
    Hello {
        worker: name(worker),
        incarnation: Incarnation(incarnation),
        build: "played".to_owned(),
        capacity,
        model: card(),
        locality: None,
    }
}

fn status(state: WorkerState, progress: u64) -> Status {
    Status {
        state,
        progress,
        running: 3,
        waiting: 2,
        queued_tokens: 50,
        kv_used: 96,
        tokens_per_second: 70,
        looked_up_tokens: 5,
        cached_tokens: 4,
        preemptions: 1,
    }
}

impl Stage {
    async fn new() -> Self {
        let authority = Authority::create(&name("test")).unwrap();
        let identity = authority.issue(Role::Router, &name("router")).unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut settings = settings();
        data.path().clone_into(&mut settings.router.data_dir);
        let bound = crate::bind(settings, identity).await.unwrap();
        let (http, quic) = (bound.http_addr(), bound.quic_addr());
        let (running, shutdown) = shutdown::channel();
        tokio::spawn(bound.serve(shutdown));
        Self { authority, http, quic, _running: running, _data: data }
    }

    fn identity(&self, worker: &str) -> Identity {
        self.authority.issue(Role::Worker, &name(worker)).unwrap()
    }

    /// A worker that says `hello` under the certificate of the same name.
    async fn worker(&self, hello: Hello) -> Played {
        let identity = self.identity(hello.worker.as_str());
        self.played(identity, hello).await
    }

    async fn played(&self, identity: Identity, hello: Hello) -> Played {
        let endpoint = quic::worker_endpoint(&identity, &Timers::default()).unwrap();
        let connection = quic::dial(&endpoint, self.quic, &Timers::default()).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        write_frame(&mut send, &WorkerControl::Hello(Box::new(hello))).await.unwrap();
        let serving = connection.clone();
        let blobs = tokio::spawn(async move { serve_tokenizers(serving).await });
        let answer = read_frame(&mut recv).await.unwrap();
        blobs.abort();
        Played { connection, control: (send, recv), answer, _endpoint: endpoint }
    }

    async fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn cluster(&self) -> Value {
        let (code, document) = self.ask("GET", "/v1/cluster").await;
        assert_eq!(code, 200, "{document}");
        document
    }

    /// The document, once it is as `wanted`.
    async fn cluster_where(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let document = self.cluster().await;
            if wanted(&document) {
                return document;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Answers a router that does not know the tokenizer yet.
async fn serve_tokenizers(connection: quinn::Connection) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let Ok(StreamOpen::Blob(_)) = read_frame(&mut recv).await else { return };
        let bytes = codec::encode(&bundle()).unwrap();
        write_frame(&mut send, &BlobHeader::Found { len: bytes.len() as u64 }).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
    }
}

impl Played {
    async fn told(&mut self) -> RouterControl {
        read_frame(&mut self.control.1).await.unwrap()
    }

    async fn tell(&mut self, status: Status) {
        write_frame(&mut self.control.0, &WorkerControl::Status(status)).await.unwrap();
    }

    /// Tells its load as a worker does, for good.
    async fn lives(&mut self) {
        loop {
            self.tell(status(WorkerState::Ready, 1)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn state(document: &Value) -> &Value {
    &document["workers"][0]["state"]
}

#[tokio::test]
async fn a_worker_is_shown_with_what_it_hosts_and_how_it_does() {
    let stage = Stage::new().await;
    let mut alpha = stage.worker(hello("org/alpha", 7)).await;
    assert!(matches!(alpha.answer, RouterControl::Welcome { .. }), "{:?}", alpha.answer);
    let before = stage.cluster_where(|document| document["workers"][0].is_object()).await;
    assert_eq!((state(&before), &before["workers"][0]["load"]), (&json!("joining"), &Value::Null));
    alpha.tell(status(WorkerState::Ready, 5)).await;
    let document = stage.cluster_where(|document| document["workers"][0]["load"].is_object()).await;
    let worker = &document["workers"][0];
    assert_eq!((&worker["name"], &worker["incarnation"]), (&json!("org/alpha"), &json!("0000000000000007")));
    assert_eq!((&worker["state"], &worker["build"]), (&json!("ready"), &json!("played")));
    assert!(worker["address"].as_str().unwrap().contains("127.0.0.1:"), "{worker}");
    assert_eq!(
        (&worker["model"]["layers"], &worker["model"]["weights"]),
        (&json!([0, 4]), &json!(card().weights.to_string()))
    );
    assert_eq!((&worker["load"]["running"], &worker["load"]["kv_used"]), (&json!(3), &json!(96)));
    assert_eq!((&worker["capacity"]["kv_tokens"], &worker["last_error"]), (&json!(640), &Value::Null));
    let models = &document["models"];
    assert_eq!(
        (&models[0]["name"], &models[0]["workers"], &models[0]["ready"]),
        (&json!("tiny"), &json!(1), &json!(1))
    );
    assert_eq!((&document["name"], &document["router"]["protocol"]), (&json!("test"), &json!("shoal/4")));
}

#[tokio::test]
async fn a_drain_is_told_and_shown_and_taken_back() {
    let stage = Stage::new().await;
    let mut alpha = stage.worker(hello("org/alpha", 1)).await;
    alpha.tell(status(WorkerState::Ready, 1)).await;
    let (code, ordered) = stage.ask("POST", "/v1/cluster/workers/org%2Falpha/drain").await;
    assert_eq!((code, &ordered["worker"]["drain_ordered"]), (200, &json!(true)), "{ordered}");
    assert_eq!(ordered["worker"]["state"], "draining", "it has not said that it drains");
    assert_eq!(alpha.told().await, RouterControl::Drain);
    alpha.tell(status(WorkerState::Draining, 2)).await;
    let document = stage.cluster_where(|document| state(document) == "drained").await;
    assert_eq!(document["models"][0]["ready"], 0);
    assert_eq!(stage.ask("POST", "/v1/cluster/workers/org%2Falpha/undrain").await.0, 200);
    assert_eq!(alpha.told().await, RouterControl::Undrain);
    alpha.tell(status(WorkerState::Ready, 3)).await;
    stage.cluster_where(|document| state(document) == "ready").await;
}

#[tokio::test]
async fn a_drained_worker_that_comes_back_is_told_again_and_its_next_life_is_not() {
    let stage = Stage::new().await;
    let alpha = stage.worker(hello("alpha", 1)).await;
    stage.cluster_where(|document| document["workers"][0].is_object()).await;
    assert_eq!(stage.ask("POST", "/v1/cluster/workers/alpha/drain").await.0, 200);
    CloseCode::Internal.close(&alpha.connection);
    let mut back = stage.worker(hello("alpha", 1)).await;
    assert_eq!(back.told().await, RouterControl::Drain);
    CloseCode::Shutdown.close(&back.connection);
    stage.cluster_where(|document| document["workers"] == json!([])).await;
    let _next = stage.worker(hello("alpha", 2)).await;
    let document = stage.cluster_where(|document| document["workers"][0].is_object()).await;
    assert_eq!((state(&document), &document["workers"][0]["drain_ordered"]), (&json!("joining"), &json!(false)));
}

#[tokio::test]
async fn who_is_not_there_cannot_be_drained_and_the_answer_lists_who_is() {
    let stage = Stage::new().await;
    let _alpha = stage.worker(hello("alpha", 1)).await;
    stage.cluster_where(|document| document["workers"][0].is_object()).await;
    let (code, error) = stage.ask("POST", "/v1/cluster/workers/beta/drain").await;
    assert_eq!((code, &error["code"]), (404, &json!("worker_not_found")));
    assert_eq!(error["message"], "no worker 'beta' is connected to this router; connected: alpha");
    assert_eq!(stage.ask("POST", "/v1/cluster/workers/..%2Falpha/drain").await.0, 404);
    assert_eq!(stage.ask("GET", "/v1/cluster/workers/alpha/drain").await.0, 405);
}

#[tokio::test]
async fn a_refused_worker_is_shown_with_the_reason_and_what_to_do() {
    let stage = Stage::new().await;
    let mut alpha = stage.worker(hello("alpha", 1)).await;
    alpha.tell(status(WorkerState::Ready, 1)).await;
    let twin = tokio::select! {
        twin = stage.worker(hello("alpha", 2)) => twin,
        () = alpha.lives() => unreachable!("it never ends"),
    };
    assert_eq!(twin.answer, RouterControl::Refused(Refusal::DuplicateName));
    let mut other = hello("beta", 3);
    other.model.weights = Digest::of(b"other weights");
    other.model.fingerprint =
        shoal_common::fingerprint::Fingerprint::new(other.model.weights, None, other.model.tokenizer, "test");
    let beta = stage.worker(other).await;
    assert!(matches!(beta.answer, RouterControl::Refused(Refusal::ModelMismatch { .. })), "{:?}", beta.answer);
    let liar = stage.played(stage.identity("gamma"), hello("delta", 4)).await;
    assert_eq!(liar.answer, RouterControl::Refused(Refusal::WrongCertificate));

    let document = stage.cluster_where(|document| document["incidents"].as_array().unwrap().len() == 3).await;
    let seen = |worker: &str| {
        let of = |incident: &&Value| incident["worker"] == worker && incident["event"] == "refused";
        document["incidents"].as_array().unwrap().iter().find(of).unwrap().clone()
    };
    for (worker, cause) in [("alpha", "duplicate_name"), ("beta", "model_mismatch"), ("gamma", "certificate")] {
        assert_eq!(seen(worker)["cause"], cause, "{document}");
        assert!(seen(worker)["advice"].is_string());
    }
    assert!(seen("beta")["why"].as_str().unwrap().contains(&Digest::of(b"other weights").to_string()));
    assert_eq!(document["workers"].as_array().unwrap().len(), 1, "one of them was taken");
    assert_eq!(document["workers"][0]["last_error"], seen("alpha"));
}

#[tokio::test]
async fn a_stranger_s_handshake_is_shown_by_its_address() {
    let stage = Stage::new().await;
    // It knows the router's authority and was issued by another: what happens when a certificate is copied wrongly.
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    stage.identity("w").save(ours.path()).unwrap();
    let foreign = Authority::create(&name("test")).unwrap();
    foreign.issue(Role::Worker, &name("w")).unwrap().save(theirs.path()).unwrap();
    let roots = |dir: &tempfile::TempDir| std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    std::fs::write(theirs.path().join("ca.pem"), roots(&theirs) + &roots(&ours)).unwrap();
    let identity = Identity::load(theirs.path(), &name("w"), Role::Worker).unwrap();
    let endpoint = quic::worker_endpoint(&identity, &Timers::default()).unwrap();
    for _ in 0..2 {
        let end: QuicError = match quic::dial(&endpoint, stage.quic, &Timers::default()).await {
            Ok(connection) => connection.closed().await.into(),
            Err(error) => error,
        };
        let by_router = matches!(end, QuicError::Handshake { by: RefusedBy::Peer, why: Rejection::OtherCluster, .. });
        assert!(by_router && end.advice().is_some(), "{end:?}");
    }
    let document = stage.cluster_where(|document| document["incidents"][0]["times"] == 2).await;
    let incident = &document["incidents"][0];
    assert_eq!((&incident["cause"], &incident["worker"]), (&json!("certificate"), &Value::Null));
    assert!(incident["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{incident}");
}

#[tokio::test]
async fn a_worker_that_left_is_remembered_with_why() {
    let stage = Stage::new().await;
    let _alpha = stage.worker(hello("alpha", 1)).await;
    let beta = stage.worker(hello("beta", 2)).await;
    let mut gamma = stage.worker(hello("gamma", 3)).await;
    CloseCode::Shutdown.close(&beta.connection);
    gamma.control.0.write_all(&[0xff; 8]).await.unwrap();
    let document = stage.cluster_where(|document| document["incidents"].as_array().unwrap().len() == 2).await;
    let mut causes: Vec<_> = document["incidents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["worker"].as_str().unwrap(), one["event"].as_str().unwrap(), one["cause"].as_str().unwrap()))
        .collect();
    causes.sort_unstable();
    assert_eq!(causes, [("beta", "lost", "shutdown"), ("gamma", "lost", "protocol")]);
}

fn refused(worker: Option<&str>, address: &str, error: &LinkError) -> Incident {
    Incident::refused((worker.map(name), address.parse().unwrap()), error, Instant::now())
}

#[test]
fn the_same_refusal_again_is_one_incident_that_counts() {
    let book = Incidents::default();
    for port in 1..=5 {
        let error = LinkError::Refused(Refusal::DuplicateName);
        book.note(refused(Some("a"), &format!("192.0.2.1:{port}"), &error));
        book.note(refused(Some("b"), "192.0.2.1:9", &error));
    }
    book.note(refused(Some("a"), "192.0.2.1:1", &LinkError::Timeout));
    let told: Vec<_> = book.latest().iter().map(|one| (one.worker.clone().unwrap(), one.cause, one.times)).collect();
    let (a, b) = (name("a"), name("b"));
    assert_eq!(told, [(a.clone(), Cause::Timeout, 1), (b, Cause::DuplicateName, 5), (a, Cause::DuplicateName, 5)]);
    assert_eq!(book.latest()[2].address.port(), 5, "the last time counts");
}

#[test]
fn strangers_cannot_push_out_what_is_known_of_workers() {
    let book = Incidents::default();
    book.note(refused(Some("known"), "192.0.2.1:1", &LinkError::Timeout));
    for number in 0..1000 {
        book.note(refused(None, &format!("10.0.{}.{}:1", number / 250, number % 250), &LinkError::Timeout));
        assert!(book.latest().len() <= 33);
    }
    assert!(book.latest().iter().any(|one| one.worker == Some(name("known"))));
    for number in 0..1000 {
        book.note(refused(Some(&format!("w{number}")), "192.0.2.1:1", &LinkError::Timeout));
        assert!(book.latest().len() <= 64);
    }
    assert_eq!(book.latest()[0].worker, Some(name("w999")));
}

#[test]
fn a_reason_out_of_a_worker_s_files_is_cut() {
    let long = LinkError::Refused(Refusal::BadTokenizer("\u{e9}".repeat(10_000)));
    let incident = refused(Some("a"), "192.0.2.1:1", &long);
    assert!(incident.why.chars().count() < 600 && incident.why.ends_with(" ..."), "{}", incident.why.len());
    assert_eq!((incident.event, incident.cause), (Event::Refused, Cause::BadTokenizer));
}

#[test]
fn another_version_and_silence_are_told_apart() {
    let closed = quinn::ConnectionError::TimedOut;
    let version = QuicError::Handshake { by: RefusedBy::Us, why: Rejection::Version, source: closed.clone() };
    let at = "192.0.2.1:1".parse().unwrap();
    let now = Instant::now();
    let incident = Incident::unproven(at, &version, now);
    assert_eq!((incident.cause, incident.advice), (Cause::Version, Rejection::Version.advice()));
    assert!(incident.why.contains("no common version of the protocol; this side speaks shoal/"), "{}", incident.why);
    assert_eq!(Incident::lost((name("a"), at), Some(closed), Some("broke".to_owned()), now).cause, Cause::Timeout);
}
