//! The policy's promises, one test each. Those about cached prefixes and about preemption have files of their own.

use shoal_common::ids::BranchIndex;

use super::world::{Ask, ROOMY, World, ask};
use crate::scheduler::*;

#[test]
fn a_long_prompt_never_stalls_running_streams() {
    let mut world = World::new(ROOMY, usize::MAX);
    let short = world.admit(0, ask(0, 1, 50, 1)).unwrap();
    world.step();
    world.admit(1, ask(0, 1000, 1, 1)).unwrap();
    for _ in 0..10 {
        world.served.clear();
        world.step();
        assert!(world.has_served(short), "a step passed without the running stream");
    }
}

/// Steps until a group that comes to eight running streams says its first new token.
fn steps_to_the_next_token(asked: Ask) -> usize {
    let mut world = World::new(Bounds { slots: 16, step_tokens: 512, ..ROOMY }, usize::MAX);
    for stream in 0..8 {
        world.admit(stream, ask(0, 4, 500, 1)).unwrap();
    }
    (0..40).for_each(|_| assert!(world.step()));
    let before = asked.emitted[0];
    let id = world.admit(9, asked).unwrap();
    let comes = |world: &mut World| {
        world.step();
        world.texts[&id].branches[0].len() > before
    };
    (1..1000).find(|_| comes(&mut world)).expect("it comes")
}

#[test]
fn who_is_in_the_middle_of_an_answer_is_back_long_before_a_prompt_as_long_has_begun() {
    let prompt = steps_to_the_next_token(ask(0, 600, 300, 1));
    let resumed = steps_to_the_next_token(Ask { emitted: vec![200], ..ask(0, 400, 300, 1) });
    assert!(resumed * 3 <= prompt, "{resumed} steps, and {prompt} for a prompt");
}

#[test]
fn those_who_are_computed_again_come_back_one_after_the_other_and_not_all_at_the_end() {
    let mut world = World::new(Bounds { slots: 16, step_tokens: 32, ..ROOMY }, usize::MAX);
    world.admit(0, ask(0, 4, 500, 1)).unwrap();
    (0..40).for_each(|_| assert!(world.step()));
    let resumed = |id| Ask { emitted: vec![100], ..ask(0, 300 + id as usize, 300, 1) };
    let ids = [1, 2, 3, 4].map(|id| world.admit(id, resumed(id)).unwrap());
    let mut back = [0; 4];
    for step in 1..2000 {
        world.step();
        for (id, back) in ids.iter().zip(&mut back) {
            if *back == 0 && world.texts[id].branches[0].len() > 100 {
                *back = step;
            }
        }
    }
    back.sort_unstable();
    assert!(back[0] > 0 && back[0] * 2 <= back[3], "they are back after {back:?} steps");
}

#[test]
fn those_who_are_computed_again_begin_in_the_step_after_they_came_as_many_as_it_has_time_for() {
    let begun = |emitted: usize| {
        let mut world = World::new(Bounds { slots: 32, step_tokens: 512, ..ROOMY }, usize::MAX);
        for stream in 0..8 {
            world.admit(stream, ask(0, 4, 500, 1)).unwrap();
        }
        (0..40).for_each(|_| assert!(world.step()));
        let late = |id| Ask { emitted: vec![emitted], ..ask(0, 40 + id as usize, 300, 1) };
        let ids: Vec<_> = (100..108).map(|id| world.admit(id, late(id)).unwrap()).collect();
        world.served.clear();
        world.step();
        ids.iter().filter(|id| world.has_served(**id)).count()
    };
    let (resumed, new) = (begun(10), begun(0));
    assert!(resumed > new, "{resumed} that had begun, and {new} new ones");
}

