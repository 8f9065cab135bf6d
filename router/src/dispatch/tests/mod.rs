//! Dispatch against workers that are played by the test, over real QUIC on loopback.

mod adapter;
mod losses;

use std::net::{Ipv4Addr, SocketAddr};

use shoal_common::block_hash::CacheSalt;
use shoal_common::config::Timers;
use shoal_common::ids::{Incarnation, TokenId};
use shoal_common::pki::{Authority, Identity, Role};
use shoal_common::quic::{self, Acceptor};
use shoal_common::watch;
use shoal_common::wire::codec::{CodecError, FrameReader};
use shoal_common::wire::hello::{Capacity, Hello};
use shoal_common::wire::message::{BranchEnd, BranchStart, EndRules, GroupFrame, PromptIds, StreamOpen};

use super::*;
use crate::fleet::pick::{Access, LeastQueued};
use crate::fleet::tests::serve;
use crate::fleet::{Offer, Roster, Snapshot};
use crate::testing::{model, score};

/// A cluster of workers that the test plays.
pub(crate) struct Stage {
    timers: Timers,
    endpoint: quinn::Endpoint,
    authority: Authority,
    acceptor: Acceptor,
    roster: Roster,
    published: watch::Sender<Arc<Snapshot>>,
    pub(crate) dispatcher: Dispatcher,
}

/// One played worker. Its endpoint lives as long as it does.
pub(crate) struct Played {
    connection: quinn::Connection,
    endpoint: quinn::Endpoint,
}

/// A group as the played worker sees it.
pub(crate) struct PlayedGroup {
    pub(crate) submit: Submit,
    reader: FrameReader<quinn::RecvStream>,
    writer: quinn::SendStream,
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(Timers::default())
    }

    fn with(timers: Timers) -> Self {
        let authority = Authority::create(&Name::new("test").unwrap()).unwrap();
        let identity = authority.issue(Role::Router, &Name::new("router").unwrap()).unwrap();
        let endpoint = quic::router_endpoint(loopback(), &identity, &timers).unwrap();
        let acceptor = Acceptor::new(endpoint.clone(), timers);
        let (published, snapshots) = watch::channel(Arc::default());
        let dispatcher = Dispatcher::new(FleetView::new(snapshots), Arc::new(LeastQueued));
        Self { timers, endpoint, authority, acceptor, roster: Roster::default(), published, dispatcher }
    }

    /// Adds a worker. With equal load the one whose name sorts first is picked.
    pub(crate) async fn worker(&mut self, name: &str) -> Played {
        self.life_of(name, Incarnation::draw()).await
    }

    /// Adds a worker, or connects one again that was here before in this life.
    async fn life_of(&mut self, name: &str, incarnation: Incarnation) -> Played {
        let name = Name::new(name).unwrap();
        let identity: Identity = self.authority.issue(Role::Worker, &name).unwrap();
        let endpoint = quic::worker_endpoint(&identity, &self.timers).unwrap();
        let (address, timers) = (self.endpoint.local_addr().unwrap(), self.timers);
        let (dialled, accepted) = tokio::join!(quic::dial(&endpoint, address, &timers), self.acceptor.next());
        let hello = Hello {
            worker: name,
            incarnation,
            build: String::new(),
            capacity: Capacity { slots: 8, kv_tokens: 1024, groups: 1, adapter_slots: 4, adapter_bytes: 1 << 20 },
            model: model().card.clone(),
            locality: None,
        };
        let (line, asked) = (Arc::new(accepted.unwrap()), Instant::now());
        serve(&mut self.roster, Offer { hello, model: model(), line, asked }, asked);
        self.published.send_replace(Arc::new(self.roster.snapshot()));
        Played { connection: dialled.unwrap(), endpoint }
    }

    fn group(&self, branches: u16, score_prompt: Option<u8>) -> (GroupRun, StopHandle) {
        self.run(submission(branches, score_prompt))
    }

    fn run(&self, submit: Submit) -> (GroupRun, StopHandle) {
        let identity = (model().card.name.clone(), model().card.vocab_size);
        GroupRun::new(self.dispatcher.clone(), identity, submit, None, Access::Everybody)
    }
}

