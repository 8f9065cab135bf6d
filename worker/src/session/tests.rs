//! A whole worker against a router played by the test, over loopback QUIC with an authority in memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use quinn::{ConnectionError, SendStream, VarInt};
use shoal_common::adapter::Geometry;
use shoal_common::config::WorkerConfig;
use shoal_common::ids::{BranchIndex, Digest, Incarnation, LayerRange, Name};
use shoal_common::pki::{Authority, Identity, Role};
use shoal_common::quic::Acceptor;
use shoal_common::shutdown::Trigger;
use shoal_common::wire::blob::{BlobHeader, BlobRequest};
use shoal_common::wire::codec::{read_frame, write_frame};
use shoal_common::wire::hello::{Capacity, ModelCard, RouterControl, Status, WorkerControl, WorkerState};
use shoal_common::wire::message::{GroupFailure, GroupFrame, GroupOrder, StreamOpen, Submit};
use tokio::task::JoinHandle;

use super::*;
use crate::WorkerError;
use crate::engine::tests::backend::{HashBackend, VOCAB};
use crate::engine::tests::bench::{CONTEXT, Heard, ROOMY, alone, fingerprint, submission};
use crate::engine::{EngineThread, Served};
use crate::model::LoadedModel;

const GROUPS: u32 = 3;

fn bundle() -> Vec<u8> {
    (0..300_000u32).map(|at| at as u8).collect()
}

fn model() -> LoadedModel {
    let card = ModelCard {
        name: Name::new("hash").unwrap(),
        weights: Digest::of(b"hash"),
        tokenizer: Digest::of(&bundle()),
        fingerprint: fingerprint(),
        numerics_class: "hash".into(),
        layers: LayerRange { begin: 0, end: 1 },
        layer_count: 1,
        vocab_size: VOCAB,
        context: CONTEXT,
        geometry: Geometry { layers: 4, hidden: 64, intermediate: 160, queries: 64, keys: 32 },
    };
    LoadedModel { card, bundle: bundle(), backend: Box::new(HashBackend::default()) }
}

/// The router's side: an endpoint, and the worker that dials it.
struct Stage {
    acceptor: Acceptor,
    worker: JoinHandle<Result<(), WorkerError>>,
    shutdown: Trigger,
}

/// One connection of the worker, welcomed.
struct Link {
    connection: Connection,
    control: (SendStream, quinn::RecvStream),
    hello: Hello,
}

/// A router's endpoint and what a worker needs to dial it.
struct Network {
    acceptor: Acceptor,
    router: String,
    worker: Identity,
    timers: Timers,
}

fn network() -> Network {
    let authority = Authority::create(&Name::new("test").unwrap()).unwrap();
    let router = authority.issue(Role::Router, &Name::new("router").unwrap()).unwrap();
    let worker = authority.issue(Role::Worker, &Name::new("worker").unwrap()).unwrap();
    let timers = Timers::default();
    let endpoint = quic::router_endpoint(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &router, &timers).unwrap();
    let router = endpoint.local_addr().unwrap().to_string();
    Network { acceptor: Acceptor::new(endpoint, timers), router, worker, timers }
}

fn stage() -> Stage {
    stage_with(None)
}

fn stage_with(kv_tokens: Option<u64>) -> Stage {
    let Network { acceptor, router, worker, timers } = network();
    let config = WorkerConfig {
        name: Name::new("worker").unwrap(),
        model: Name::new("hash").unwrap(),
        routers: vec![router],
        slots: 16,
        groups: GROUPS,
        kv_tokens,
        step_tokens: 32,
        threads: None,
    };
    let (shutdown, fired) = shoal_common::shutdown::channel();
    let worker = tokio::spawn(crate::run(config, timers, worker, model(), fired));
    Stage { acceptor, worker, shutdown }
}

impl Stage {
    async fn meet(&mut self) -> Link {
        self.answer(RouterControl::Welcome { router: Incarnation(1) }).await
    }

    async fn answer(&mut self, answer: RouterControl) -> Link {
        meet(&mut self.acceptor, answer).await
    }
}

async fn meet(acceptor: &mut Acceptor, answer: RouterControl) -> Link {
    let connection = acceptor.next().await.unwrap();
    let (mut send, mut recv) = connection.accept_bi().await.unwrap();
    let WorkerControl::Hello(hello) = read_frame(&mut recv).await.unwrap() else { panic!("no hello") };
    write_frame(&mut send, &answer).await.unwrap();
    Link { connection, control: (send, recv), hello: *hello }
}

/// A session without a supervisor: the test ends its engine and closes it.
struct Alone {
    acceptor: Acceptor,
    session: JoinHandle<()>,
    engine: EngineHandle,
    thread: EngineThread,
    closer: Trigger,
}

