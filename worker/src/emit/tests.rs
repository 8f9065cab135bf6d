//! The writer over in-memory pipes.

use shoal_common::ids::{BranchIndex, TokenId};
use shoal_common::wire::codec::{CodecError, read_frame};
use shoal_common::wire::message::{BranchToken, TokenScore};
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::engine::sink::report_bound;
use crate::engine::tests::bench::{Bench, ROOMY};

const STREAMS: usize = 4;

struct Desk {
    bench: Bench,
    openings: mpsc::Sender<Opening<DuplexStream>>,
    reports: mpsc::Sender<StepReport>,
}

fn desk() -> (Desk, Writer<DuplexStream>) {
    let (openings, opened) = mpsc::channel(OPENINGS);
    let (reports, reported) = mpsc::channel(report_bound(STREAMS));
    (Desk { bench: Bench::new(ROOMY), openings, reports }, Writer::new(opened, reported))
}

impl Desk {
    async fn open(&self, key: u64, window: usize) -> (DuplexStream, Arc<GroupLink>) {
        let (transport, reader) = duplex(window);
        let link = self.bench.handle.link();
        let opening = Opening { stream: StreamKey(key), transport, link: link.clone() };
        self.openings.send(opening).await.unwrap();
        (reader, link)
    }

    async fn say(&self, said: Vec<Outgoing>) {
        self.reports.send(StepReport(said)).await.unwrap();
    }
}

fn frame(position: u32) -> GroupFrame {
    let token = TokenId(position);
    let score = Some(TokenScore { token, logprob: -1.0, alternatives: Vec::new() });
    GroupFrame::Step(vec![BranchToken { branch: BranchIndex(0), position, token, score, end: None }])
}

const COST: usize = 50;

fn outgoing(link: &GroupLink, key: u64, position: u32) -> Outgoing {
    link.said(COST);
    Outgoing::Frame { stream: StreamKey(key), frame: frame(position), cost: COST }
}

#[tokio::test]
async fn a_blocked_stream_does_not_hold_up_its_neighbour_and_loses_nothing() {
    let (desk, writer) = desk();
    let (mut blocked, blocked_link) = desk.open(0, 8).await;
    let (mut open, open_link) = desk.open(1, 8).await;
    let writer = tokio::spawn(writer);
    for position in 0..20 {
        desk.say(vec![outgoing(&blocked_link, 0, position), outgoing(&open_link, 1, position)]).await;
    }
    desk.say(vec![Outgoing::End(StreamKey(0)), Outgoing::End(StreamKey(1))]).await;
    for (reader, link) in [(&mut open, &open_link), (&mut blocked, &blocked_link)] {
        assert!(link.unsent_bytes() >= 19 * COST);
        for position in 0..20 {
            assert_eq!(read_frame::<GroupFrame, _>(reader).await.unwrap(), frame(position));
        }
        assert!(matches!(read_frame::<GroupFrame, _>(reader).await, Err(CodecError::Ended)));
        assert_eq!(link.unsent_bytes(), 0, "the credit is back");
    }
    drop(desk);
    writer.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_breaks_cancels_its_group_alone() {
    let (desk, writer) = desk();
    let (broken, broken_link) = desk.open(0, 8).await;
    let (mut whole, whole_link) = desk.open(1, 8).await;
    let writer = tokio::spawn(writer);
    drop(broken);
    desk.say(vec![outgoing(&broken_link, 0, 0), outgoing(&whole_link, 1, 0)]).await;
    assert_eq!(read_frame::<GroupFrame, _>(&mut whole).await.unwrap(), frame(0));
    assert!(broken_link.is_cancelled() && !whole_link.is_cancelled());
    writer.abort();
    assert!(writer.await.unwrap_err().is_cancelled());
    assert!(whole_link.is_cancelled(), "a writer that is gone cancels what it wrote for");
}

/// The runtime lets a task take so much from channels; then they say that they are empty, whatever is in them.
#[tokio::test]
async fn what_is_said_on_a_new_stream_is_not_lost_when_the_task_has_used_up_its_turn() {
    for spent in 0..=160 {
        let (desk, mut writer) = desk();
        let (mut reader, link) = desk.open(0, 1024).await;
        desk.say(vec![outgoing(&link, 0, 0), Outgoing::End(StreamKey(0))]).await;
        drop(desk);
        let (spend, mut turn) = mpsc::channel(spent.max(1));
        (0..spent).for_each(|_| spend.try_send(()).expect("there is room"));
        let writer = tokio::spawn(std::future::poll_fn(move |cx| {
            while let Poll::Ready(Some(())) = turn.poll_recv(cx) {}
            Pin::new(&mut writer).poll(cx)
        }));
        assert_eq!(read_frame::<GroupFrame, _>(&mut reader).await.unwrap(), frame(0), "{spent} spent");
        assert!(matches!(read_frame::<GroupFrame, _>(&mut reader).await, Err(CodecError::Ended)));
        writer.await.unwrap();
    }
}
