//! Who gets a name that is taken.

use ractor::Actor;
use shoal_common::watch;

use super::*;
use crate::fleet::challenge::join;
use crate::fleet::{FleetActor, FleetView, Membership};

/// A fleet in which the first life of `w` holds the name.
struct Held {
    fleet: ractor::ActorRef<crate::fleet::FleetMessage>,
    view: FleetView,
    line: Arc<FakeLine>,
    holder: Membership,
}

impl Held {
    async fn new() -> Self {
        let (published, snapshots) = watch::channel(Arc::default());
        let (fleet, _) = Actor::spawn(None, FleetActor, (published, Duration::from_secs(1))).await.unwrap();
        let (first, line) = offer("w", 1, &model());
        let view = FleetView::new(snapshots);
        let holder = join(&fleet, view.clone(), first).await.unwrap().unwrap();
        Self { fleet, view, line, holder }
    }

    async fn next_life(&self, incarnation: u64) -> Result<Membership, Refusal> {
        join(&self.fleet, self.view.clone(), offer("w", incarnation, &model()).0).await.unwrap()
    }

    fn seated(&self) -> Vec<u64> {
        self.view.now().replicas.iter().map(|replica| replica.incarnation.0).collect()
    }

    /// The holder tells its load as a worker does.
    async fn speaks(&self) {
        loop {
            self.holder.report(status(0, WorkerState::Ready)).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_worker_that_is_killed_and_started_again_at_once_takes_its_own_place() {
    let held = Held::new().await;
    held.holder.report(status(0, WorkerState::Ready)).unwrap();
    let _second = held.next_life(2).await.expect("its life before says nothing any more");
    assert_eq!(held.seated(), [2]);
}

#[tokio::test]
async fn a_worker_that_dies_again_while_its_place_is_contested_does_not_hold_it() {
    let held = Held::new().await;
    held.holder.report(status(0, WorkerState::Ready)).unwrap();
    // The second life asks and is never heard of again; the third comes after it.
    let (second, third) = tokio::join!(held.next_life(2), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        held.next_life(3).await
    });
    let (_second, _third) = (second, third.expect("the second life did not show that it lives"));
    assert_eq!(held.seated(), [3]);
}

#[tokio::test]
async fn a_second_worker_of_a_name_whose_holder_lives_is_refused() {
    let held = Held::new().await;
    let second = tokio::select! {
        second = held.next_life(2) => second,
        () = held.speaks() => unreachable!("it never ends"),
    };
    assert!(matches!(second, Err(Refusal::DuplicateName)), "{second:?}");
    assert_eq!(held.seated(), [1]);
}

#[tokio::test]
async fn a_holder_whose_connection_ends_during_the_challenge_has_lost_it() {
    let held = Held::new().await;
    let ends = async {
        tokio::select! {
            () = held.speaks() => unreachable!("it never ends"),
            () = tokio::time::sleep(Duration::from_millis(200)) => held.line.close(),
        }
        held.holder.report(status(0, WorkerState::Ready)).unwrap();
    };
    let (second, ()) = tokio::join!(held.next_life(2), ends);
    let _second = second.expect("the holder is gone");
    assert_eq!(held.seated(), [2]);
}
