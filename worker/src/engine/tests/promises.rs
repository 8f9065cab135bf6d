//! One test per promise.

use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{BranchIndex, Digest, TokenId};
use shoal_common::wire::hello::WorkerState;
use shoal_common::wire::message::{BranchEnd, GroupFailure, GroupFrame, PromptIds, Submit};

use super::backend::{FAILS, PANICS, VOCAB};
use super::bench::{Bench, CONTEXT, Draining, ROOMY, alone, ids, start, submission};
use crate::engine::link::{UNSENT_BYTES, UNSENT_FRAMES};
use crate::engine::turn::Turn;
use crate::scheduler::Bounds;

fn prompt(salt: u32, len: u32) -> Vec<u32> {
    (0..len).map(|at| (salt * 7 + at * 5) % 37).collect()
}

fn failure(submit: Submit) -> GroupFrame {
    let heard = alone(submit);
    assert_eq!(heard.frames.len(), 1);
    heard.frames[0].clone()
}

#[test]
fn branches_of_a_group_equal_branches_submitted_alone() {
    let together = alone(submission(&prompt(1, 20), 12, 6));
    for choice in 0..6 {
        let mut single = submission(&prompt(1, 20), 12, 1);
        single.branches = vec![start(choice, &[])];
        assert_eq!(together.tokens(choice as u16), alone(single).tokens(0));
    }
    assert_ne!(together.tokens(0), together.tokens(1), "branches differ from each other");
}

#[test]
fn a_resumed_branch_goes_on_as_if_nothing_had_happened() {
    let whole = alone(submission(&prompt(2, 9), 14, 2));
    for cut in 0..14 {
        let mut resumed = submission(&prompt(2, 9), 14, 0);
        resumed.branches = vec![start(0, &whole.tokens(0)[..cut]), start(1, &whole.tokens(1)[..13 - cut])];
        let heard = alone(resumed);
        assert_eq!(heard.tokens(0), whole.tokens(0)[cut..], "cut at {cut}");
        assert_eq!(heard.tokens(1), whole.tokens(1)[13 - cut..], "cut at {}", 13 - cut);
        assert_eq!(heard.first_position(0), Some(cut as u32), "what was emitted is not sent again");
    }
}

#[test]
fn a_mixed_load_gives_what_each_group_gives_alone() {
    let submissions: Vec<_> = (0..20)
        .map(|at| {
            let mut submit = submission(&prompt(at, 1 + at * 9), 1 + at % 11, 1 + at % 4);
            submit.score_prompt = (at % 3 == 0).then_some(2);
            submit.share_key = u64::from(at % 2);
            submit
        })
        .collect();
    for bounds in [ROOMY, Bounds { slots: 2, blocks: 13, step_tokens: 5, ..ROOMY }] {
        let mut bench = Bench::new(bounds);
        let keys: Vec<_> = submissions.iter().map(|submit| bench.submit(submit.clone())).collect();
        bench.run();
        bench.assert_idle();
        for (key, submit) in keys.into_iter().zip(&submissions) {
            let expected = alone(submit.clone());
            for branch in 0..submit.branches.len() as u16 {
                assert_eq!(bench.heard(key).tokens(branch), expected.tokens(branch));
            }
            assert_eq!(bench.heard(key).scores(), expected.scores());
            assert_eq!(bench.heard(key).ends, 1);
        }
    }
}

#[test]
fn a_prompt_is_scored_before_the_first_token_and_its_scores_are_those_of_its_tokens() {
    let tokens = prompt(3, 150);
    let mut submit = submission(&tokens, 2, 1);
    submit.score_prompt = Some(4);
    let heard = alone(submit.clone());
    let scored = heard.scores();
    assert!(scored.iter().map(|score| score.token.0).eq(tokens[1..].iter().copied()));
    assert!(scored.iter().all(|score| score.alternatives.len() == 4 && score.logprob <= 0.0));
    let first_step = heard.frames.iter().position(|frame| matches!(frame, GroupFrame::Step(_))).unwrap();
    assert!(heard.frames[first_step..].iter().all(|frame| matches!(frame, GroupFrame::Step(_))));
    let mut unscored = submission(&tokens, 2, 1);
    unscored.score_prompt = None;
    assert_eq!(heard.tokens(0), alone(unscored).tokens(0));
}