/// Four tokens of prompt, six of each branch.
fn submission(branches: u16, score_prompt: Option<u8>) -> Submit {
    let start = |choice| BranchStart { choice, emitted: PromptIds::default() };
    Submit {
        adapter: None,
        fingerprint: model().card.fingerprint,
        prompt: PromptIds((10..14).map(TokenId).collect()),
        branches: (0..u32::from(branches)).map(start).collect(),
        sampling: Default::default(),
        end: EndRules { max_tokens: 6, min_tokens: 0, stop_ids: Vec::new() },
        score_tokens: Some(0),
        score_prompt,
        share_key: 0,
        cache_salt: CacheSalt(0),
        deadline_ms: None,
    }
}

impl Played {
    pub(crate) async fn group(&self) -> PlayedGroup {
        let (writer, reader) = self.connection.accept_bi().await.unwrap();
        let mut reader = FrameReader::new(reader);
        let StreamOpen::Group(submit) = reader.next().await.unwrap() else { panic!("not a group") };
        PlayedGroup { submit: *submit, reader, writer }
    }

    /// The next group, which the worker takes.
    async fn accepts(&self) -> PlayedGroup {
        let mut group = self.group().await;
        group.send(GroupFrame::Accepted).await;
        group
    }

    /// Takes the next group and says its tokens from `position` on, and the end. What it returns is kept for as long as the
    /// router reads.
    async fn goes_on_to_the_end(&self, position: u32) -> PlayedGroup {
        let mut group = self.accepts().await;
        group.tokens(0, position..6).await;
        group.writer.finish().unwrap();
        group
    }

    /// The worker dies once the router has all that was sent of `group`, which has no end.
    async fn dies_after(&self, mut group: PlayedGroup) {
        group.writer.finish().unwrap();
        group.writer.stopped().await.unwrap();
        self.die();
    }

    fn die(&self) {
        self.connection.close(9u32.into(), b"");
    }
}

impl PlayedGroup {
    /// A token, scored if the router has asked for that.
    fn token(&self, branch: u16, position: u32, token: TokenId, end: Option<BranchEnd>) -> BranchToken {
        let score = self.submit.score_tokens.map(|_| score(token, -1.0));
        BranchToken { branch: BranchIndex(branch), position, token, score, end }
    }

    pub(crate) async fn send(&mut self, frame: GroupFrame) {
        codec::write_frame(&mut self.writer, &frame).await.unwrap();
    }

    /// Tokens 100, 101, … for positions `from..to`, the sixth with its end.
    pub(crate) async fn tokens(&mut self, branch: u16, positions: std::ops::Range<u32>) {
        for position in positions {
            let end = (position == 5).then_some(BranchEnd::Length);
            let token = self.token(branch, position, TokenId(100 + position), end);
            self.send(GroupFrame::Step(vec![token])).await;
        }
    }

    /// Branches 0 and 1 end with their first tokens, in one step.
    pub(crate) async fn both_end(&mut self) {
        let end = Some(BranchEnd::Length);
        let token = |branch: u16| self.token(branch, 0, TokenId(100 + u32::from(branch)), end);
        self.send(GroupFrame::Step(vec![token(0), token(1)])).await;
    }
}

/// The tokens of a group that starts and comes to its end.
async fn whole(run: &mut GroupRun) -> Vec<(u16, u32)> {
    run.start().await.unwrap();
    rest(run).await.unwrap()
}

/// The tokens of every event up to the end, as (branch, token).
async fn rest(run: &mut GroupRun) -> Result<Vec<(u16, u32)>, DispatchError> {
    let mut seen = Vec::new();
    while let Some(event) = run.next().await? {
        if let GroupEvent::Tokens(tokens) = event {
            seen.extend(tokens.iter().map(|token| (token.branch.0, token.token.0)));
        }
    }
    Ok(seen)
}

fn tokens_of(branch: u16) -> Vec<(u16, u32)> {
    (100..106).map(|token| (branch, token)).collect()
}

