//! One test per promise.

use std::time::Duration;

use shoal_common::wire::hello::{AdapterState, AdapterTier};

use super::world::{Fate, PATIENCE, World, adapter};
use crate::adapters::book::blame::{FIRST_PAUSE, LONGEST_PAUSE, MOST};
use crate::adapters::book::{Asked, Book, For, Limits, MAX_FLIGHTS};
use crate::adapters::error::{AcquireError, Reason, Unavailable};

const LIMITS: Limits = Limits { slots: 2, bytes: 100, disk_bytes: 1000 };

impl World {
    /// Brings it into memory and gives it back.
    fn load(&mut self, number: u8) {
        self.ask(adapter(number), For::Group);
        self.go_on(number, 5);
        assert_eq!(self.leases.pop(), Some(adapter(number)));
    }

    fn go_on(&mut self, number: u8, steps: usize) {
        (0..steps).for_each(|_| self.step(adapter(number), Fate::Good));
    }

    fn last(&self) -> &Result<(), AcquireError> {
        &self.landed.last().unwrap().1
    }

    fn told(&mut self, number: u8) -> AdapterState {
        self.listen();
        self.mirror[&adapter(number)].clone()
    }
}

fn refusal(asked: &Asked) -> &AcquireError {
    match asked {
        Asked::Refused(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_least_recently_used_gives_way() {
    let mut world = World::new(LIMITS);
    [1, 2, 1, 3].into_iter().for_each(|number| world.load(number));
    assert_eq!(world.evicted, [adapter(2)]);
    world.load(2);
    assert_eq!(world.evicted, [adapter(2), adapter(1)]);
    assert_eq!(world.tier(adapter(1)), AdapterTier::Disk);
}

#[test]
fn bytes_count_as_slots_do() {
    let mut world = World::new(Limits { slots: 10, ..LIMITS });
    for (number, bytes) in [(1, 40), (2, 40), (3, 60), (4, 101)] {
        world.size(adapter(number), (10, bytes));
    }
    [1, 2, 3].into_iter().for_each(|number| world.load(number));
    assert_eq!(world.evicted, [adapter(1)]);
    // Its file did not tell; now it is known, and nobody goes for it again.
    for _ in 0..2 {
        world.ask(adapter(4), For::Group);
        world.go_on(4, 5);
        assert_eq!(world.last(), &Err(Unavailable::TooLarge.into()));
        assert_eq!(world.evicted, [adapter(1), adapter(2)]);
    }
}

#[test]
fn a_load_waits_for_a_slot_until_a_group_ends() {
    let mut world = World::new(LIMITS);
    [1, 2].into_iter().for_each(|number| drop(world.ask(adapter(number), For::Group)));
    [1, 2].into_iter().for_each(|number| world.go_on(number, 5));
    world.ask(adapter(3), For::Group);
    world.go_on(3, 10);
    assert_eq!(world.tier(adapter(3)), AdapterTier::Loading);
    world.give_back(0);
    world.go_on(3, 2);
    assert_eq!((world.last(), world.evicted.len()), (&Ok(()), 1));
}

#[test]
fn a_load_that_gets_no_slot_in_time_is_late_but_not_while_somebody_more_patient_waits() {
    let mut world = World::new(LIMITS);
    [1, 2].into_iter().for_each(|number| world.pin(adapter(number)));
    [1, 2].into_iter().for_each(|number| world.go_on(number, 5));
    world.ask(adapter(3), For::Group);
    world.go_on(3, 5);
    world.now += PATIENCE / 2;
    world.ask(adapter(3), For::Group);
    world.now += PATIENCE / 2;
    world.go_on(3, 1);
    assert_eq!(world.landed.len(), 2);
    world.now += PATIENCE / 2;
    world.go_on(3, 1);
    assert_eq!(world.last(), &Err(Unavailable::Late.into()));
    assert_eq!(world.tier(adapter(3)), AdapterTier::Disk, "it is nearer than it was");
    assert!(matches!(world.ask(adapter(3), For::Group), Asked::Begun(_)), "and may be tried at once");
}

#[test]
fn room_is_given_in_the_order_in_which_it_was_asked_for() {
    let mut world = World::new(Limits { slots: 10, ..LIMITS });
    for (number, bytes) in [(1, 90), (2, 80), (3, 10)] {
        world.size(adapter(number), (bytes, bytes));
        world.ask(adapter(number), For::Group);
    }
    world.go_on(1, 5);
    [2, 3].into_iter().for_each(|number| world.go_on(number, 5));
    assert_eq!(world.tier(adapter(3)), AdapterTier::Loading, "it would fit, but is not first");
    world.give_back(0);
    [3, 2, 3, 2, 3].into_iter().for_each(|number| world.go_on(number, 1));
    assert!(world.landed.iter().all(|(_, landing)| landing.is_ok()));
    assert_eq!(world.landed.len(), 3);
}

#[test]
fn an_adapter_larger_than_its_file_waits_for_the_room_it_needs() {
    let mut world = World::new(Limits { slots: 10, ..LIMITS });
    world.size(adapter(1), (10, 60));
    world.size(adapter(2), (10, 50));
    [1, 2].into_iter().for_each(|number| drop(world.ask(adapter(number), For::Group)));
    world.go_on(1, 5);
    world.go_on(2, 20);
    assert_eq!(world.tier(adapter(2)), AdapterTier::Loading);
    world.give_back(0);
    world.go_on(2, 2);
    assert_eq!((world.last(), world.evicted.clone()), (&Ok(()), vec![adapter(1)]));
}

#[test]
fn pinned_ones_stay_whatever_is_asked_for_until_they_are_unpinned() {
    let mut world = World::new(LIMITS);
    world.pin(adapter(1));
    world.go_on(1, 5);
    [2, 3, 4].into_iter().for_each(|number| world.load(number));
    assert_eq!(world.evicted, [adapter(2), adapter(3)]);
    assert!(world.told(1).pinned);
    world.unpin(adapter(1));
    world.load(5);
    assert_eq!(world.evicted, [adapter(2), adapter(3), adapter(1)]);
}

#[test]
fn files_are_dropped_least_recently_used_first_and_never_those_in_flight() {
    let mut world = World::new(Limits { disk_bytes: 30, ..LIMITS });
    [1, 2, 3, 1].into_iter().for_each(|number| world.load(number));
    world.ask(adapter(4), For::Group);
    world.go_on(4, 1);
    assert_eq!(world.tier(adapter(2)), AdapterTier::Gone);
    assert_eq!(world.tier(adapter(1)), AdapterTier::Memory, "without its file it is as good");
    [5, 6, 7].into_iter().for_each(|number| drop(world.ask(adapter(number), For::Group)));
    [5, 6, 7].into_iter().for_each(|number| world.go_on(number, 1));
    assert_eq!(world.last(), &Err(Unavailable::NoRoom.into()), "all of the room is on its way");
    world.settle();
}

#[test]
fn a_file_larger_than_the_disk_is_refused_and_costs_nobody_anything() {
    let mut world = World::new(Limits { disk_bytes: 30, ..LIMITS });
    world.load(1);
    world.size(adapter(2), (31, 1));
    world.ask(adapter(2), For::Group);
    world.go_on(2, 1);
    assert_eq!(world.last(), &Err(Unavailable::TooLarge.into()));
    assert_eq!(world.book.on_disk(), (1, 10));
}

#[test]
fn a_full_device_sheds_as_much_as_is_needed() {
    let mut world = World::new(LIMITS);
    [1, 2, 3].into_iter().for_each(|number| world.load(number));
    assert_eq!(world.book.shed_files(11), [adapter(1), adapter(2)]);
    assert_eq!(world.book.shed_files(1 << 40), [adapter(3)], "or as much as there is");
    assert!(world.book.shed_files(1).is_empty());
}

#[test]
fn files_of_an_earlier_life_are_known_up_to_the_limit() {
    let mut book = Book::new(Limits { disk_bytes: 25, ..LIMITS });
    assert!(book.found(adapter(1), 10).is_empty());
    assert!(book.found(adapter(2), 10).is_empty());
    assert_eq!(book.found(adapter(3), 10), [adapter(1)], "the least recently used goes");
    assert_eq!(book.found(adapter(4), 26), [adapter(4)]);
    assert_eq!(book.on_disk(), (2, 20));
}

#[test]
fn quarantine_lasts_until_the_adapter_is_forgotten() {
    let mut world = World::new(LIMITS);
    world.ask(adapter(1), For::Group);
    world.go_on(1, 3);
    world.step(adapter(1), Fate::Bad);
    let bad = AcquireError::Quarantined(Reason::new("bad"));
    assert_eq!(world.last(), &Err(bad.clone()));
    world.now += Duration::from_secs(1 << 20);
    for purpose in [For::Group, For::Order] {
        assert_eq!(refusal(&world.ask(adapter(1), purpose)), &bad);
    }
    assert_eq!((world.told(1).tier, world.told(1).reason.as_deref()), (AdapterTier::Quarantined, Some("bad")));
    world.forget(adapter(1));
    world.listen();
    assert!(world.mirror.is_empty());
    world.load(1);
}

#[test]
fn no_more_are_kept_in_quarantine_than_its_bound() {
    let mut world = World::new(LIMITS);
    let numbered =
        |number: usize| shoal_common::ids::Generation(shoal_common::ids::Digest::of(&(number as u64).to_le_bytes()));
    for number in 0..=MOST {
        world.ask(numbered(number), For::Group);
        (0..3).for_each(|_| world.step(numbered(number), Fate::Good));
        world.step(numbered(number), Fate::Bad);
    }
    world.quarantined.remove(&numbered(0));
    assert!(matches!(world.ask(numbered(0), For::Group), Asked::Begun(_)));
    assert!(matches!(world.ask(numbered(1), For::Group), Asked::Refused(_)));
}

#[test]
fn what_failed_here_pauses_longer_each_time_and_what_went_well_is_forgiven() {
    let mut world = World::new(LIMITS);
    let mut wait = FIRST_PAUSE;
    for _ in 0..10 {
        world.ask(adapter(1), For::Group);
        world.go_on(1, 1);
        world.step(adapter(1), Fate::Damaged);
        world.now += wait - Duration::from_millis(1);
        assert_eq!(refusal(&world.ask(adapter(1), For::Group)), &Unavailable::Corrupt.into());
        world.now += Duration::from_millis(1);
        wait = (wait * 2).min(LONGEST_PAUSE);
    }
    assert_eq!(wait, LONGEST_PAUSE);
    world.load(1);
    world.forget(adapter(1));
    world.delete(0);
    world.ask(adapter(1), For::Group);
    world.go_on(1, 1);
    world.step(adapter(1), Fate::Damaged);
    world.now += FIRST_PAUSE;
    assert!(matches!(world.ask(adapter(1), For::Group), Asked::Begun(_)));
}

#[test]
fn what_nobody_has_may_be_asked_for_again_at_once() {
    let mut world = World::new(LIMITS);
    world.ask(adapter(1), For::Group);
    world.step(adapter(1), Fate::Bad);
    assert_eq!(world.last(), &Err(Unavailable::NotFound.into()));
    assert!(matches!(world.ask(adapter(1), For::Group), Asked::Begun(_)));
}

#[test]
fn a_worker_without_slots_fetches_nothing() {
    let mut world = World::new(Limits { slots: 0, ..LIMITS });
    for purpose in [For::Group, For::Order] {
        assert_eq!(refusal(&world.ask(adapter(1), purpose)), &Unavailable::TooLarge.into());
    }
}

#[test]
fn one_flight_too_many_is_refused() {
    let mut world = World::new(LIMITS);
    let numbered =
        |number: usize| shoal_common::ids::Generation(shoal_common::ids::Digest::of(&(number as u64).to_le_bytes()));
    (0..MAX_FLIGHTS).for_each(|number| assert!(matches!(world.ask(numbered(number), For::Order), Asked::Begun(_))));
    assert_eq!(refusal(&world.ask(numbered(MAX_FLIGHTS), For::Group)), &Unavailable::Crowded.into());
    assert!(matches!(world.ask(numbered(0), For::Group), Asked::Joined(_)));
}

#[test]
fn a_forgotten_one_goes_when_its_last_group_ends_with_its_file() {
    let mut world = World::new(LIMITS);
    world.ask(adapter(1), For::Group);
    world.go_on(1, 5);
    world.forget(adapter(1));
    assert_eq!(world.tier(adapter(1)), AdapterTier::Memory);
    assert_eq!(world.ask(adapter(1), For::Group), Asked::Ready, "a group that is moved here still finds it");
    world.give_back(0);
    world.let_go(adapter(1));
    assert_eq!(world.tier(adapter(1)), AdapterTier::Memory);
    world.give_back(0);
    world.let_go(adapter(1));
    assert_eq!(world.tier(adapter(1)), AdapterTier::Gone);
    world.delete(0);
    assert_eq!((world.book.in_memory(), world.book.on_disk()), ((0, 0), (0, 0)));
}

#[test]
fn one_that_is_wanted_again_is_not_let_go_of() {
    let mut world = World::new(LIMITS);
    world.ask(adapter(1), For::Group);
    world.go_on(1, 5);
    world.forget(adapter(1));
    world.ask(adapter(1), For::Order);
    world.book.want(adapter(1));
    world.give_back(0);
    world.let_go(adapter(1));
    assert_eq!(world.tier(adapter(1)), AdapterTier::Memory);
}

#[test]
fn a_flight_goes_on_when_all_who_wait_for_it_leave() {
    let mut world = World::new(LIMITS);
    (0..3).for_each(|_| drop(world.ask(adapter(1), For::Group)));
    (0..3).for_each(|_| world.leave(0));
    world.go_on(1, 5);
    assert_eq!((world.last(), world.leases.len()), (&Ok(()), 0));
    assert_eq!(world.told(1).idle_ms, None, "no group has begun with it");
}

#[test]
fn a_router_is_told_of_each_change_once_and_of_what_came_and_went_never() {
    let mut world = World::new(LIMITS);
    world.size(adapter(1), (10, 20));
    world.ask(adapter(1), For::Group);
    assert_eq!(world.told(1).tier, AdapterTier::Loading);
    world.go_on(1, 5);
    world.now += Duration::from_millis(7);
    let told = world.told(1);
    assert_eq!((told.tier, told.bytes, told.rank), (AdapterTier::Memory, 20, 8));
    assert_eq!((told.load_ms, told.idle_ms, told.pinned), (Some(5), Some(7), false));
    world.give_back(0);
    [2, 3].into_iter().for_each(|number| world.load(number));
    let told = world.told(1);
    assert_eq!((told.tier, told.bytes, told.rank), (AdapterTier::Disk, 10, 8));
    world.ask(adapter(9), For::Group);
    world.step(adapter(9), Fate::Bad);
    world.listen();
    assert!(!world.mirror.contains_key(&adapter(9)));
}
