//! The members and their rules; beside it the tests of the fleet's parts, which share a fleet without sockets.

mod adapters;
mod challenge;
mod fleet;
mod link;
mod nearer;
mod prefix;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Digest, Generation, Incarnation, Name};
use shoal_common::wire::hello::{AdapterState, AdapterTier, Capacity, Hello, Refusal, Status, WorkerState};

use super::pick::{Access, LeastQueued, Need, Pick, Unroutable, Why};
use super::prefix::Overlaps;
use super::{Line, Offer, Roster, Seat};
use crate::catalogue::ServedModel;
use crate::testing::model;

#[derive(Debug, Default)]
pub(crate) struct FakeLine(AtomicBool);

impl Line for FakeLine {
    fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn connection(&self) -> Option<&quinn::Connection> {
        None
    }
}

/// Four adapters of 1 MB fit in memory, 64 blocks of KV.
pub(crate) const CAPACITY: Capacity =
    Capacity { slots: 8, kv_tokens: 1024, groups: 8, adapter_slots: 4, adapter_bytes: 4 << 20 };

pub(crate) fn offer(worker: &str, incarnation: u64, model: &Arc<ServedModel>) -> (Offer, Arc<FakeLine>) {
    let line = Arc::new(FakeLine::default());
    let hello = Hello {
        worker: name(worker),
        incarnation: Incarnation(incarnation),
        build: "test".to_owned(),
        capacity: CAPACITY,
        model: model.card.clone(),
        locality: None,
    };
    let offer = Offer { hello, model: Arc::clone(model), line: Arc::<FakeLine>::clone(&line), asked: Instant::now() };
    (offer, line)
}

pub(crate) fn status(queued_tokens: u64, state: WorkerState) -> Status {
    Status {
        state,
        progress: 1,
        running: 0,
        waiting: 0,
        queued_tokens,
        kv_used: 0,
        tokens_per_second: 1000,
        looked_up_tokens: 0,
        cached_tokens: 0,
        preemptions: 0,
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn generation(of: u64) -> Generation {
    Generation(Digest::of(&of.to_le_bytes()))
}

/// An adapter of 1 MB that was never loaded.
pub(crate) fn adapter(of: u64, tier: AdapterTier) -> AdapterState {
    AdapterState {
        generation: generation(of),
        tier,
        bytes: 1 << 20,
        rank: 8,
        load_ms: None,
        idle_ms: None,
        pinned: false,
        reason: None,
    }
}

fn picked(roster: &Roster, excluded: &[Seat]) -> Result<(String, Why), Unroutable> {
    let model = model();
    let need = Need {
        model: &model.card.name,
        fingerprint: model.card.fingerprint,
        adapter: None,
        access: Access::Everybody,
        overlaps: &Overlaps::default(),
        excluded,
    };
    LeastQueued.pick(&roster.snapshot(), &need).map(|choice| (choice.replica.worker.to_string(), choice.why))
}

/// A worker joins, and says that it waits for work.
pub(crate) fn serve(roster: &mut Roster, offer: Offer, now: Instant) -> Seat {
    let worker = offer.hello.worker.clone();
    let seat = roster.join(offer, now).unwrap();
    roster.report(&worker, seat, status(0, WorkerState::Ready), now);
    seat
}

/// Workers that wait for work; the seats count from 0.
pub(crate) fn roster_of(workers: &[&str], now: Instant) -> Roster {
    let mut roster = Roster::default();
    for (index, worker) in workers.iter().enumerate() {
        serve(&mut roster, offer(worker, index as u64, &model()).0, now);
    }
    roster
}

#[test]
fn a_second_worker_of_a_live_name_is_refused_and_a_restarted_one_is_taken() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let (first, line) = offer("w", 1, &model());
    roster.join(first, now).unwrap();
    assert_eq!(roster.join(offer("w", 2, &model()).0, now), Err(Refusal::DuplicateName));
    line.close();
    let (third, silent) = offer("w", 3, &model());
    roster.join(third, now).unwrap();
    assert_eq!(roster.snapshot().replicas[0].incarnation, Incarnation(3));
    let later = now + Duration::from_secs(2);
    roster.join(offer("w", 4, &model()).0, later).unwrap();
    assert_eq!(roster.snapshot().replicas[0].incarnation, Incarnation(4), "a silent life was kept");
    assert!(silent.is_closed(), "groups of the silent life wait for an end that is known");
}

#[test]
fn the_end_of_an_old_connection_does_not_take_the_worker_off_its_new_one() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let old = roster.join(offer("w", 1, &model()).0, now).unwrap();
    let new = roster.join(offer("w", 1, &model()).0, now).expect("the same life is no second worker");
    roster.leave(&name("w"), old);
    roster.report(&name("w"), new, status(0, WorkerState::Ready), now);
    roster.report(&name("w"), old, status(5, WorkerState::Draining), now);
    assert_eq!(picked(&roster, &[old]), Ok(("w".to_owned(), Why::OnlyOne)));
    roster.leave(&name("w"), new);
    assert_eq!(picked(&roster, &[]), Err(Unroutable::Nobody));
}

