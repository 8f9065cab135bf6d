//! What a router may rely on: groups, blobs, drains and shutdowns.

use std::time::Duration;

use shoal_common::ids::{BranchIndex, Digest, Incarnation};
use shoal_common::quic::CloseCode;
use shoal_common::wire::blob::{BlobHeader, BlobRequest};
use shoal_common::wire::codec::{read_frame, write_frame};
use shoal_common::wire::hello::{Refusal, RouterControl, WorkerState};
use shoal_common::wire::message::{GroupFailure, GroupFrame, GroupOrder, StreamOpen};

use super::stage::{Stage, hear, meet, more_than_is_buffered, session_alone, stage, stage_with_kv};
use crate::engine::tests::bench::{CONTEXT, alone, submission};

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
        let mut stage = stage_with_kv(kv_tokens);
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
    let Stage { acceptor, worker, shutdown, .. } = stage;
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
    alone.run.join().await.unwrap();
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
