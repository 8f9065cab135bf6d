//! A group that names an adapter, from its submission to its tokens, and whatever may come between.

use std::time::Duration;

use quinn::SendStream;
use safetensors::Dtype;
use shoal_common::adapter::{Geometry, Linear};
use shoal_common::ids::{BranchIndex, Digest, Generation, Incarnation, Name};
use shoal_common::quic::{CloseCode, MAX_FETCHES};
use shoal_common::wire::blob::{BlobHeader, Nearer};
use shoal_common::wire::codec::{read_frame, write_frame};
use shoal_common::wire::hello::{AdapterOrder, AdapterTier, Lending, RouterControl};
use shoal_common::wire::message::{GroupFailure, GroupFrame, GroupOrder, Submit, WorkerOpen};

use super::stage::{GROUPS, Link, hear, meet, stage, stage_with_two_routers, stages_of_one_zone};
use crate::adapters::recipe::Recipe;
use crate::engine::tests::bench::{Heard, alone, card, submission};

/// An adapter of rank 4 for this worker's model.
fn bundle(name: &str) -> Vec<u8> {
    let seed = name.bytes().fold(0, |seed, byte| seed * 31 + u32::from(byte));
    let (geometry, linears) = (card().geometry, &[Linear::Q, Linear::Down]);
    Recipe { geometry, linears, rank: 4, dtype: Dtype::F32, seed }.bundle()
}

fn generation(bundle: &[u8]) -> Generation {
    Generation(Digest::of(bundle))
}

/// A submission to this worker with an adapter.
fn submission_with(link: &Link, at: Generation) -> Submit {
    let fingerprint = link.hello.model.fingerprint_with(Some(at));
    Submit { adapter: Some(at), fingerprint, ..submission(&[5, 6, 7], 20, 2) }
}

/// What an engine that had the adapter all along answers.
fn expected(at: Generation) -> Heard {
    let fingerprint = card().fingerprint_with(Some(at));
    alone(Submit { adapter: Some(at), fingerprint, ..submission(&[5, 6, 7], 20, 2) })
}

/// A fetch of the worker.
struct Fetch {
    at: Generation,
    send: SendStream,
}

impl Fetch {
    async fn answer(mut self, content: &[u8]) {
        write_frame(&mut self.send, &BlobHeader::Found { len: content.len() as u64 }).await.unwrap();
        self.send.write_all(content).await.unwrap();
        self.send.finish().unwrap();
        let _ = self.send.stopped().await;
    }

    async fn answer_not_found(mut self) {
        write_frame(&mut self.send, &BlobHeader::NotFound).await.unwrap();
        self.send.finish().unwrap();
    }
}

impl Link {
    /// The worker's next question who is nearer, answered.
    async fn name_nearer(&self, len: usize, peers: &[&str]) -> Generation {
        let (mut send, mut recv) = self.connection.accept_bi().await.unwrap();
        let WorkerOpen::Nearer(request) = read_frame(&mut recv).await.unwrap() else { panic!("it did not ask") };
        let peers = peers.iter().map(|name| Name::new(*name).unwrap()).collect();
        write_frame(&mut send, &Nearer { len: len as u64, peers }).await.unwrap();
        send.finish().unwrap();
        Generation(request.digest)
    }

    /// The next fetch of the worker.
    async fn fetch(&self) -> Fetch {
        let (send, mut recv) = self.connection.accept_bi().await.unwrap();
        let WorkerOpen::Blob(request) = read_frame(&mut recv).await.unwrap() else { panic!("it has no zone") };
        Fetch { at: Generation(request.digest), send }
    }

    async fn order(&mut self, order: AdapterOrder) {
        write_frame(&mut self.control.0, &RouterControl::Adapter(order)).await.unwrap();
    }

    /// Waits until so many groups wait.
    async fn waiting(&mut self, groups: u32) {
        self.status_where(|status| status.waiting == groups).await;
    }

    /// Submits a group with an adapter that is here; it is answered without a fetch.
    async fn assert_served(&self, at: Generation) {
        let (_send, mut recv) = self.submit(submission_with(self, at)).await;
        assert_eq!(hear(&mut recv).await.tokens(1), expected(at).tokens(1));
    }
}

fn assert_failed(heard: &Heard, failure: GroupFailure) {
    assert_eq!(heard.frames, [GroupFrame::Failed(failure)]);
}