#[test]
fn a_prompt_begins_though_there_is_always_somebody_to_be_computed_again() {
    for step_tokens in [64, 512] {
        let mut world = World::new(Bounds { slots: 16, step_tokens, ..ROOMY }, usize::MAX);
        world.admit(0, ask(0, 4, 1000, 1)).unwrap();
        (0..40).for_each(|_| assert!(world.step()));
        let new = world.admit(1, ask(0, 100, 10, 1)).unwrap();
        let mut resumed = 2..;
        let mut begins = |world: &mut World| {
            while world.policy.load().running + world.policy.load().waiting < 8 {
                let id = resumed.next().unwrap();
                world.admit(id, Ask { emitted: vec![100], ..ask(0, 300 + id as usize, 101, 1) }).unwrap();
            }
            world.step();
            !world.texts[&new].branches[0].is_empty()
        };
        let begun = (1..100).find(|_| begins(&mut world));
        assert!(
            begun.is_some(),
            "with {step_tokens} tokens a step it has not begun, while {} others came",
            resumed.start
        );
    }
}

#[test]
fn prompts_fill_the_rows_that_are_computed_together() {
    let mut world = World::new(Bounds { slots: 16, step_tokens: 512, ..ROOMY }, usize::MAX).computing_together(8);
    for stream in 0..5 {
        world.admit(stream, ask(0, 4, 500, 1)).unwrap();
    }
    (0..40).for_each(|_| assert!(world.step()));
    let long = world.admit(9, ask(0, 4000, 1, 1)).unwrap();
    let mut with_prompt = 0;
    for _ in 0..60 {
        world.step();
        let prefill = world.plan.tokens_of(Phase::Prefill);
        if prefill > 0 && world.computed_of(long) < 4000 {
            assert_eq!(world.plan.tokens() % 8, 0, "5 streams and {prefill} tokens");
            with_prompt += 1;
        }
    }
    assert!(with_prompt > 20);
}

#[test]
fn a_long_prompt_never_holds_up_those_who_come_after_it() {
    let mut world = World::new(ROOMY, usize::MAX);
    let long = world.admit(0, ask(0, 1000, 1, 1)).unwrap();
    world.step();
    let late = world.admit(1, ask(0, 2, 1, 1)).unwrap();
    world.served.clear();
    world.step();
    assert!(world.has_served(late), "the newcomer waits for the whole of the long prompt");
    assert!(world.has_served(long), "the long prompt stands still for the newcomer");
}

#[test]
fn a_newcomer_begins_though_decodes_fill_every_step() {
    let mut world = World::new(Bounds { step_tokens: 4, ..ROOMY }, usize::MAX);
    world.admit(0, ask(0, 2, 100, 6)).unwrap();
    for _ in 0..10 {
        world.step();
    }
    let late = world.admit(1, ask(0, 2, 1, 1)).unwrap();
    world.served.clear();
    world.step();
    assert!(world.has_served(late), "nobody can begin until somebody ends");
}

#[test]
fn decodes_that_do_not_fit_a_step_take_turns() {
    let mut world = World::new(Bounds { step_tokens: 2, ..ROOMY }, usize::MAX);
    let id = world.admit(0, ask(0, 2, 100, 5)).unwrap();
    while world.policy.load().running < 5 {
        world.step();
    }
    world.served.clear();
    for _ in 0..10 {
        world.step();
    }
    for branch in (0..5).map(BranchIndex) {
        let turns = world.served.iter().filter(|served| **served == SequenceId { group: id, branch }).count();
        assert_eq!(turns, 4);
    }
}

#[test]
fn a_prompt_is_computed_once_for_all_branches_and_all_draw_in_its_step() {
    let mut world = World::new(ROOMY, usize::MAX);
    world.admit(0, ask(0, 40, 3, 6)).unwrap();
    world.step();
    assert_eq!((world.plan.tokens(), world.plan.copies.len(), world.plan.draws.len()), (40, 0, 6));
    world.step();
    // The last of them goes on in the block that was shared.
    assert_eq!((world.plan.tokens(), world.plan.copies.len(), world.plan.draws.len()), (6, 5, 6));
    assert_eq!(world.policy.load().kv_used, (2 + 6) * 16, "the full blocks are there once");
}