async fn session_alone() -> Alone {
    let Network { acceptor, router, worker, timers } = network();
    let LoadedModel { card, bundle, backend } = model();
    let (engine, thread) = crate::engine::spawn(Served::from(&card), ROOMY, backend).unwrap();
    let hello = Hello {
        worker: Name::new("worker").unwrap(),
        incarnation: Incarnation(7),
        build: "test".into(),
        capacity: Capacity { slots: 16, kv_tokens: 8192, groups: 64, adapter_slots: 4, adapter_bytes: 1 << 20 },
        model: card,
    };
    let (closer, closing) = shoal_common::shutdown::channel();
    let args = SessionArgs {
        router,
        endpoint: quic::worker_endpoint(&worker, &timers).unwrap(),
        timers,
        engine: engine.clone(),
        offer: Arc::new(Offer { hello, bundle }),
        closing,
    };
    let (_, session) = SessionActor::spawn(None, SessionActor, args).await.unwrap();
    Alone { acceptor, session, engine, thread, closer }
}

impl Link {
    async fn open(&self, first: StreamOpen) -> (SendStream, quinn::RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        write_frame(&mut send, &first).await.unwrap();
        (send, recv)
    }

    async fn submit(&self, submit: Submit) -> (SendStream, quinn::RecvStream) {
        self.open(StreamOpen::Group(Box::new(submit))).await
    }

    async fn status_where(&mut self, wanted: impl Fn(&Status) -> bool) -> Status {
        loop {
            let WorkerControl::Status(status) = read_frame(&mut self.control.1).await.unwrap() else {
                panic!("a status")
            };
            if wanted(&status) {
                return status;
            }
        }
    }

    async fn close_code(&self) -> VarInt {
        match self.connection.closed().await {
            ConnectionError::ApplicationClosed(close) => close.error_code,
            other => panic!("{other}"),
        }
    }
}

async fn hear(recv: &mut quinn::RecvStream) -> Heard {
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
fn more_than_is_buffered() -> Submit {
    let mut submit = submission(&[1, 2, 3], 400, 8);
    submit.score_tokens = Some(20);
    submit
}

#[tokio::test]
async fn a_group_is_streamed_whole_and_its_stream_ends() {
    let mut stage = stage();
    let link = stage.meet().await;
    assert_eq!((link.hello.worker.as_str(), link.hello.capacity.slots), ("worker", 16));
    for submit in [submission(&[5, 6, 7], 20, 3), more_than_is_buffered()] {
        let (_send, mut recv) = link.submit(submit.clone()).await;
        let (heard, expected) = (hear(&mut recv).await, alone(submit.clone()));
        for branch in 0..submit.branches.len() as u16 {
            assert_eq!(heard.tokens(branch), expected.tokens(branch));
            assert_eq!(heard.end(branch), expected.end(branch));
        }
    }
}

#[tokio::test]
async fn no_longer_context_is_announced_than_the_kv_holds() {
    for (kv_tokens, announced) in [(100, 96), (1 << 20, CONTEXT)] {
        let mut stage = stage_with(Some(kv_tokens));
        let link = stage.meet().await;
        assert_eq!(link.hello.model.context, announced);
        let (_send, mut recv) = link.submit(submission(&[1, 2, 3], 93, 1)).await;
        assert_eq!(hear(&mut recv).await.tokens(0).len(), 93);
    }
}

#[tokio::test]
async fn a_group_whose_stream_is_reset_or_stopped_is_freed() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    for how in ["reset", "stop", "drop"] {
        let (mut send, mut recv) = link.submit(more_than_is_buffered()).await;
        link.status_where(|status| status.running == 8).await;
        match how {
            "reset" => send.reset(CloseCode::Cancelled.into()).unwrap(),
            "stop" => recv.stop(CloseCode::Cancelled.into()).unwrap(),
            _ => drop((send, recv)),
        }
        link.status_where(|status| status.running == 0 && status.kv_used == 0).await;
    }
}

#[tokio::test]
async fn a_stop_order_ends_a_branch() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let (mut send, mut recv) = link.submit(more_than_is_buffered()).await;
    link.status_where(|status| status.running == 8).await;
    for branch in 0..7 {
        write_frame(&mut send, &GroupOrder::StopBranch(BranchIndex(branch))).await.unwrap();
    }
    // While nobody reads, the group cannot end by itself: fewer branches run only because the orders were obeyed.
    link.status_where(|status| status.running <= 1).await;
    let heard = hear(&mut recv).await;
    assert_eq!(heard.tokens(7).len(), 400);
    assert!((0..7).all(|branch| heard.tokens(branch).len() < 400 && heard.end(branch).is_none()));
}

#[tokio::test]
async fn a_lost_router_takes_its_groups_with_it_and_is_dialled_again() {
    let mut stage = stage();
    let mut first = stage.meet().await;
    let (_send, _recv) = first.submit(more_than_is_buffered()).await;
    first.status_where(|status| status.running == 8).await;
    CloseCode::Internal.close(&first.connection);
    let mut second = stage.meet().await;
    assert_eq!(second.hello.incarnation, first.hello.incarnation);
    second.status_where(|status| status.running == 0 && status.kv_used == 0).await;
    let (_send, mut recv) = second.submit(submission(&[1], 5, 1)).await;
    assert_eq!(hear(&mut recv).await.tokens(0).len(), 5);
}

