use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::Digest;
use shoal_common::wire::hello::{Capacity, Hello, WorkerState};

use super::pick::{LeastQueued, Need, Pick, Why};
use super::roster::{Line, Seat};
use shoal_common::ids::Incarnation;

use super::*;
use crate::testing::model;

#[derive(Debug, Default)]
struct FakeLine(AtomicBool);

impl Line for FakeLine {
    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn connection(&self) -> Option<&quinn::Connection> {
        None
    }
}

fn offer(worker: &str, incarnation: u64, model: &Arc<ServedModel>) -> (Offer, Arc<FakeLine>) {
    let line = Arc::new(FakeLine::default());
    let hello = Hello {
        worker: Name::new(worker).unwrap(),
        incarnation: Incarnation(incarnation),
        build: "test".to_owned(),
        capacity: Capacity { slots: 1, kv_tokens: 1, groups: 1, adapter_slots: 4, adapter_bytes: 1 << 20 },
        model: model.card.clone(),
    };
    (Offer { hello, model: Arc::clone(model), line: Arc::<FakeLine>::clone(&line) }, line)
}

fn status(queued_tokens: u64, state: WorkerState) -> Status {
    Status {
        state,
        progress: 1,
        running: 0,
        waiting: 0,
        queued_tokens,
        kv_used: 0,
        tokens_per_second: 10,
        looked_up_tokens: 0,
        cached_tokens: 0,
        preemptions: 0,
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn picked(roster: &Roster, excluded: &[Seat]) -> Option<(String, Why)> {
    let model = model();
    let need = Need { model: &model.card.name, fingerprint: model.card.fingerprint, excluded };
    LeastQueued.pick(&roster.snapshot(), &need).map(|choice| (choice.replica.worker.to_string(), choice.why))
}

fn roster_of(workers: &[&str], now: Instant) -> Roster {
    let mut roster = Roster::default();
    for (index, worker) in workers.iter().enumerate() {
        roster.join(offer(worker, index as u64, &model()).0, now).unwrap();
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
    line.0.store(true, Ordering::Relaxed);
    roster.join(offer("w", 3, &model()).0, now).unwrap();
    assert_eq!(roster.snapshot().replicas[0].incarnation, Incarnation(3));
    let later = now + Duration::from_secs(2);
    roster.join(offer("w", 4, &model()).0, later).unwrap();
    assert_eq!(roster.snapshot().replicas[0].incarnation, Incarnation(4), "a silent life was kept");
}

#[test]
fn the_end_of_an_old_connection_does_not_take_the_worker_off_its_new_one() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let old = roster.join(offer("w", 1, &model()).0, now).unwrap();
    let new = roster.join(offer("w", 1, &model()).0, now).expect("the same life is no second worker");
    roster.leave(&name("w"), old);
    roster.report(&name("w"), old, status(5, WorkerState::Draining), now);
    assert_eq!(picked(&roster, &[old]), Some(("w".to_owned(), Why::OnlyOne)));
    roster.leave(&name("w"), new);
    assert_eq!(picked(&roster, &[]), None);
}

#[tokio::test]
async fn a_worker_whose_greeting_breaks_after_it_joined_leaves_the_fleet() {
    let (published, snapshots) = watch::channel(Arc::default());
    let mut view = FleetView::new(snapshots);
    let (fleet, _) = Actor::spawn(None, FleetActor, published).await.unwrap();
    let offer = Box::new(offer("w", 1, &model()).0);
    let membership = ractor::call!(fleet, FleetMessage::Join, offer).unwrap().unwrap();
    assert!(view.changed().await);
    assert_eq!(view.now().replicas.len(), 1);
    drop(membership);
    assert!(view.changed().await);
    assert_eq!(view.now().replicas.len(), 0);
}

#[test]
fn words_of_a_dead_life_change_nothing() {
    let now = Instant::now();
    let mut roster = roster_of(&["w"], now);
    roster.report(&name("w"), Seat(99), status(5, WorkerState::Draining), now);
    roster.leave(&name("w"), Seat(99));
    let snapshot = roster.snapshot();
    assert_eq!(snapshot.replicas.len(), 1);
    assert!(snapshot.replicas[0].status.is_none());
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
    assert_eq!(picked(&roster, &[]), Some(("b".to_owned(), Why::LeastQueued)));
    let snapshot = roster.snapshot();
    let guard = snapshot.replicas[1].reserve(100);
    assert_eq!(picked(&roster, &[]).unwrap().0, "c", "tokens sent since the last report were not counted");
    drop(guard);
    assert_eq!(picked(&roster, &[]).unwrap().0, "b");
    assert_eq!(picked(&roster, &[Seat(1), Seat(2)]), Some(("a".to_owned(), Why::OnlyOne)));
}

#[test]
fn draining_gone_and_excluded_replicas_get_nothing() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let (gone, line) = offer("gone", 1, &model());
    roster.join(gone, now).unwrap();
    let draining = roster.join(offer("draining", 2, &model()).0, now).unwrap();
    roster.report(&name("draining"), draining, status(0, WorkerState::Draining), now);
    line.0.store(true, Ordering::Relaxed);
    assert_eq!(picked(&roster, &[]), None);
}