#[tokio::test]
async fn an_adapter_comes_from_the_neighbour_that_the_router_names_and_from_the_router_where_it_names_nobody() {
    let [mut lender, mut asker] = stages_of_one_zone();
    let (mut lends, asks) = (lender.meet().await, asker.meet().await);
    let locality =
        |link: &Link| link.hello.locality.clone().map(|locality| (locality.zone.to_string(), locality.lending));
    assert_eq!(locality(&lends), Some(("rack".to_owned(), Lending::Workers)));
    assert_eq!(locality(&asks), Some(("rack".to_owned(), Lending::Nobody)));
    let at = generation(&bundle("a"));
    let (_send, mut recv) = lends.submit(submission_with(&lends, at)).await;
    // It knows nobody to fetch from, and so does not ask who is nearer.
    lends.fetch().await.answer(&bundle("a")).await;
    hear(&mut recv).await;
    lends.told_in(at, AdapterTier::Memory).await;

    let (_send, mut recv) = asks.submit(submission_with(&asks, at)).await;
    assert_eq!(asks.name_nearer(bundle("a").len(), &["lender"]).await, at);
    assert_eq!(hear(&mut recv).await.tokens(0), expected(at).tokens(0));

    let at = generation(&bundle("b"));
    let (_send, mut recv) = asks.submit(submission_with(&asks, at)).await;
    assert_eq!(asks.name_nearer(bundle("b").len(), &[]).await, at);
    asks.fetch().await.answer(&bundle("b")).await;
    assert_eq!(hear(&mut recv).await.tokens(0), expected(at).tokens(0));

    // The lender does not have it: whoever named it was mistaken.
    let at = generation(&bundle("c"));
    let (_send, mut recv) = asks.submit(submission_with(&asks, at)).await;
    asks.name_nearer(bundle("c").len(), &["lender", "stranger"]).await;
    asks.fetch().await.answer(&bundle("c")).await;
    assert_eq!(hear(&mut recv).await.tokens(0), expected(at).tokens(0));
}

#[tokio::test]
async fn a_group_s_adapter_is_fetched_and_then_it_answers_as_if_it_had_been_there() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    assert_eq!((link.hello.capacity.adapter_slots, link.hello.capacity.adapter_bytes), (4, 1 << 20));
    let at = generation(&bundle("a"));
    let (_send, mut recv) = link.submit(submission_with(&link, at)).await;
    let fetch = link.fetch().await;
    assert_eq!(fetch.at, at);
    link.waiting(1).await;
    assert_eq!(link.told_in(at, AdapterTier::Loading).await.bytes, 0);
    fetch.answer(&bundle("a")).await;
    let (heard, expected) = (hear(&mut recv).await, expected(at));
    for branch in 0..2 {
        assert_eq!(heard.tokens(branch), expected.tokens(branch));
    }
    assert_ne!(heard.tokens(0), alone(submission(&[5, 6, 7], 20, 2)).tokens(0), "the base model says something else");
    let state = link.told_in(at, AdapterTier::Memory).await;
    assert!(state.bytes > 0 && state.rank == 4 && state.load_ms.is_some() && state.idle_ms.is_some());
    link.waiting(0).await;
    link.assert_served(at).await;
}

#[tokio::test]
async fn an_adapter_that_no_router_has_is_unavailable() {
    let mut stage = stage();
    let link = stage.meet().await;
    let at = generation(b"unknown");
    for _ in 0..2 {
        let (_send, mut recv) = link.submit(submission_with(&link, at)).await;
        link.fetch().await.answer_not_found().await;
        assert_failed(&hear(&mut recv).await, GroupFailure::AdapterUnavailable);
    }
}

#[tokio::test]
async fn a_bad_adapter_is_refused_and_the_router_is_told_why() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    // A good one, of another model.
    let geometry = Geometry { hidden: 32, ..card().geometry };
    let bad = Recipe { geometry, linears: &[Linear::Q], rank: 4, dtype: Dtype::F32, seed: 1 }.bundle();
    let at = generation(&bad);
    let (_send, mut recv) = link.submit(submission_with(&link, at)).await;
    link.fetch().await.answer(&bad).await;
    assert_failed(&hear(&mut recv).await, GroupFailure::AdapterRefused);
    let state = link.told_in(at, AdapterTier::Quarantined).await;
    assert!(state.reason.as_deref().is_some_and(|reason| reason.contains("q_proj")), "{:?}", state.reason);
    // Not even fetched.
    let (_send, mut recv) = link.submit(submission_with(&link, at)).await;
    assert_failed(&hear(&mut recv).await, GroupFailure::AdapterRefused);
    link.order(AdapterOrder::Forget(at)).await;
    link.told_in(at, AdapterTier::Gone).await;
}