#[test]
fn a_token_is_scored_where_that_was_asked_for_and_is_the_same_where_it_was_not() {
    let scored = alone(submission(&prompt(3, 20), 12, 1));
    let mut submit = submission(&prompt(3, 20), 12, 1);
    submit.score_tokens = None;
    let unscored = alone(submit);
    assert!(scored.steps().all(|token| token.score.as_ref().is_some_and(|score| score.token == token.token)));
    assert!(unscored.steps().all(|token| token.score.is_none()));
    assert!(unscored.steps().map(|token| token.token).eq(scored.steps().map(|token| token.token)));
    assert_eq!(unscored.steps().count(), 12);
}

#[test]
fn with_max_tokens_0_a_prompt_is_only_scored() {
    for branches in [0, 1] {
        let mut submit = submission(&prompt(4, 30), 0, branches);
        submit.score_prompt = Some(0);
        let heard = alone(submit.clone());
        assert_eq!(heard.scores().len(), 29);
        assert_eq!(heard.steps().count(), 0);
        submit.score_prompt = None;
        assert!(alone(submit).frames.is_empty());
    }
}

#[test]
fn a_stop_id_ends_a_branch_but_not_before_min_tokens() {
    let free = alone(submission(&prompt(5, 5), 30, 1));
    let stop = free.tokens(0)[4].token;
    let mut stopped = submission(&prompt(5, 5), 30, 1);
    stopped.end.stop_ids = vec![stop];
    let heard = alone(stopped.clone());
    let first = free.tokens(0).iter().position(|score| score.token == stop).unwrap();
    assert_eq!(heard.tokens(0), free.tokens(0)[..=first]);
    assert_eq!(heard.end(0), Some(BranchEnd::StopToken));
    stopped.end.min_tokens = 20;
    let held_back = alone(stopped).tokens(0);
    assert!(held_back.len() >= 20 && held_back[..20].iter().all(|score| score.token != stop));
    assert_eq!(free.end(0), Some(BranchEnd::Length));
    assert_eq!(free.tokens(0).len(), 30);
}

#[test]
fn a_cancelled_group_is_freed_within_one_step() {
    let mut bench = Bench::new(ROOMY);
    let key = bench.submit(submission(&prompt(6, 10), 100, 4));
    for _ in 0..3 {
        bench.turn();
    }
    assert_eq!(bench.status().running, 4);
    let said = bench.heard(key).frames.len();
    bench.streams[&key].link.cancel();
    bench.streams[&key].link.cancel();
    assert_eq!(bench.turn(), Turn::Idle);
    bench.assert_idle();
    assert_eq!((bench.heard(key).frames.len(), bench.heard(key).ends), (said, 1));
}

#[test]
fn a_stopped_branch_frees_its_slot_and_leaves_the_others_alone() {
    let whole = alone(submission(&prompt(7, 10), 20, 3));
    let mut bench = Bench::new(ROOMY);
    let key = bench.submit(submission(&prompt(7, 10), 20, 3));
    for _ in 0..4 {
        bench.turn();
    }
    for branch in [0, 0, 9, 63, 64] {
        bench.streams[&key].link.stop_branch(BranchIndex(branch));
    }
    bench.turn();
    assert_eq!(bench.status().running, 2);
    bench.run();
    bench.assert_idle();
    assert_eq!(bench.heard(key).tokens(0), whole.tokens(0)[..4]);
    assert_eq!(bench.heard(key).tokens(2), whole.tokens(2));
    assert_eq!(bench.heard(key).ends, 1);
}