#[test]
fn words_of_a_dead_life_change_nothing() {
    let now = Instant::now();
    let mut roster = roster_of(&["w"], now);
    roster.report(&name("w"), Seat(99), status(5, WorkerState::Draining), now);
    roster.leave(&name("w"), Seat(99));
    let snapshot = roster.snapshot();
    assert_eq!(snapshot.replicas.len(), 1);
    assert_eq!(snapshot.replicas[0].status, Some(status(0, WorkerState::Ready)));
}

#[test]
fn replicas_that_disagree_about_a_model_are_refused() {
    let now = Instant::now();
    let mut roster = roster_of(&["a"], now);
    let mut other = ServedModel { card: model().card.clone(), tokenizer: model().tokenizer.clone(), created: 1 };
    other.card.weights = Digest::of(b"other weights");
    other.card.fingerprint = Fingerprint::new(other.card.weights, None, other.card.tokenizer, "test");
    let other = Arc::new(other);
    assert!(matches!(roster.join(offer("b", 9, &other).0, now), Err(Refusal::ModelMismatch { .. })));
    roster.leave(&name("a"), Seat(0));
    roster.join(offer("b", 9, &other).0, now).expect("nobody serves the old weights any more");
}

#[test]
fn builds_that_compute_alike_serve_side_by_side_and_one_that_does_not_is_refused() {
    let now = Instant::now();
    let mut roster = roster_of(&["a"], now);
    let (mut newer, _) = offer("b", 8, &model());
    newer.hello.build = "another build".to_owned();
    roster.join(newer, now).expect("the same fingerprint");
    let mut other = ServedModel { card: model().card.clone(), tokenizer: model().tokenizer.clone(), created: 1 };
    other.card.numerics_class = "another order of sums".to_owned();
    other.card.fingerprint =
        Fingerprint::new(other.card.weights, None, other.card.tokenizer, &other.card.numerics_class);
    let refused = roster.join(offer("c", 9, &Arc::new(other)).0, now);
    assert!(matches!(refused, Err(Refusal::ModelMismatch { .. })), "{refused:?}");
    let builds: Vec<_> = roster.snapshot().replicas.iter().map(|replica| replica.build.clone()).collect();
    assert_eq!(builds, ["test", "another build"]);
}

#[test]
fn part_of_a_model_is_not_taken_for_a_whole() {
    let mut part = ServedModel { card: model().card.clone(), tokenizer: model().tokenizer.clone(), created: 1 };
    part.card.layers.end = 2;
    let refused = Roster::default().join(offer("w", 1, &Arc::new(part)).0, Instant::now());
    assert_eq!(refused, Err(Refusal::IncompleteModel));
}

#[test]
fn a_group_goes_where_the_fewest_tokens_wait() {
    let now = Instant::now();
    let mut roster = roster_of(&["a", "b", "c"], now);
    for (worker, seat, queued) in [("a", 0, 50), ("b", 1, 10), ("c", 2, 30)] {
        roster.report(&name(worker), Seat(seat), status(queued, WorkerState::Ready), now);
    }
    assert_eq!(picked(&roster, &[]), Ok(("b".to_owned(), Why::LeastQueued)));
    let snapshot = roster.snapshot();
    let guard = snapshot.replicas[1].reserve(100, None);
    assert_eq!(picked(&roster, &[]).unwrap().0, "c", "tokens sent since the last report were not counted");
    drop(guard);
    assert_eq!(picked(&roster, &[]).unwrap().0, "b");
    assert_eq!(picked(&roster, &[Seat(1), Seat(2)]), Ok(("a".to_owned(), Why::OnlyOne)));
}

#[test]
fn draining_gone_and_excluded_replicas_get_nothing() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let (gone, line) = offer("gone", 1, &model());
    serve(&mut roster, gone, now);
    let draining = roster.join(offer("draining", 2, &model()).0, now).unwrap();
    roster.report(&name("draining"), draining, status(0, WorkerState::Draining), now);
    line.close();
    assert_eq!(picked(&roster, &[]), Err(Unroutable::Nobody));
}

#[test]
fn a_worker_that_has_not_said_yet_how_it_is_gets_nothing() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let seat = roster.join(offer("w", 1, &model()).0, now).unwrap();
    assert_eq!(picked(&roster, &[]), Err(Unroutable::Nobody), "its model may be incomplete");
    roster.report(&name("w"), seat, status(0, WorkerState::Incomplete), now);
    assert_eq!(picked(&roster, &[]), Err(Unroutable::Nobody));
    roster.report(&name("w"), seat, status(0, WorkerState::Ready), now);
    assert_eq!(picked(&roster, &[]), Ok(("w".to_owned(), Why::OnlyOne)));
}