#[tokio::test]
async fn a_lost_worker_leaves_no_gap_and_no_duplicate() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let mut group = first.accepts().await;
        group.tokens(0, 0..3).await;
        first.dies_after(group).await;
        let mut resumed = second.group().await;
        let emitted: Vec<u32> = resumed.submit.branches[0].emitted.0.iter().map(|token| token.0).collect();
        assert_eq!(emitted, [100, 101, 102], "the resumption does not say what was delivered");
        resumed.send(GroupFrame::Accepted).await;
        resumed.tokens(0, 3..6).await;
        resumed.writer.finish().unwrap();
        resumed
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
}

#[tokio::test]
async fn only_open_branches_are_resumed_and_keep_their_names() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(2, None);
    let plays = async {
        let mut group = first.accepts().await;
        group.tokens(0, 0..6).await;
        group.tokens(1, 0..2).await;
        first.dies_after(group).await;
        let mut resumed = second.group().await;
        assert_eq!(resumed.submit.branches.len(), 1);
        assert_eq!(resumed.submit.branches[0].choice, 1, "the draws would be another choice's");
        resumed.send(GroupFrame::Accepted).await;
        resumed.tokens(0, 2..6).await;
        resumed.writer.finish().unwrap();
        resumed
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen.iter().filter(|(branch, _)| *branch == 1).copied().collect::<Vec<_>>(), tokens_of(1));
}

#[tokio::test]
async fn a_gap_a_repetition_or_an_unknown_token_is_never_handed_on() {
    for bad in [(0, 5, 101), (0, 0, 100), (7, 1, 101), (0, 1, 9999)] {
        let mut stage = Stage::new();
        let (first, second) = (stage.worker("a").await, stage.worker("b").await);
        let (mut run, _stop) = stage.group(1, None);
        let plays = async {
            let mut group = first.accepts().await;
            group.tokens(0, 0..1).await;
            let (branch, position, token) = bad;
            let token = group.token(branch, position, TokenId(token), None);
            group.send(GroupFrame::Step(vec![token])).await;
            let mut resumed = second.accepts().await;
            resumed.tokens(0, 1..6).await;
            resumed.writer.finish().unwrap();
            (group, resumed)
        };
        let (_kept, seen) = tokio::join!(plays, whole(&mut run));
        assert_eq!(seen, tokens_of(0), "{bad:?}");
    }
}

#[tokio::test]
async fn of_a_step_with_a_wrong_token_nothing_is_lost() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(2, None);
    let plays = async {
        let mut group = first.accepts().await;
        let (right, wrong) = (group.token(0, 0, TokenId(100), None), group.token(1, 3, TokenId(103), None));
        group.send(GroupFrame::Step(vec![right, wrong])).await;
        let mut resumed = second.accepts().await;
        resumed.tokens(0, 0..6).await;
        resumed.tokens(1, 0..6).await;
        resumed.writer.finish().unwrap();
        (group, resumed)
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, [tokens_of(0), tokens_of(1)].concat());
}

#[tokio::test]
async fn a_worker_that_does_not_end_is_not_listened_to() {
    let mut stage = Stage::new();
    let worker = stage.worker("a").await;
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let mut group = worker.accepts().await;
        for position in 0..7 {
            let token = group.token(0, position, TokenId(100 + position), None);
            group.send(GroupFrame::Step(vec![token])).await;
        }
        // The submission allows six; the seventh resets the stream.
        let order = group.reader.next::<GroupOrder>().await;
        assert!(matches!(order, Err(CodecError::Io(_))), "{order:?}");
        worker.die();
    };
    let client = async {
        run.start().await.unwrap();
        for _ in 0..6 {
            run.next().await.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(1), run.next()).await
    };
    let ((), seventh) = tokio::join!(plays, client);
    assert!(!matches!(seventh, Ok(Ok(Some(_)))), "a token beyond max_tokens was handed on");
}

