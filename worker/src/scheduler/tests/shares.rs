//! Whose turn it is.

use super::world::{Ask, ROOMY, World, ask};
use crate::scheduler::shares::Shares;
use crate::scheduler::*;

/// Groups that are served one after the other, each for so many tokens.
fn turns(shares: &mut Shares, cost: impl Fn(u64) -> usize, count: usize) -> Vec<u64> {
    let turn = |_| {
        let group = shares.next(|_| true).unwrap();
        let key = group.0 / 1000;
        shares.leave(key, group);
        shares.served(key);
        shares.charge(key, cost(key));
        shares.settle(|_| true);
        key
    };
    (0..count).map(turn).collect()
}

fn queued(keys: impl IntoIterator<Item = u64>) -> Shares {
    let mut shares = Shares::default();
    keys.into_iter().for_each(|key| (0..1000).for_each(|at| shares.admit(key, GroupId(key * 1000 + at))));
    shares
}

#[test]
fn keys_take_turns_and_groups_of_a_key_go_in_the_order_of_their_arrival() {
    let mut shares = queued([1, 2, 3]);
    assert_eq!(turns(&mut shares, |_| 10, 6), [1, 2, 3, 1, 2, 3]);
    assert_eq!(shares.next(|_| true), Some(GroupId(1002)));
    assert_eq!(shares.next(|group| group.0 > 2500), Some(GroupId(2501)), "who is not ready is passed over");
}

#[test]
fn keys_get_the_same_number_of_tokens_however_large_their_groups() {
    let mut shares = queued([1, 2]);
    let cost = |key| if key == 1 { 1000 } else { 50 };
    let order = turns(&mut shares, cost, 900);
    let tokens = |key| order.iter().filter(|other| **other == key).count() * cost(key);
    let (large, small) = (tokens(1) as f64, tokens(2) as f64);
    assert!((large / small - 1.0).abs() < 0.1, "{large} and {small}");
}

#[test]
fn what_was_computed_alone_is_not_held_against_a_key_for_ever() {
    let mut shares = queued([1]);
    turns(&mut shares, |_| 100_000, 50);
    (0..100).for_each(|at| shares.admit(2, GroupId(2000 + at)));
    let order = turns(&mut shares, |_| 100, 20);
    assert!(order.iter().filter(|key| **key == 1).count() >= 8, "{order:?}");
}

#[test]
fn a_key_that_is_gone_is_forgotten() {
    let mut shares = queued([1]);
    (0..1000).for_each(|at| shares.finish(1, GroupId(1000 + at)));
    assert!(shares.is_idle());
    assert_eq!(shares.next(|_| true), None);
    shares.finish(1, GroupId(1));
}

#[test]
fn one_user_cannot_starve_another() {
    let mut world = World::new(Bounds { slots: 1, ..ROOMY }, usize::MAX);
    for id in 0..20 {
        world.admit(id, ask(7, 4, 4, 2)).unwrap();
    }
    let other = world.admit(20, ask(8, 4, 4, 1)).unwrap();
    while !world.finished.contains(&other) {
        assert!(world.step());
    }
    assert!(world.finished.len() <= 2, "the other user waited for {} groups", world.finished.len() - 1);
}

#[test]
fn a_user_with_long_prompts_gets_no_more_than_one_with_short_ones() {
    let mut world = World::new(Bounds { slots: 4, blocks: 4000, ..ROOMY }, usize::MAX);
    let long: Vec<_> = (0..10).map(|id| world.admit(id, ask(1, 3000, 2, 1)).unwrap()).collect();
    let short: Vec<_> = (10..60).map(|id| world.admit(id, Ask { story: 0, ..ask(2, 100, 2, 1) }).unwrap()).collect();
    while !short.iter().all(|id| world.finished.contains(id)) {
        assert!(world.step());
    }
    let tokens = |ids: &[GroupId]| ids.iter().map(|id| world.computed_of(*id)).sum::<usize>();
    let (long, short) = (tokens(&long), tokens(&short));
    assert!(long < 2 * short, "{long} tokens of long prompts beside {short} of short ones");
    assert!(long > short / 3, "long prompts stand still: {long} tokens beside {short}");
}
