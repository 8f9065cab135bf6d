//! Blocks are given as sequences grow, and taken from the youngest when there are none.

use shoal_common::ids::BranchIndex;

use super::world::{Ask, ROOMY, World, ask};
use crate::scheduler::*;

#[test]
fn the_youngest_is_preempted_and_every_text_is_what_it_would_have_been() {
    // Each grows to 6 blocks of 8; both start, because both prompts fit.
    let mut world = World::new(Bounds { blocks: 8, ..ROOMY }, usize::MAX);
    let older = world.admit(0, ask(0, 16, 80, 1)).unwrap();
    let younger = world.admit(1, ask(0, 16, 80, 1)).unwrap();
    world.run();
    assert!(world.policy.totals().preemptions > 0);
    assert_eq!(world.finished, [older, younger]);
    assert_eq!(world.computed_of(older), 95, "the older one was never interrupted");
    // The world compares every token that is read with the text; here only that both were told to the end.
    assert!([older, younger].iter().all(|id| world.texts[id].branches[0].len() == 80));
    world.assert_idle();
}

#[test]
fn what_is_preempted_finds_what_is_left_of_it() {
    let mut world = World::new(Bounds { blocks: 12, ..ROOMY }, usize::MAX);
    world.admit(0, ask(0, 16, 100, 1)).unwrap();
    let younger = world.admit(1, ask(0, 16, 100, 1)).unwrap();
    while world.policy.totals().preemptions == 0 {
        assert!(world.step());
    }
    let computed = world.computed_of(younger);
    assert!(computed > 60);
    world.run();
    assert!(world.policy.totals().cached_tokens > 0, "everything was computed again");
    assert!(world.computed_of(younger) < computed + 116);
}

#[test]
fn nothing_starts_that_would_be_preempted_at_once() {
    let mut world = World::new(Bounds { blocks: 10, ..ROOMY }, usize::MAX);
    for id in 0..12 {
        world.admit(id, ask(0, 30, 20, 1)).unwrap();
    }
    world.run();
    let preemptions = world.policy.totals().preemptions;
    assert!(preemptions <= 6, "{preemptions} preemptions for 12 groups");
    assert_eq!(world.finished.len(), 12);
}

#[test]
fn a_parked_group_keeps_its_kv_while_nobody_needs_it() {
    let mut world = World::new(ROOMY, usize::MAX);
    let parked = world.admit(0, ask(0, 10, 50, 2)).unwrap();
    world.step();
    world.policy.park(parked);
    let held = world.policy.load().kv_used;
    world.served.clear();
    world.admit(1, ask(0, 10, 5, 1)).unwrap();
    world.run();
    assert_eq!(world.finished, [GroupId(1)]);
    assert!(!world.has_served(parked));
    assert_eq!(world.policy.load().kv_used, held);
    world.policy.unpark(parked);
    world.run();
    world.assert_idle();
}

#[test]
fn a_parked_group_gives_its_slots_and_blocks_to_whoever_waits_for_them() {
    for bounds in [Bounds { slots: 2, ..ROOMY }, Bounds { blocks: 4, ..ROOMY }] {
        let mut world = World::new(bounds, usize::MAX);
        let parked = world.admit(0, ask(0, 10, 20, 2)).unwrap();
        world.step();
        world.step();
        world.policy.park(parked);
        let other = world.admit(1, ask(0, 40, 20, 1)).unwrap();
        world.run();
        assert_eq!(world.finished, [other], "{bounds:?}");
        world.policy.unpark(parked);
        world.run();
        assert_eq!(world.finished, [other, parked]);
        world.assert_idle();
    }
}

#[test]
fn a_running_stream_takes_blocks_of_a_parked_one_before_those_of_another_running_one() {
    let mut world = World::new(Bounds { blocks: 9, ..ROOMY }, usize::MAX);
    let parked = world.admit(0, ask(0, 16, 60, 1)).unwrap();
    let running = [1, 2].map(|id| world.admit(id, ask(0, 16, 46, 1)).unwrap());
    for _ in 0..20 {
        world.step();
    }
    world.policy.park(parked);
    while world.finished.len() < 2 {
        assert!(world.step());
    }
    assert!(running.iter().all(|id| world.computed_of(*id) == 61), "a running stream was interrupted");
    assert_eq!(world.policy.totals().preemptions, 1);
    world.policy.unpark(parked);
    world.run();
    world.assert_idle();
}

#[test]
fn scores_are_said_once_even_if_their_prompt_is_preempted() {
    let mut world = World::new(Bounds { blocks: 12, step_tokens: 16, ..ROOMY }, usize::MAX);
    world.admit(0, ask(0, 16, 100, 1)).unwrap();
    world.step();
    let scored = world.admit(1, Ask { scoring: Scoring::Prompt, ..ask(0, 100, 20, 2) }).unwrap();
    world.run();
    assert!(world.policy.totals().preemptions > 0);
    // The world refuses a row that comes twice or out of order.
    assert_eq!(world.texts[&scored].scored, 100);
    world.assert_idle();
}

#[test]
fn a_branch_left_alone_with_a_block_that_its_sibling_has_filled_does_not_spoil_the_cache() {
    // The prompt leaves one place in its last block. The first branch fills it while there is no slot for the second, which
    // is forked then, and left alone with the block before it has written to it.
    let mut world = World::new(Bounds { slots: 2, ..ROOMY }, usize::MAX);
    let (first, second) = (BranchIndex(0), BranchIndex(1));
    let told = |emitted: Vec<usize>| Ask { story: 1, emitted, ..ask(0, 47, 20, 0) };
    world.admit(0, ask(0, 10, 5, 1)).unwrap();
    let group = world.admit(1, told(vec![2, 10])).unwrap();
    while world.policy.running.get(SequenceId { group, branch: second }).is_none() {
        assert!(world.step());
    }
    world.finished.extend(world.policy.stop_branch(group, first));
    world.run();
    // The world compares what is found with the text: here the first branch's.
    world.admit(2, told(vec![18])).unwrap();
    world.run();
    world.assert_idle();
}

#[test]
fn a_step_for_one_token_is_not_left_empty_when_its_first_choice_is_preempted() {
    let mut world = World::new(Bounds { slots: 3, blocks: 8, step_tokens: 1, ..ROOMY }, usize::MAX);
    let group = world.admit(0, ask(0, 16, 35, 3)).unwrap();
    world.run();
    assert!(world.policy.totals().preemptions > 0);
    assert_eq!(world.finished, [group]);
}