#[test]
fn stopping_every_branch_ends_the_group() {
    let mut bench = Bench::new(ROOMY);
    let key = bench.submit(submission(&prompt(7, 10), 20, 2));
    bench.turn();
    (0..2).for_each(|branch| bench.streams[&key].link.stop_branch(BranchIndex(branch)));
    bench.turn();
    bench.assert_idle();
    assert_eq!(bench.heard(key).ends, 1);
}

#[test]
fn a_group_past_its_deadline_fails_wherever_it_stands() {
    let mut bench = Bench::new(Bounds { slots: 1, ..ROOMY });
    let runs = bench.submit(submission(&prompt(8, 4), 50, 1));
    let mut late = submission(&prompt(8, 4), 5, 1);
    late.deadline_ms = Some(0);
    let queued = bench.submit(late);
    bench.turn();
    assert_eq!(bench.heard(queued).frames, [GroupFrame::Failed(GroupFailure::Deadline)]);
    bench.run();
    assert_eq!(bench.heard(runs).tokens(0).len(), 50);
    bench.assert_idle();
}

#[test]
fn one_group_too_many_is_told_busy() {
    let mut bench = Bench::new(Bounds { groups: 2, ..ROOMY });
    let keys: Vec<_> = (0..3).map(|at| bench.submit(submission(&prompt(at, 4), 5, 1))).collect();
    bench.run();
    assert!(matches!(bench.heard(keys[2]).frames[..], [GroupFrame::Busy { retry_after_ms: 1.. }]));
    assert!(keys.iter().map(|key| bench.heard(*key).accepted).eq([1, 1, 0]));
    assert!(keys.iter().all(|key| bench.heard(*key).ends == 1));
    assert_eq!(bench.heard(keys[1]).tokens(0).len(), 5);
}

#[test]
fn a_group_that_does_not_drain_is_parked_within_its_bound_and_others_go_on() {
    let mut bench = Bench::new(ROOMY);
    let mut talkative = submission(&prompt(9, 4), 400, 8);
    talkative.score_tokens = Some(20);
    let clogged = bench.submit(talkative.clone());
    bench.streams.get_mut(&clogged).unwrap().draining = Draining::No;
    let other = bench.submit(submission(&prompt(10, 4), 300, 1));
    bench.run();
    assert_eq!(bench.heard(other).tokens(0).len(), 300);
    let one_step = 32 + 8 * (24 + 9 * 20);
    assert!(bench.heard(clogged).frames.len() <= UNSENT_FRAMES);
    assert!(bench.streams[&clogged].link.unsent_bytes() < UNSENT_BYTES + one_step);
    assert_eq!(bench.status().running, 8, "it keeps its kv");
    bench.streams.get_mut(&clogged).unwrap().draining = Draining::Yes;
    bench.turn();
    bench.run();
    bench.assert_idle();
    let expected = alone(talkative);
    (0..8).for_each(|branch| assert_eq!(bench.heard(clogged).tokens(branch), expected.tokens(branch)));
}

#[test]
fn a_failing_or_panicking_backend_takes_only_the_group_that_it_fails_at() {
    for fault in [FAILS, PANICS] {
        let mut bench = Bench::new(ROOMY);
        let beside = bench.submit(submission(&prompt(1, 4), 30, 2));
        // One step for the prompt, and one for the pace to see what a decode takes.
        bench.turn();
        bench.turn();
        let hit = bench.submit(submission(&[1, fault.0, 2], 5, 3));
        let also = bench.submit(submission(&prompt(3, 4), 30, 1));
        bench.turn();
        assert_eq!(bench.heard(hit).frames.last(), Some(&GroupFrame::Failed(GroupFailure::Engine)));
        assert_eq!(bench.heard(hit).ends, 1);
        bench.run();
        let expected = alone(submission(&prompt(1, 4), 30, 2));
        for branch in 0..2 {
            assert_eq!(bench.heard(beside).tokens(branch), expected.tokens(branch));
        }
        assert_eq!(bench.heard(also).tokens(0), alone(submission(&prompt(3, 4), 30, 1)).tokens(0));
        bench.assert_idle();
    }
}

