//! The policy's promises, over random groups and random interference.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shoal_common::ids::BranchIndex;

use super::*;
use crate::backend::LogitsOf;

/// Stands for the engine and its backend: carries plans out on counts, and complains about every plan a real one could
/// not carry out.
struct World {
    bounds: Bounds,
    policy: Policy,
    shapes: BTreeMap<GroupId, GroupShape>,
    /// Tokens each sequence holds.
    held: BTreeMap<SequenceId, usize>,
    generated: BTreeMap<(GroupId, BranchIndex), usize>,
    scored: BTreeMap<GroupId, usize>,
    prompt_rows: BTreeSet<GroupId>,
    /// Branches end early at this many tokens, when it is less than `max_tokens`.
    early_end: usize,
    finished: Vec<GroupId>,
    served: Vec<(GroupId, Feed)>,
    /// Tokens computed so far.
    computed: usize,
}

impl World {
    fn new(bounds: Bounds, early_end: usize) -> Self {
        Self {
            bounds,
            policy: Policy::new(bounds),
            shapes: BTreeMap::new(),
            held: BTreeMap::new(),
            generated: BTreeMap::new(),
            scored: BTreeMap::new(),
            prompt_rows: BTreeSet::new(),
            early_end,
            finished: Vec::new(),
            served: Vec::new(),
            computed: 0,
        }
    }

    fn admit(&mut self, id: u64, shape: GroupShape) -> Result<GroupId, Refused> {
        let id = GroupId(id);
        self.policy.admit(id, &shape)?;
        for (at, emitted) in shape.emitted.iter().enumerate() {
            self.generated.insert((id, BranchIndex(at as u16)), *emitted);
        }
        self.shapes.insert(id, shape);
        Ok(id)
    }

    fn free(&mut self, freed: Freed) {
        for sequence in freed.sequences {
            assert!(self.held.remove(&sequence).is_some(), "{sequence:?} was freed but not held");
        }
        self.finished.extend(freed.finished);
    }

    /// One step; false when the policy has nothing to do.
    fn step(&mut self) -> bool {
        let plan = self.policy.plan();
        for sequence in &plan.releases {
            assert!(self.held.remove(sequence).is_some());
        }
        assert!(plan.tokens() <= self.bounds.step_tokens);
        self.compute(&plan);
        let drawn: Vec<_> = plan.draws.iter().map(|draw| (draw.group, draw.branch, self.draw(&plan, draw))).collect();
        let freed = self.policy.complete(&plan, &drawn);
        self.free(freed);
        self.check_bounds();
        !plan.is_empty()
    }

    fn compute(&mut self, plan: &StepPlan) {
        let mut seen = BTreeSet::new();
        for slice in &plan.slices {
            let shape = &self.shapes[&slice.group];
            assert!(slice.count > 0 && seen.insert(slice.sequence), "one non-empty slice per sequence");
            assert!(!self.finished.contains(&slice.group), "a finished group is not computed");
            self.served.push((slice.group, slice.feed));
            let holds = self.held.entry(slice.sequence).or_insert(0);
            assert_eq!(*holds, slice.start, "a slice begins where its sequence ends");
            *holds += slice.count;
            self.computed += slice.count;
            match slice.feed {
                Feed::Prompt => {
                    assert!(slice.start + slice.count <= shape.prompt);
                    if slice.logits == LogitsOf::All {
                        *self.scored.entry(slice.group).or_insert(0) += slice.count;
                    }
                    if slice.logits != LogitsOf::None && slice.start + slice.count == shape.prompt {
                        self.prompt_rows.insert(slice.group);
                    }
                }
                Feed::Branch(at) => {
                    let known = shape.prompt + self.generated[&(slice.group, at)];
                    assert!(slice.start >= shape.prompt && slice.start + slice.count <= known);
                }
            }
        }
        for fork in &plan.forks {
            assert!(self.held[&fork.from] >= fork.length && fork.length == self.shapes[&fork.group].prompt);
            assert!(self.held.insert(fork.to, fork.length).is_none());
        }
        self.check_bounds();
    }