#[tokio::test]
async fn prompt_scores_are_told_once_across_a_replay() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(0, Some(0));
    let scores = |range: std::ops::Range<u32>| GroupFrame::PromptScores {
        first: range.start,
        scores: range.map(|position| score(TokenId(10 + position), -1.0)).collect(),
    };
    let plays = async {
        let mut group = first.accepts().await;
        group.send(scores(1..2)).await;
        first.dies_after(group).await;
        let mut resumed = second.accepts().await;
        resumed.send(scores(1..3)).await;
        resumed.send(scores(3..4)).await;
        resumed.writer.finish().unwrap();
        resumed
    };
    let client = async {
        run.start().await.unwrap();
        let mut seen = Vec::new();
        while let Some(GroupEvent::PromptScores(scores)) = run.next().await.unwrap() {
            seen.extend(scores.iter().map(|score| score.token.0));
        }
        seen
    };
    let (_kept, seen) = tokio::join!(plays, client);
    assert_eq!(seen, [11, 12, 13]);
}

#[tokio::test]
async fn a_full_worker_is_passed_over_and_a_full_cluster_says_when_to_come_back() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let mut groups = (first.group().await, None);
        groups.0.send(GroupFrame::Busy { retry_after_ms: 9_000 }).await;
        let mut other = second.group().await;
        other.send(GroupFrame::Busy { retry_after_ms: 4_000 }).await;
        groups.1 = Some(other);
        groups
    };
    let (_kept, started) = tokio::join!(plays, run.start());
    let Err(DispatchError::Busy { retry_after }) = started else { panic!("{started:?}") };
    assert_eq!(retry_after, Duration::from_secs(4));
}

#[tokio::test]
async fn a_worker_whose_streams_are_all_taken_is_full() {
    let mut stage = Stage::new();
    let _worker = stage.worker("a").await;
    let snapshot = stage.dispatcher.view.now();
    let connection = snapshot.replicas[0].line.connection().unwrap();
    let mut taken = Vec::new();
    while let Ok(opened) = tokio::time::timeout(Duration::from_millis(50), connection.open_bi()).await {
        taken.push(opened.unwrap());
    }
    let (mut run, _stop) = stage.group(1, None);
    let started = run.start().await;
    assert!(matches!(started, Err(DispatchError::Busy { .. })), "{started:?} with {} taken", taken.len());
}

#[tokio::test]
async fn a_replica_that_has_lost_a_part_of_its_model_is_asked_again() {
    let mut stage = Stage::new();
    let only = stage.worker("a").await;
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let mut group = only.accepts().await;
        group.tokens(0, 0..3).await;
        group.send(GroupFrame::Failed(GroupFailure::Incomplete)).await;
        let mut still = only.group().await;
        still.send(GroupFrame::Failed(GroupFailure::Incomplete)).await;
        let mut resumed = only.accepts().await;
        assert_eq!(resumed.submit.branches[0].emitted.0.len(), 3);
        resumed.tokens(0, 3..6).await;
        resumed.writer.finish().unwrap();
        (group, still, resumed)
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
}

#[tokio::test]
async fn dropping_a_group_cancels_it_on_its_worker() {
    let mut stage = Stage::new();
    let worker = stage.worker("a").await;
    let (mut run, _stop) = stage.group(1, None);
    let (mut group, started) = tokio::join!(worker.accepts(), run.start());
    started.unwrap();
    drop(run);
    assert_eq!(group.writer.stopped().await.unwrap(), Some(0u32.into()), "the worker may still send");
    let order = group.reader.next::<GroupOrder>().await;
    assert!(matches!(order, Err(CodecError::Io(_))), "the stream was finished, not reset: {order:?}");
}

#[tokio::test]
async fn a_stopped_branch_is_stopped_on_its_worker_while_others_go_on() {
    let mut stage = Stage::new();
    let worker = stage.worker("a").await;
    let (mut run, stop) = stage.group(2, None);
    let plays = async {
        let mut group = worker.accepts().await;
        group.tokens(0, 0..1).await;
        let order: GroupOrder = group.reader.next().await.unwrap();
        assert_eq!(order, GroupOrder::StopBranch(BranchIndex(0)));
        group.tokens(0, 1..2).await;
        group.tokens(1, 0..6).await;
        group.writer.finish().unwrap();
        group
    };
    let client = async {
        run.start().await.unwrap();
        run.next().await.unwrap();
        stop.stop(BranchIndex(0));
        rest(&mut run).await.unwrap()
    };
    let (_kept, seen) = tokio::join!(plays, client);
    assert_eq!(seen, tokens_of(1), "tokens of a stopped branch were handed on");
}
