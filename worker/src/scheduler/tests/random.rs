//! The policy's promises over random groups and random interference. The world checks at every step what a backend would,
//! that the books are exact, and that nobody is preempted for a younger one.

use proptest::prelude::*;
use shoal_common::ids::BranchIndex;

use super::world::{Ask, World};
use crate::scheduler::*;

fn any_bounds() -> impl Strategy<Value = Bounds> {
    let queued_tokens = prop_oneof![1 => 100..500u64, 3 => Just(u64::MAX)];
    (1..6usize, 3..14usize, queued_tokens, 1..40usize).prop_map(|(slots, blocks, queued_tokens, step_tokens)| Bounds {
        slots,
        blocks,
        groups: 24,
        queued_tokens,
        step_tokens,
    })
}

/// Few stories, so that prompts begin alike; 0 is a story of one's own.
fn any_ask() -> impl Strategy<Value = Ask> {
    let scoring = prop_oneof![3 => Just(Scoring::Off), 1 => Just(Scoring::Prompt)];
    (0..3u64, 0..3u32, 1..60usize, 1..40usize, prop::collection::vec(0..40usize, 0..5), scoring).prop_map(
        |(share_key, story, prompt, max_tokens, emitted, scoring)| {
            let scoring = if emitted.is_empty() { Scoring::Prompt } else { scoring };
            let emitted = emitted.into_iter().map(|n| n % max_tokens).collect();
            Ask { share_key, story, prompt, max_tokens, emitted, scoring }
        },
    )
}

#[derive(Clone, Debug)]
enum Disturbance {
    Arrive(Ask),
    Cancel(u64),
    StopBranch(u64, u16),
    Park(u64),
    Unpark(u64),
    Step,
}

fn any_disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        3 => any_ask().prop_map(Disturbance::Arrive),
        1 => (0..30u64).prop_map(Disturbance::Cancel),
        2 => (0..30u64, 0..5u16).prop_map(|(group, branch)| Disturbance::StopBranch(group, branch)),
        1 => (0..30u64).prop_map(Disturbance::Park),
        1 => (0..30u64).prop_map(Disturbance::Unpark),
        8 => Just(Disturbance::Step),
    ]
}

proptest! {
    #[test]
    fn every_admitted_group_finishes_in_a_bounded_number_of_steps(
        bounds in any_bounds(),
        asks in prop::collection::vec(any_ask(), 1..20),
        early_end in 1..40usize,
        at_once in 1..5usize,
        together in 1..10usize,
    ) {
        let mut world = World::new(bounds, early_end).overlapping(at_once).computing_together(together);
        let admitted: Vec<_> = asks.into_iter().zip(0..).filter_map(|(ask, id)| world.admit(id, ask).ok()).collect();
        world.run();
        world.assert_idle();
        world.finished.sort();
        prop_assert_eq!(&world.finished, &admitted, "each finishes exactly once");
        for text in world.texts.values() {
            prop_assert_eq!(text.is_told(early_end), Ok(()));
        }
    }

    #[test]
    fn nothing_leaks_and_nobody_starves_whatever_comes_and_goes(
        bounds in any_bounds(),
        disturbances in prop::collection::vec(any_disturbance(), 0..150),
        at_once in 1..5usize,
        together in 1..10usize,
    ) {
        let mut world = World::new(bounds, usize::MAX).overlapping(at_once).computing_together(together);
        let mut next = 0;
        for disturbance in disturbances {
            match disturbance {
                Disturbance::Arrive(ask) => {
                    let _ = world.admit(next, ask);
                    next += 1;
                }
                Disturbance::Cancel(id) => {
                    world.policy.cancel(GroupId(id));
                    let after = world.policy.load();
                    world.policy.cancel(GroupId(id));
                    prop_assert_eq!(world.policy.load(), after, "cancel is idempotent");
                }
                Disturbance::StopBranch(id, branch) => {
                    world.finished.extend(world.policy.stop_branch(GroupId(id), BranchIndex(branch)));
                    let after = world.policy.load();
                    prop_assert_eq!(world.policy.stop_branch(GroupId(id), BranchIndex(branch)), None);
                    prop_assert_eq!(world.policy.load(), after, "so is stopping a branch");
                }
                Disturbance::Park(id) => world.policy.park(GroupId(id)),
                Disturbance::Unpark(id) => world.policy.unpark(GroupId(id)),
                Disturbance::Step => {
                    world.step();
                }
            }
            world.check_books();
        }
        (0..next).for_each(|id| world.policy.unpark(GroupId(id)));
        world.run();
        world.assert_idle();
    }
}