#[tokio::test]
async fn content_that_is_not_what_was_asked_for_is_never_used() {
    let mut stage = stage();
    let link = stage.meet().await;
    let at = generation(&bundle("a"));
    let (_send, mut recv) = link.submit(submission_with(&link, at)).await;
    link.fetch().await.answer(&bundle("b")).await;
    assert_failed(&hear(&mut recv).await, GroupFailure::AdapterUnavailable);
}

#[tokio::test]
async fn what_is_asked_for_another_model_fetches_nothing() {
    let mut stage = stage();
    let link = stage.meet().await;
    let (wrong, right) = (generation(&bundle("wrong")), generation(&bundle("right")));
    for fingerprint in [link.hello.model.fingerprint, link.hello.model.fingerprint_with(Some(right))] {
        let (_send, mut recv) = link.submit(Submit { fingerprint, ..submission_with(&link, wrong) }).await;
        assert_failed(&hear(&mut recv).await, GroupFailure::WrongFingerprint);
    }
    let _group = link.submit(submission_with(&link, right)).await;
    assert_eq!(link.fetch().await.at, right, "it is the first that is fetched");
}

#[tokio::test]
async fn a_connection_that_is_lost_during_a_fetch_leaves_nothing_behind() {
    let mut stage = stage();
    let mut first = stage.meet().await;
    let at = generation(&bundle("a"));
    let _group = first.submit(submission_with(&first, at)).await;
    let fetch = first.fetch().await;
    first.waiting(1).await;
    CloseCode::Internal.close(&first.connection);
    drop(fetch);
    let mut second = stage.meet().await;
    second.waiting(0).await;
    let (_send, mut recv) = second.submit(submission_with(&second, at)).await;
    second.fetch().await.answer(&bundle("a")).await;
    assert_eq!(hear(&mut recv).await.tokens(0), expected(at).tokens(0));
}

#[tokio::test]
async fn a_fetch_that_one_router_breaks_off_goes_on_with_another() {
    let mut stage = stage_with_two_routers();
    let mut first = stage.meet().await;
    let other = stage.other.as_mut().unwrap();
    let mut second = meet(other, RouterControl::Welcome { router: Incarnation(2) }).await;
    // It has told something, so it may be asked.
    second.status_where(|_| true).await;
    let at = generation(&bundle("a"));
    first.order(AdapterOrder::Load(at)).await;
    let mut fetch = first.fetch().await;
    write_frame(&mut fetch.send, &BlobHeader::Found { len: 1000 }).await.unwrap();
    CloseCode::Internal.close(&first.connection);
    second.fetch().await.answer(&bundle("a")).await;
    second.told_in(at, AdapterTier::Memory).await;
    second.assert_served(at).await;
}

#[tokio::test]
async fn a_client_that_leaves_while_its_group_waits_ends_the_wait_and_not_the_fetch() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let at = generation(&bundle("a"));
    let (mut reset, _recv) = link.submit(submission_with(&link, at)).await;
    let fetch = link.fetch().await;
    let (_send, mut stop) = link.submit(submission_with(&link, at)).await;
    let dropped = link.submit(submission_with(&link, at)).await;
    link.waiting(3).await;
    reset.reset(CloseCode::Cancelled.into()).unwrap();
    stop.stop(CloseCode::Cancelled.into()).unwrap();
    drop(dropped);
    link.waiting(0).await;
    fetch.answer(&bundle("a")).await;
    let state = link.told_in(at, AdapterTier::Memory).await;
    assert_eq!(state.idle_ms, None, "no group began with it");
    link.assert_served(at).await;
}

#[tokio::test]
async fn a_branch_that_is_stopped_while_its_group_waits_stays_stopped() {
    let mut stage = stage();
    let link = stage.meet().await;
    let at = generation(&bundle("a"));
    let (mut send, mut recv) = link.submit(submission_with(&link, at)).await;
    let fetch = link.fetch().await;
    write_frame(&mut send, &GroupOrder::StopBranch(BranchIndex(0))).await.unwrap();
    send.finish().unwrap();
    // Read by the worker before the adapter is there, or else it would be acknowledged later.
    send.stopped().await.unwrap();
    fetch.answer(&bundle("a")).await;
    let heard = hear(&mut recv).await;
    assert_eq!((heard.tokens(0).len(), heard.tokens(1)), (0, expected(at).tokens(1)));
}