    fn draw(&mut self, plan: &StepPlan, draw: &Draw) -> Drawn {
        let generated = self.generated.get_mut(&(draw.group, draw.branch)).unwrap();
        match draw.row {
            Row::Prompt => assert!(*generated == 0 && self.prompt_rows.contains(&draw.group)),
            Row::Slice(at) => {
                let slice = &plan.slices[at];
                assert_eq!((slice.group, slice.feed), (draw.group, Feed::Branch(draw.branch)));
                assert_eq!(slice.start + slice.count, self.shapes[&draw.group].prompt + *generated);
                assert_eq!(slice.logits, LogitsOf::Last);
            }
        }
        *generated += 1;
        let max_tokens = self.shapes[&draw.group].max_tokens;
        if *generated >= max_tokens.min(self.early_end) { Drawn::Ended } else { Drawn::GoesOn }
    }

    fn check_bounds(&self) {
        let kv: usize = self.held.values().sum();
        assert!(self.held.len() <= self.bounds.slots, "more sequences than slots");
        assert!(kv as u64 <= self.bounds.kv_tokens, "more KV than there is");
        let load = self.policy.load();
        assert!(load.running <= self.bounds.slots && load.kv_used <= self.bounds.kv_tokens);
        assert!(kv as u64 <= load.kv_used, "KV is held that was not reserved");
    }

    /// Steps that all admitted groups can take at most: each computes a token, draws one or gives a prompt up.
    fn step_bound(&self) -> usize {
        let of_group = |shape: &GroupShape| {
            let starts = shape.emitted.len() + 1;
            starts * (shape.prompt + 2) + shape.emitted.len() * (shape.max_tokens + 1)
        };
        self.shapes.values().map(of_group).sum()
    }

    fn has_served(&self, id: GroupId) -> bool {
        self.served.iter().any(|(served, _)| *served == id)
    }

    fn assert_idle(&self) {
        assert!(self.policy.is_empty());
        assert_eq!(self.policy.load(), Load::default());
        assert!(self.held.is_empty());
    }
}

fn shape(share_key: u64, prompt: usize, max_tokens: usize, branches: usize) -> GroupShape {
    GroupShape { share_key, prompt, max_tokens, emitted: vec![0; branches], scoring: Scoring::Off }
}

const ROOMY: Bounds = Bounds { slots: 8, kv_tokens: 10_000, groups: 64, step_tokens: 64 };

fn any_bounds() -> impl Strategy<Value = Bounds> {
    (1..6usize, 40..200u64, 1..40usize).prop_map(|(slots, kv_tokens, step_tokens)| Bounds {
        slots,
        kv_tokens,
        groups: 24,
        step_tokens,
    })
}

fn any_shape() -> impl Strategy<Value = GroupShape> {
    let scoring = prop_oneof![3 => Just(Scoring::Off), 1 => Just(Scoring::Prompt)];
    (0..3u64, 1..30usize, 1..12usize, prop::collection::vec(0..12usize, 0..5), scoring).prop_map(
        |(share_key, prompt, max_tokens, emitted, scoring)| {
            let scoring = if emitted.is_empty() { Scoring::Prompt } else { scoring };
            let emitted = emitted.into_iter().map(|n| n % max_tokens).collect();
            GroupShape { share_key, prompt, max_tokens, emitted, scoring }
        },
    )
}

#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Cancel(u64),
    StopBranch(u64, u16),
    Park(u64),
    Unpark(u64),
    Step,
}

fn any_disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        1 => (0..20u64).prop_map(Disturbance::Cancel),
        2 => (0..20u64, 0..5u16).prop_map(|(group, branch)| Disturbance::StopBranch(group, branch)),
        1 => (0..20u64).prop_map(Disturbance::Park),
        1 => (0..20u64).prop_map(Disturbance::Unpark),
        6 => Just(Disturbance::Step),
    ]
}