#[tokio::test]
async fn a_router_that_breaks_the_protocol_is_cut_off() {
    for garbage in [&[0xff; 4][..], &[1, 0, 0, 0, 0xff]] {
        let mut stage = stage();
        let link = stage.meet().await;
        let (mut send, _recv) = link.connection.open_bi().await.unwrap();
        send.write_all(garbage).await.unwrap();
        assert_eq!(link.close_code().await, CloseCode::Protocol.into());
    }
}

#[tokio::test]
async fn a_refused_worker_leaves() {
    let mut stage = stage();
    let link = stage.answer(RouterControl::Refused(Refusal::DuplicateName)).await;
    assert_eq!(link.close_code().await, CloseCode::Refused.into());
}

#[tokio::test]
async fn a_router_that_cannot_be_reached_does_not_hold_up_a_shutdown() {
    let stage = stage();
    let Stage { acceptor, worker, shutdown } = stage;
    drop(acceptor);
    shutdown.fire();
    worker.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_tokenizer_is_served_by_its_digest_and_nothing_else_is() {
    let mut stage = stage();
    let link = stage.meet().await;
    let digest = link.hello.model.tokenizer;
    let (_send, mut recv) = link.open(StreamOpen::Blob(BlobRequest { digest })).await;
    assert_eq!(read_frame::<BlobHeader, _>(&mut recv).await.unwrap(), BlobHeader::Found { len: 300_000 });
    assert_eq!(Digest::of(&recv.read_to_end(1 << 20).await.unwrap()), digest);
    let (_send, mut recv) = link.open(StreamOpen::Blob(BlobRequest { digest: Digest::of(b"else") })).await;
    assert_eq!(read_frame::<BlobHeader, _>(&mut recv).await.unwrap(), BlobHeader::NotFound);
    assert!(recv.read_to_end(1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_drained_session_finishes_what_it_has_and_is_busy_for_the_rest() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let (_send, mut running) = link.submit(more_than_is_buffered()).await;
    link.status_where(|status| status.running == 8).await;
    write_frame(&mut link.control.0, &RouterControl::Drain).await.unwrap();
    link.status_where(|status| status.state == WorkerState::Draining).await;
    let (_send, mut refused) = link.submit(submission(&[1], 5, 1)).await;
    assert!(matches!(hear(&mut refused).await.frames[..], [GroupFrame::Busy { .. }]));
    assert_eq!(hear(&mut running).await.tokens(7).len(), 400);
}

#[tokio::test]
async fn a_session_whose_drain_is_taken_back_takes_groups_again() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    write_frame(&mut link.control.0, &RouterControl::Drain).await.unwrap();
    link.status_where(|status| status.state == WorkerState::Draining).await;
    write_frame(&mut link.control.0, &RouterControl::Undrain).await.unwrap();
    link.status_where(|status| status.state == WorkerState::Ready).await;
    let (_send, mut recv) = link.submit(submission(&[1], 5, 1)).await;
    assert_eq!(hear(&mut recv).await.tokens(0).len(), 5);
}

#[tokio::test]
async fn progress_is_told_while_nothing_happens() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let first = link.status_where(|_| true).await.progress;
    link.status_where(|status| status.progress > first + 2).await;
}

#[tokio::test]
async fn a_shutdown_finishes_what_runs_then_closes_in_order() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let (_send, mut recv) = link.submit(more_than_is_buffered()).await;
    link.status_where(|status| status.running == 8).await;
    stage.shutdown.fire();
    link.status_where(|status| status.state == WorkerState::Draining).await;
    let heard = hear(&mut recv).await;
    assert!((0..8).all(|branch| heard.tokens(branch).len() == 400));
    assert_eq!(link.close_code().await, CloseCode::Shutdown.into());
    stage.worker.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_stopped_engine_said_last_is_heard_before_the_close() {
    let mut alone = session_alone().await;
    let link = meet(&mut alone.acceptor, RouterControl::Welcome { router: Incarnation(1) }).await;
    let (_send, mut recv) = link.submit(more_than_is_buffered()).await;
    assert_eq!(read_frame::<GroupFrame, _>(&mut recv).await.unwrap(), GroupFrame::Accepted);
    alone.engine.stop();
    alone.thread.join().unwrap();
    // Many looks at the status of an engine that is gone.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut last = GroupFrame::Accepted;
    while let Ok(frame) = read_frame::<GroupFrame, _>(&mut recv).await {
        last = frame;
    }
    alone.closer.fire();
    assert_eq!(last, GroupFrame::Failed(GroupFailure::ShuttingDown));
    assert_eq!(link.close_code().await, CloseCode::Shutdown.into());
}

#[tokio::test]
async fn a_session_that_waits_to_dial_again_ends_at_once_when_the_worker_closes() {
    let mut alone = session_alone().await;
    let link = meet(&mut alone.acceptor, RouterControl::Refused(Refusal::DuplicateName)).await;
    assert_eq!(link.close_code().await, CloseCode::Refused.into());
    alone.closer.fire();
    // Well under the wait after a refusal.
    tokio::time::timeout(Duration::from_secs(3), alone.session).await.expect("it does not sit out its wait").unwrap();
}