#[tokio::test]
async fn a_group_that_waits_when_a_drain_is_ordered_is_sent_elsewhere() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let at = generation(&bundle("a"));
    let (_send, mut recv) = link.submit(submission_with(&link, at)).await;
    let _fetch = link.fetch().await;
    write_frame(&mut link.control.0, &RouterControl::Drain).await.unwrap();
    assert!(matches!(hear(&mut recv).await.frames[..], [GroupFrame::Busy { .. }]));
    let (_send, mut refused) = link.submit(submission_with(&link, at)).await;
    assert!(matches!(hear(&mut refused).await.frames[..], [GroupFrame::Busy { .. }]));
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_adapters() {
    let mut stage = stage();
    let link = stage.meet().await;
    let at = generation(&bundle("a"));
    let (_send, mut recv) = link.submit(submission_with(&link, at)).await;
    let _fetch = link.fetch().await;
    stage.shutdown.fire();
    assert!(matches!(hear(&mut recv).await.frames[..], [GroupFrame::Busy { .. }]));
    assert_eq!(link.close_code().await, CloseCode::Shutdown.into());
    stage.worker.await.unwrap().unwrap();
}

#[tokio::test]
async fn no_more_groups_wait_for_adapters_than_may_wait_at_all() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let at = generation(&bundle("a"));
    let mut waiting = Vec::new();
    for groups in 1..=GROUPS {
        waiting.push(link.submit(submission_with(&link, at)).await);
        link.waiting(groups).await;
    }
    let (_send, mut refused) = link.submit(submission_with(&link, at)).await;
    assert!(matches!(hear(&mut refused).await.frames[..], [GroupFrame::Busy { .. }]));
    link.fetch().await.answer(&bundle("a")).await;
    for (_send, mut recv) in waiting {
        assert_eq!(hear(&mut recv).await.tokens(0), expected(at).tokens(0));
    }
}

#[tokio::test]
async fn a_group_s_deadline_ends_its_wait_for_its_adapter() {
    let mut stage = stage();
    let link = stage.meet().await;
    let mut submit = submission_with(&link, generation(&bundle("a")));
    submit.deadline_ms = Some(20);
    let (_send, mut recv) = link.submit(submit).await;
    let _unanswered = link.fetch().await;
    assert_failed(&hear(&mut recv).await, GroupFailure::AdapterUnavailable);
}

#[tokio::test]
async fn no_more_is_fetched_at_once_than_a_connection_takes_and_nothing_is_forgotten() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let contents: Vec<_> = (0..2 * MAX_FETCHES).map(|number| bundle(&format!("{number}"))).collect();
    for content in &contents {
        link.order(AdapterOrder::Load(generation(content))).await;
    }
    let mut fetches = Vec::new();
    for _ in 0..MAX_FETCHES {
        fetches.push(link.fetch().await);
    }
    // Long enough for one that should not come.
    assert!(tokio::time::timeout(Duration::from_millis(100), link.fetch()).await.is_err());
    let content_of = |at| contents.iter().find(|content| generation(content) == at).unwrap();
    for _ in 0..MAX_FETCHES {
        let fetch = fetches.remove(0);
        let content = content_of(fetch.at);
        fetch.answer(content).await;
        fetches.push(link.fetch().await);
    }
    for fetch in fetches {
        let content = content_of(fetch.at);
        fetch.answer(content).await;
    }
    for content in &contents {
        let generation = generation(content);
        while !matches!(
            link.told.get(&generation).map(|state| state.tier),
            Some(AdapterTier::Memory | AdapterTier::Disk)
        ) {
            link.status_where(|_| true).await;
        }
    }
}

#[tokio::test]
async fn a_router_that_comes_back_is_told_which_adapters_are_here() {
    let mut stage = stage();
    let mut link = stage.meet().await;
    let at = generation(&bundle("a"));
    link.order(AdapterOrder::Pin(at)).await;
    link.fetch().await.answer(&bundle("a")).await;
    link.told_in(at, AdapterTier::Memory).await;
    CloseCode::Internal.close(&link.connection);
    let mut link = stage.meet().await;
    assert!(link.told_in(at, AdapterTier::Memory).await.pinned);
    let digest = Digest::of(&bundle("a"));
    assert_eq!(link.told.keys().map(|told| told.0).collect::<Vec<_>>(), [digest]);
}