#[test]
fn branches_of_a_prompt_of_whole_blocks_copy_nothing() {
    let mut world = World::new(ROOMY, usize::MAX);
    world.admit(0, ask(0, 32, 3, 6)).unwrap();
    world.step();
    world.step();
    assert_eq!((world.plan.tokens(), world.plan.copies.len()), (6, 0));
}

#[test]
fn branches_finish_on_a_single_slot_too() {
    let mut world = World::new(Bounds { slots: 1, blocks: 1, ..ROOMY }, usize::MAX);
    world.admit(0, ask(0, 10, 5, 4)).unwrap();
    world.run();
    assert_eq!(world.finished, [GroupId(0)]);
    world.assert_idle();
}

#[test]
fn a_small_group_does_not_pass_a_large_one_that_waits_for_room() {
    let mut world = World::new(Bounds { blocks: 8, ..ROOMY }, usize::MAX);
    world.admit(0, ask(0, 60, 40, 1)).unwrap();
    world.step();
    world.admit(1, ask(0, 80, 30, 1)).unwrap();
    world.admit(2, ask(0, 5, 5, 1)).unwrap();
    while world.finished.is_empty() {
        world.step();
        assert!(!world.has_served(GroupId(2)));
    }
    world.run();
    assert_eq!(world.finished.len(), 3);
}

#[test]
fn the_work_left_covers_what_is_computed_even_for_a_resumed_branch() {
    let mut world = World::new(ROOMY, usize::MAX);
    let resumed = Ask { emitted: vec![40, 0], ..ask(0, 10, 50, 2) };
    world.admit(0, resumed).unwrap();
    loop {
        let left = world.policy.load().queued_tokens;
        let computed = world.computed;
        if !world.step() {
            break;
        }
        let now = (world.computed - computed) as u64;
        assert!(world.policy.load().queued_tokens + now <= left, "{now} tokens of {left} were computed");
    }
    assert_eq!(world.computed, 10 + 49 + 49);
    assert_eq!(world.policy.load().queued_tokens, 0);
}

#[test]
fn what_can_never_fit_and_what_is_one_too_many_is_refused() {
    let mut world = World::new(Bounds { groups: 2, blocks: 6, queued_tokens: 150, ..ROOMY }, usize::MAX);
    assert_eq!(world.admit(0, ask(0, 90, 7, 1)), Err(Refused::TooLong));
    world.admit(1, ask(0, 90, 6, 20)).expect("alone, a group may be more work than may wait");
    world.policy.cancel(GroupId(1));
    world.admit(2, ask(0, 90, 6, 1)).unwrap();
    assert_eq!(world.admit(3, ask(0, 50, 6, 1)), Err(Refused::Full), "too much work waits");
    world.admit(4, ask(0, 1, 1, 1)).unwrap();
    assert_eq!(world.admit(5, ask(0, 1, 1, 1)), Err(Refused::Full));
}

#[test]
fn prompts_beside_running_streams_take_no_more_than_the_pace_allows() {
    let mut world = World::new(Bounds { step_tokens: 512, ..ROOMY }, usize::MAX);
    for id in 0..4 {
        world.admit(id, ask(0, 8, 200, 1)).unwrap();
    }
    (0..20).for_each(|_| assert!(world.step()));
    let long = world.admit(9, ask(0, 2000, 1, 1)).unwrap();
    // In the world, a step of decodes takes 10 ms, a prefill token 0.1 ms.
    let mut most = 0;
    while !world.finished.contains(&long) {
        let done = world.policy.running.iter().find(|it| it.id.group == long).map_or(0, |it| it.computed);
        let allowed = world.pace.fits(&world.pace.spare(4, 1), done);
        world.step();
        let prefill = world.plan.tokens_of(Phase::Prefill);
        assert!(prefill <= allowed);
        most = most.max(prefill);
        assert_eq!(world.plan.tokens_of(Phase::Decode), 4);
    }
    assert!((40..=50).contains(&most), "{most} tokens went with the decodes");
}
