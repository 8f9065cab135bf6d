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
    let score = TokenScore { token: TokenId(position), logprob: -1.0, alternatives: Vec::new() };
    GroupFrame::Step(vec![BranchToken { branch: BranchIndex(0), position, score, end: None }])
}

fn outgoing(key: u64, position: u32) -> Outgoing {
    Outgoing::Frame { stream: StreamKey(key), frame: frame(position), cost: 0 }
}

#[tokio::test]
async fn a_blocked_stream_does_not_hold_up_its_neighbour() {
    let (desk, writer) = desk();
    let (mut blocked, _link) = desk.open(0, 8).await;
    let (mut open, _other) = desk.open(1, 8).await;
    let writer = tokio::spawn(writer);
    for position in 0..20 {
        desk.say(vec![outgoing(0, position), outgoing(1, position)]).await;
    }
    desk.say(vec![Outgoing::End(StreamKey(0)), Outgoing::End(StreamKey(1))]).await;
    for reader in [&mut open, &mut blocked] {
        for position in 0..20 {
            assert_eq!(read_frame::<GroupFrame, _>(reader).await.unwrap(), frame(position));
        }
        assert!(matches!(read_frame::<GroupFrame, _>(reader).await, Err(CodecError::Ended)));
    }
    drop(desk);
    writer.await.unwrap();
}
