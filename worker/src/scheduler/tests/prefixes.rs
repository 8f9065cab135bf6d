//! What starts begins with the longest prefix that is cached, and nothing is computed twice that need not be.

use super::world::{Ask, ROOMY, World, ask};
use crate::scheduler::*;

/// A prompt of the story that all of these share.
fn told(prompt: usize, max_tokens: usize) -> Ask {
    Ask { story: 1, ..ask(0, prompt, max_tokens, 1) }
}

#[test]
fn a_prompt_that_was_computed_is_found_again_but_for_its_last_token() {
    let mut world = World::new(ROOMY, usize::MAX);
    // How many of the first prompt's tokens a second one finds: whole blocks, and one token is left to compute.
    for (id, (prompt, found)) in [(100, 0), (100, 96), (96, 80), (97, 96), (40, 32), (1, 0)].into_iter().enumerate() {
        let before = world.policy.totals();
        let id = world.admit(id as u64, told(prompt, 1)).unwrap();
        world.run();
        let now = world.policy.totals();
        assert_eq!(world.computed_of(id), prompt - found, "of {prompt}");
        assert_eq!(now.cached_tokens - before.cached_tokens, found as u64);
        assert_eq!(now.looked_up_tokens - before.looked_up_tokens, prompt as u64);
    }
    world.assert_idle();
}

#[test]
fn what_was_generated_is_found_by_the_next_turn() {
    let mut world = World::new(ROOMY, usize::MAX);
    world.admit(0, told(20, 60)).unwrap();
    world.run();
    // The same beginning, with what was answered as a part that is there already: 79 tokens have KV, 4 blocks are full.
    let resumed = Ask { emitted: vec![59], ..told(20, 70) };
    let next = world.admit(1, resumed).unwrap();
    world.run();
    assert_eq!(world.computed_of(next), 20 + 69 - 64);
}

#[test]
fn scores_are_computed_anew_and_leave_their_blocks_to_others() {
    let mut world = World::new(ROOMY, usize::MAX);
    world.admit(0, told(100, 1)).unwrap();
    world.run();
    let scored = world.admit(1, Ask { scoring: Scoring::Prompt, ..told(100, 1) }).unwrap();
    world.run();
    assert_eq!((world.computed_of(scored), world.texts[&scored].scored), (100, 100));
    let mut fresh = World::new(ROOMY, usize::MAX);
    fresh.admit(0, Ask { scoring: Scoring::Prompt, emitted: Vec::new(), ..told(100, 0) }).unwrap();
    fresh.run();
    let after = fresh.admit(1, told(100, 1)).unwrap();
    fresh.run();
    assert_eq!(fresh.computed_of(after), 4);
}

#[test]
fn prompts_that_begin_alike_and_come_together_are_computed_once() {
    let mut world = World::new(Bounds { step_tokens: 32, ..ROOMY }, usize::MAX);
    for id in 0..6 {
        world.admit(id, told(200 + id as usize, 3)).unwrap();
    }
    world.run();
    assert_eq!(world.computed, 200 + 2 + (1..6).map(|id| 8 + id + 2).sum::<usize>());
    assert_eq!(world.finished.len(), 6);
}

#[test]
fn prompts_that_part_wait_only_for_what_they_have_in_common() {
    let mut world = World::new(Bounds { step_tokens: 16, ..ROOMY }, usize::MAX);
    let long = world.admit(0, told(1000, 3)).unwrap();
    let short = world.admit(1, told(60, 3)).unwrap();
    while !world.finished.contains(&short) {
        world.step();
    }
    assert_eq!(world.computed_of(short), 60 - 48 + 2);
    assert!(world.computed_of(long) < 200, "the short one has waited for all of the long one");
}

#[test]
fn nobody_waits_for_a_prompt_that_stands_still() {
    type Stop = fn(&mut World, GroupId);
    let stops: [Stop; 3] = [
        |world, id| world.policy.cancel(id),
        |world, id| world.policy.park(id),
        |world, id| {
            let branch = shoal_common::ids::BranchIndex(0);
            world.policy.preempt(SequenceId { group: id, branch });
            world.policy.park(id);
        },
    ];
    for stop in stops {
        let mut world = World::new(Bounds { step_tokens: 16, ..ROOMY }, usize::MAX);
        let first = world.admit(0, told(200, 3)).unwrap();
        world.step();
        world.step();
        let second = world.admit(1, told(200, 3)).unwrap();
        world.step();
        assert!(!world.has_served(second), "it computes what the first is computing");
        stop(&mut world, first);
        while !world.finished.contains(&second) {
            assert!(world.step(), "it waits for ever");
        }
        world.policy.unpark(first);
        world.run();
        world.assert_idle();
    }
}

#[test]
fn a_prefix_that_others_hold_takes_no_room() {
    // 12 blocks for a prompt of 10: two such prompts fit only if they share.
    let mut world = World::new(Bounds { blocks: 16, ..ROOMY }, usize::MAX);
    world.admit(0, told(160, 8)).unwrap();
    world.step();
    world.admit(1, told(160, 8)).unwrap();
    while world.policy.load().running < 2 {
        assert!(world.step() && world.finished.is_empty(), "the second has waited for the first to end");
    }
}