proptest! {
    #[test]
    fn every_admitted_group_finishes_in_a_bounded_number_of_steps(
        bounds in any_bounds(),
        shapes in prop::collection::vec(any_shape(), 1..20),
        early_end in 1..12usize,
    ) {
        let mut world = World::new(bounds, early_end);
        let admitted: Vec<_> =
            shapes.into_iter().zip(0..).filter_map(|(shape, id)| world.admit(id, shape).ok()).collect();
        let mut steps = 0;
        while world.step() {
            steps += 1;
            prop_assert!(steps <= world.step_bound(), "no end in sight");
        }
        world.assert_idle();
        world.finished.sort();
        prop_assert_eq!(&world.finished, &admitted, "each finishes exactly once");
        for (id, shape) in &world.shapes {
            let scored = world.scored.get(id).copied().unwrap_or(0);
            prop_assert_eq!(scored, if shape.scoring == Scoring::Prompt { shape.prompt } else { 0 });
        }
    }

    #[test]
    fn nothing_leaks_whatever_is_cancelled_stopped_or_parked(
        bounds in any_bounds(),
        shapes in prop::collection::vec(any_shape(), 1..20),
        disturbances in prop::collection::vec(any_disturbance(), 0..60),
    ) {
        let mut world = World::new(bounds, usize::MAX);
        for (shape, id) in shapes.into_iter().zip(0..) {
            let _ = world.admit(id, shape);
        }
        for disturbance in disturbances {
            match disturbance {
                Disturbance::Cancel(id) => {
                    let freed = world.policy.cancel(GroupId(id));
                    world.free(freed);
                    prop_assert_eq!(world.policy.cancel(GroupId(id)), Freed::default(), "cancel is idempotent");
                }
                Disturbance::StopBranch(id, branch) => {
                    let freed = world.policy.stop_branch(GroupId(id), BranchIndex(branch));
                    world.free(freed);
                    let again = world.policy.stop_branch(GroupId(id), BranchIndex(branch));
                    prop_assert_eq!(again, Freed::default(), "so is stopping a branch");
                }
                Disturbance::Park(id) => world.policy.park(GroupId(id)),
                Disturbance::Unpark(id) => world.policy.unpark(GroupId(id)),
                Disturbance::Step => {
                    world.step();
                }
            }
            world.check_bounds();
        }
        (0..20).for_each(|id| world.policy.unpark(GroupId(id)));
        let mut steps = 0;
        while world.step() {
            steps += 1;
            prop_assert!(steps <= world.step_bound(), "no end in sight");
        }
        world.assert_idle();
    }
}

#[test]
fn a_long_prompt_never_stalls_running_streams() {
    let mut world = World::new(ROOMY, usize::MAX);
    let short = world.admit(0, shape(0, 1, 50, 1)).unwrap();
    world.step();
    world.admit(1, shape(0, 1000, 1, 1)).unwrap();
    for _ in 0..10 {
        world.served.clear();
        world.step();
        assert!(world.has_served(short), "a step passed without the running stream");
    }
}

#[test]
fn a_long_prompt_never_holds_up_those_who_come_after_it() {
    let mut world = World::new(ROOMY, usize::MAX);
    let long = world.admit(0, shape(0, 1000, 1, 1)).unwrap();
    world.step();
    let late = world.admit(1, shape(0, 2, 1, 1)).unwrap();
    world.served.clear();
    world.step();
    assert!(world.has_served(late), "the newcomer waits for the whole of the long prompt");
    assert!(world.has_served(long), "the long prompt stands still for the newcomer");
}

#[test]
fn a_newcomer_begins_though_decodes_fill_every_step() {
    let mut world = World::new(Bounds { step_tokens: 4, ..ROOMY }, usize::MAX);
    world.admit(0, shape(0, 2, 100, 6)).unwrap();
    for _ in 0..10 {
        world.step();
    }
    let late = world.admit(1, shape(0, 2, 1, 1)).unwrap();
    world.served.clear();
    world.step();
    assert!(world.has_served(late), "nobody can begin until somebody ends");
}