#[test]
fn a_backend_that_fails_at_several_groups_takes_all_of_the_step() {
    let mut bench = Bench::new(ROOMY);
    let hit: Vec<_> = (0..3).map(|salt| bench.submit(submission(&[salt, FAILS.0, 2], 5, 1))).collect();
    let last = bench.submit(submission(&prompt(3, 4), 30, 1));
    bench.turn();
    for key in hit.into_iter().chain([last]) {
        assert_eq!(bench.heard(key).frames.last(), Some(&GroupFrame::Failed(GroupFailure::Engine)));
        assert_eq!(bench.heard(key).ends, 1);
    }
    bench.assert_idle();
}

#[test]
fn a_group_that_was_not_in_the_failed_step_goes_on() {
    let mut bench = Bench::new(Bounds { slots: 1, ..ROOMY });
    let hit = bench.submit(submission(&[FAILS.0], 5, 1));
    let waits = bench.submit(submission(&prompt(2, 4), 5, 1));
    bench.run();
    assert_eq!(bench.heard(hit).frames, [GroupFrame::Failed(GroupFailure::Engine)]);
    assert_eq!(bench.heard(waits).tokens(0).len(), 5);
    bench.assert_idle();
}

#[test]
fn a_draining_engine_finishes_what_it_has_and_takes_nothing_new() {
    let mut bench = Bench::new(ROOMY);
    let running = bench.submit(submission(&prompt(1, 4), 20, 2));
    bench.turn();
    bench.handle.drain();
    let refused = bench.submit(submission(&prompt(1, 4), 20, 2));
    bench.run();
    assert!(matches!(bench.heard(refused).frames[..], [GroupFrame::Busy { .. }]));
    assert_eq!(bench.heard(running).tokens(1).len(), 20);
    assert_eq!(bench.handle.status().borrow().state, WorkerState::Draining);
    bench.assert_idle();
}

#[test]
fn an_invalid_submission_is_refused_before_anything_is_allocated() {
    let valid = || submission(&prompt(1, 4), 8, 2);
    let broken: [fn(&mut Submit); 12] = [
        |submit| submit.prompt = PromptIds::default(),
        |submit| submit.prompt = ids(&[VOCAB]),
        |submit| submit.end.max_tokens = CONTEXT,
        |submit| submit.end.max_tokens = u32::MAX,
        |submit| submit.branches = Vec::new(),
        |submit| submit.branches = (0..65).map(|choice| start(choice, &[])).collect(),
        |submit| submit.branches[0].emitted = ids(&[1; 8]),
        |submit| submit.branches[0].emitted = ids(&[VOCAB]),
        |submit| submit.end.stop_ids = vec![TokenId(2), TokenId(1)],
        |submit| submit.end.stop_ids = (0..2000).map(TokenId).collect(),
        |submit| submit.score_tokens = Some(21),
        |submit| submit.score_prompt = Some(21),
    ];
    for break_it in broken {
        let mut submit = valid();
        break_it(&mut submit);
        assert_eq!(failure(submit), GroupFrame::Failed(GroupFailure::Invalid));
    }
    let mut other = valid();
    other.fingerprint = Fingerprint::new(Digest::of(b"other"), None, Digest::of(b"none"), "hash");
    assert_eq!(failure(other), GroupFrame::Failed(GroupFailure::WrongFingerprint));
    let mut bench = Bench::new(Bounds { blocks: 1, ..ROOMY });
    let too_long = bench.submit(submission(&prompt(1, 4), 13, 2));
    bench.run();
    assert_eq!(bench.heard(too_long).frames, [GroupFrame::Failed(GroupFailure::Invalid)]);
}

#[test]
fn a_stopped_engine_fails_what_is_left_and_ends_its_thread() {
    let Bench { engine, handle, .. } = Bench::new(ROOMY);
    let thread = std::thread::spawn(move || engine.run());
    handle.stop();
    thread.join().unwrap();
    assert!(handle.status().has_changed().is_err(), "the status is closed");
}
