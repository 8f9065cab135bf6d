//! Random worlds: whatever is asked, ordered, given back, damaged or late, in whatever order.

use std::time::Duration;

use proptest::prelude::*;
use shoal_common::wire::hello::AdapterTier;

use super::world::{Fate, Sizes, World, adapter};
use crate::adapters::book::{For, Limits};

/// Adapters there are.
const ADAPTERS: u8 = 7;

#[derive(Clone, Copy, Debug)]
enum Act {
    Ask(u8),
    Load(u8),
    Pin(u8),
    Unpin(u8),
    Forget(u8),
    LetGo(u8),
    Step(u8, Fate),
    Leave(usize),
    GiveBack(usize),
    Delete(usize),
    Pass(u64),
    Listen,
}

fn any_act() -> impl Strategy<Value = Act> {
    let which = || 0..ADAPTERS;
    let fate = prop_oneof![12 => Just(Fate::Good), 1 => Just(Fate::Damaged), 1 => Just(Fate::Bad)];
    prop_oneof![
        6 => which().prop_map(Act::Ask),
        1 => which().prop_map(Act::Load),
        1 => which().prop_map(Act::Pin),
        1 => which().prop_map(Act::Unpin),
        1 => which().prop_map(Act::Forget),
        1 => which().prop_map(Act::LetGo),
        16 => (which(), fate).prop_map(|(at, fate)| Act::Step(at, fate)),
        1 => any::<usize>().prop_map(Act::Leave),
        4 => any::<usize>().prop_map(Act::GiveBack),
        2 => any::<usize>().prop_map(Act::Delete),
        1 => (1..20_000u64).prop_map(Act::Pass),
        2 => Just(Act::Listen),
    ]
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (0..4usize, 10..60u64, 10..80u64).prop_map(|(slots, bytes, disk_bytes)| Limits { slots, bytes, disk_bytes })
}

fn any_sizes() -> impl Strategy<Value = Sizes> {
    (1..30u64, 1..40u64)
}

impl World {
    fn act(&mut self, act: Act) {
        match act {
            Act::Ask(at) => drop(self.ask(adapter(at), For::Group)),
            Act::Load(at) => {
                self.ask(adapter(at), For::Order);
                self.book.want(adapter(at));
            }
            Act::Pin(at) => self.pin(adapter(at)),
            Act::Unpin(at) => self.unpin(adapter(at)),
            Act::Forget(at) => self.forget(adapter(at)),
            Act::LetGo(at) => self.let_go(adapter(at)),
            Act::Step(at, fate) => self.step(adapter(at), fate),
            Act::Leave(index) => self.leave(index),
            Act::GiveBack(index) => self.give_back(index),
            Act::Delete(index) => self.delete(index),
            Act::Pass(millis) => self.now += Duration::from_millis(millis),
            Act::Listen => self.listen(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// What must hold after each act is checked by the world: the limits of memory and disk, one flight for each adapter, that
    /// nothing needed is evicted and nothing recently used before something older, and that quarantine lasts.
    #[test]
    fn the_books_are_right_whatever_happens_and_nobody_who_waits_is_forgotten(
        limits in any_limits(),
        sizes in prop::collection::vec(any_sizes(), ADAPTERS as usize),
        acts in prop::collection::vec(any_act(), 1..150),
    ) {
        let mut world = World::new(limits);
        (0..).zip(sizes).for_each(|(number, sizes)| world.size(adapter(number), sizes));
        acts.into_iter().for_each(|act| world.act(act));
        world.settle();
        world.listen();
        for number in 0..ADAPTERS {
            let (at, tier) = (adapter(number), world.tier(adapter(number)));
            let told = world.mirror.get(&at).map_or(AdapterTier::Gone, |state| state.tier);
            let expected = if world.quarantined.contains(&at) { AdapterTier::Quarantined } else { tier };
            prop_assert_eq!(told, expected);
            prop_assert_eq!(world.mirror.get(&at).is_some_and(|state| state.pinned), world.pinned.contains(&at));
        }
    }
}
