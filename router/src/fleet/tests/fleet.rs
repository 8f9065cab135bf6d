//! The fleet's actor: what it publishes and whom it tells.

use ractor::{Actor, ActorRef, call};
use shoal_common::watch;
use shoal_common::wire::hello::AdapterOrder;

use super::*;
use crate::fleet::{FleetActor, FleetMessage, FleetView, Membership};

async fn fleet() -> (ActorRef<FleetMessage>, FleetView) {
    let (published, snapshots) = watch::channel(Arc::default());
    let (fleet, _) = Actor::spawn(None, FleetActor, (published, Duration::from_secs(1))).await.unwrap();
    (fleet, FleetView::new(snapshots))
}

async fn join(fleet: &ActorRef<FleetMessage>, worker: &str) -> Membership {
    let offer = Box::new(offer(worker, 1, &model()).0);
    call!(fleet, FleetMessage::Join, offer).unwrap().unwrap()
}

async fn tell(fleet: &ActorRef<FleetMessage>, worker: &str, seat: Seat, state: AdapterState) {
    let (worker, state) = (name(worker), Box::new(state));
    call!(fleet, |noted| FleetMessage::Adapter { worker, seat, state, noted }).unwrap();
}

#[tokio::test]
async fn a_worker_whose_greeting_breaks_after_it_joined_leaves_the_fleet() {
    let (fleet, mut view) = fleet().await;
    let membership = join(&fleet, "w").await;
    assert!(view.changed().await);
    assert_eq!(view.now().replicas.len(), 1);
    drop(membership);
    assert!(view.changed().await);
    assert_eq!(view.now().replicas.len(), 0);
}

#[tokio::test]
async fn where_an_adapter_is_can_be_seen_until_its_worker_leaves() {
    let (fleet, mut view) = fleet().await;
    let members = (join(&fleet, "a").await, join(&fleet, "b").await);
    tell(&fleet, "a", Seat(0), adapter(1, AdapterTier::Memory)).await;
    tell(&fleet, "b", Seat(1), adapter(1, AdapterTier::Disk)).await;
    tell(&fleet, "b", Seat(1), adapter(2, AdapterTier::Memory)).await;
    tell(&fleet, "b", Seat(7), adapter(1, AdapterTier::Quarantined)).await;
    let seen = |view: &FleetView, of| -> Vec<_> {
        view.residency(generation(of)).into_iter().map(|(worker, state)| (worker.to_string(), state.tier)).collect()
    };
    let both = [("a".to_owned(), AdapterTier::Memory), ("b".to_owned(), AdapterTier::Disk)];
    assert_eq!(seen(&view, 1), both, "words from a place that was given up were believed");
    assert_eq!(seen(&view, 2), [("b".to_owned(), AdapterTier::Memory)]);
    drop(members.0);
    while view.now().replicas.len() > 1 {
        assert!(view.changed().await);
    }
    assert_eq!(seen(&view, 1), both[1..]);
    let back = join(&fleet, "a").await;
    assert_eq!(seen(&view, 1), both[1..], "what a worker had before it left was remembered");
    drop(back);
}

#[tokio::test]
async fn an_order_reaches_every_worker_of_its_model_and_a_pin_those_that_join_later_too() {
    let (fleet, _view) = fleet().await;
    let early = join(&fleet, "a").await;
    let (mine, other) = (Some(model().card.name.clone()), Some(name("other")));
    for (model, order) in [
        (mine.clone(), AdapterOrder::Pin(generation(1))),
        (None, AdapterOrder::Pin(generation(2))),
        (other, AdapterOrder::Pin(generation(3))),
        (mine.clone(), AdapterOrder::Load(generation(4))),
        (mine, AdapterOrder::Pin(generation(5))),
        (None, AdapterOrder::Unpin(generation(5))),
    ] {
        fleet.cast(FleetMessage::Order { model, order }).unwrap();
    }
    let late = join(&fleet, "b").await;
    let orders = |membership: &Membership| {
        let orders = membership.orders();
        let mut told: Vec<_> = std::iter::from_fn(|| orders.take()).map(|order| format!("{order:?}")).collect();
        told.sort();
        told
    };
    let sorted = |orders: &[AdapterOrder]| {
        let mut sorted: Vec<_> = orders.iter().map(|order| format!("{order:?}")).collect();
        sorted.sort();
        sorted
    };
    let [one, two] = [1, 2].map(|of| AdapterOrder::Pin(generation(of)));
    let rest = [AdapterOrder::Load(generation(4)), AdapterOrder::Unpin(generation(5))];
    assert_eq!(orders(&early), sorted(&[one, two, rest[0], rest[1]]));
    assert_eq!(orders(&late), sorted(&[one, two]));
}