#[test]
fn decodes_that_do_not_fit_a_step_take_turns() {
    let mut world = World::new(Bounds { step_tokens: 2, ..ROOMY }, usize::MAX);
    let id = world.admit(0, shape(0, 2, 100, 5)).unwrap();
    world.step();
    world.served.clear();
    for _ in 0..10 {
        world.step();
    }
    for at in 0..5 {
        let turns = world.served.iter().filter(|served| **served == (id, Feed::Branch(BranchIndex(at)))).count();
        assert_eq!(turns, 4);
    }
}

#[test]
fn one_user_cannot_starve_another() {
    let mut world = World::new(Bounds { slots: 1, ..ROOMY }, usize::MAX);
    for id in 0..20 {
        world.admit(id, shape(7, 4, 4, 2)).unwrap();
    }
    let other = world.admit(20, shape(8, 4, 4, 1)).unwrap();
    while !world.finished.contains(&other) {
        assert!(world.step());
    }
    assert!(world.finished.len() <= 2, "the other user waited for {} groups", world.finished.len() - 1);
}

#[test]
fn a_prompt_is_computed_once_for_all_branches() {
    let mut world = World::new(ROOMY, usize::MAX);
    world.admit(0, shape(0, 40, 3, 6)).unwrap();
    let first = world.policy.plan();
    assert_eq!((first.tokens(), first.forks.len(), first.draws.len()), (40, 5, 6));
}

#[test]
fn branches_finish_on_a_single_slot_too() {
    let mut world = World::new(Bounds { slots: 1, kv_tokens: 20, ..ROOMY }, usize::MAX);
    world.admit(0, shape(0, 10, 5, 4)).unwrap();
    while world.step() {}
    assert_eq!(world.finished, [GroupId(0)]);
    world.assert_idle();
}

#[test]
fn a_small_group_does_not_pass_a_large_one_that_waits_for_room() {
    let mut world = World::new(Bounds { kv_tokens: 100, ..ROOMY }, usize::MAX);
    world.admit(0, shape(0, 10, 50, 1)).unwrap();
    world.step();
    world.admit(1, shape(0, 30, 30, 1)).unwrap();
    world.admit(2, shape(0, 5, 5, 1)).unwrap();
    while world.finished.is_empty() {
        world.step();
        assert!(!world.has_served(GroupId(2)));
    }
}

#[test]
fn the_work_left_covers_what_is_computed_even_for_a_resumed_branch() {
    let mut world = World::new(ROOMY, usize::MAX);
    let resumed = GroupShape { emitted: vec![40, 0], ..shape(0, 10, 50, 2) };
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
fn a_parked_group_keeps_its_kv_and_others_go_on() {
    let mut world = World::new(ROOMY, usize::MAX);
    let parked = world.admit(0, shape(0, 10, 50, 2)).unwrap();
    world.step();
    world.policy.park(parked);
    let held = world.policy.load().kv_used;
    world.served.clear();
    world.admit(1, shape(0, 10, 5, 1)).unwrap();
    while world.step() {}
    assert_eq!(world.finished, [GroupId(1)]);
    assert!(!world.has_served(parked));
    assert_eq!(world.policy.load().kv_used, held);
    world.policy.unpark(parked);
    while world.step() {}
    world.assert_idle();
}

#[test]
fn what_can_never_fit_and_what_is_one_too_many_is_refused() {
    let mut world = World::new(Bounds { groups: 1, kv_tokens: 100, ..ROOMY }, usize::MAX);
    assert_eq!(world.admit(0, shape(0, 90, 11, 1)), Err(Refused::TooLong));
    world.admit(1, shape(0, 90, 10, 1)).unwrap();
    assert_eq!(world.admit(2, shape(0, 1, 1, 1)), Err(Refused::Full));
}
