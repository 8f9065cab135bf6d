//! Whatever the pool does, every answer is the one that its group gets alone: prefixes that are found, sequences that are
//! preempted, branches that share blocks never change a token.

use proptest::prelude::*;
use shoal_common::block_hash::CacheSalt;
use shoal_common::ids::BranchIndex;
use shoal_common::wire::message::Submit;

use super::bench::{Bench, Draining, Heard, ROOMY, alone, start, submission};
use crate::engine::sink::StreamKey;
use crate::engine::turn::Turn;
use crate::scheduler::Bounds;

/// The beginning of one of a few texts.
fn story(of: u32, length: u32) -> Vec<u32> {
    (0..length).map(|at| (of * 7 + at * 5) % 37).collect()
}

/// What is to be submitted: a beginning of a story, and where its branches stand.
#[derive(Clone, Debug)]
struct Ask {
    story: u32,
    prompt: u32,
    max_tokens: u32,
    /// Of each branch, how much of its answer is there already.
    emitted: Vec<u32>,
    scored: bool,
    user: u64,
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let emitted = prop::collection::vec(prop_oneof![3 => Just(0), 1 => 0..30u32], 1..4);
    (0..3u32, 1..70u32, 1..40u32, emitted, prop::bool::weighted(0.2), 0..3u64).prop_map(
        |(story, prompt, max_tokens, emitted, scored, user)| {
            let emitted = emitted.into_iter().map(|count| count % max_tokens).collect();
            Ask { story, prompt, max_tokens, emitted, scored, user }
        },
    )
}

impl Ask {
    /// The submission, and what it must be answered with.
    fn expect(&self) -> (Submit, Heard) {
        let mut submit = submission(&story(self.story, self.prompt), self.max_tokens, self.emitted.len() as u32);
        submit.score_prompt = self.scored.then_some(2);
        submit.share_key = self.user;
        let whole = alone(submit.clone());
        for (at, emitted) in self.emitted.iter().enumerate() {
            submit.branches[at] = start(at as u32, &whole.tokens(at as u16)[..*emitted as usize]);
        }
        (submit, whole)
    }

    fn assert_heard(&self, heard: &Heard, whole: &Heard) {
        for (at, emitted) in (0..).zip(&self.emitted) {
            assert_eq!(heard.tokens(at), whole.tokens(at)[*emitted as usize..], "branch {at} of {self:?}");
        }
        assert_eq!(heard.scores(), whole.scores(), "{self:?}");
        assert_eq!(heard.ends, 1);
    }
}

/// What is done between two turns.
#[derive(Clone, Copy, Debug)]
enum Act {
    Turns(usize),
    /// The client of a group reads no more, or again.
    Clog(usize),
    Drain(usize),
    Cancel(usize),
    Stop(usize, u16),
}

fn any_act() -> impl Strategy<Value = Act> {
    let which = || 0..16usize;
    prop_oneof![
        6 => (1..12usize).prop_map(Act::Turns),
        1 => which().prop_map(Act::Clog),
        1 => which().prop_map(Act::Drain),
        1 => which().prop_map(Act::Cancel),
        1 => (which(), 0..3u16).prop_map(|(group, branch)| Act::Stop(group, branch)),
    ]
}

fn tiny_pools() -> impl Strategy<Value = Bounds> {
    // A longest sequence of 109 tokens takes 7 blocks.
    (1..6usize, 7..14usize, 1..40usize).prop_map(|(slots, blocks, step_tokens)| Bounds {
        slots,
        blocks,
        step_tokens,
        ..ROOMY
    })
}

proptest! {
    #[test]
    fn a_pool_too_small_for_its_load_changes_no_answer(
        bounds in tiny_pools(),
        asks in prop::collection::vec(any_ask(), 1..10),
    ) {
        let expected: Vec<_> = asks.iter().map(Ask::expect).collect();
        let mut bench = Bench::new(bounds);
        let keys: Vec<_> = expected.iter().map(|(submit, _)| bench.submit(submit.clone())).collect();
        bench.run();
        bench.assert_idle();
        for ((key, ask), (_, whole)) in keys.into_iter().zip(&asks).zip(&expected) {
            ask.assert_heard(bench.heard(key), whole);
        }
    }

    #[test]
    fn nor_do_clogged_streams_cancels_and_stopped_branches(
        bounds in tiny_pools(),
        asks in prop::collection::vec((any_ask(), any_act()), 1..12),
        acts in prop::collection::vec(any_act(), 0..20),
    ) {
        let expected: Vec<_> = asks.iter().map(|(ask, _)| ask.expect()).collect();
        let mut bench = Bench::new(bounds);
        let mut left_alone = vec![true; asks.len()];
        for ((_, act), (submit, _)) in asks.iter().zip(&expected) {
            bench.submit(submit.clone());
            bench.act(*act, &mut left_alone);
        }
        acts.into_iter().for_each(|act| bench.act(act, &mut left_alone));
        bench.streams.values_mut().for_each(|stream| stream.draining = Draining::Yes);
        bench.turn();
        bench.run();
        bench.assert_idle();
        for (at, ((ask, _), (_, whole))) in asks.iter().zip(&expected).enumerate() {
            let heard = bench.heard(StreamKey(at as u64));
            prop_assert_eq!(heard.ends, 1);
            if left_alone[at] {
                ask.assert_heard(heard, whole);
            }
        }
    }
}

impl Bench {
    fn act(&mut self, act: Act, left_alone: &mut [bool]) {
        let known = |at: usize, bench: &Self| Some(StreamKey(at as u64)).filter(|key| bench.streams.contains_key(key));
        match act {
            Act::Turns(count) => (0..count).for_each(|_| {
                self.turn();
            }),
            Act::Clog(at) | Act::Drain(at) => {
                let draining = if matches!(act, Act::Clog(_)) { Draining::No } else { Draining::Yes };
                if let Some(key) = known(at, self) {
                    self.streams.get_mut(&key).unwrap().draining = draining;
                }
            }
            Act::Cancel(at) => {
                if let Some(key) = known(at, self) {
                    left_alone[at] = false;
                    self.streams[&key].link.cancel();
                }
            }
            Act::Stop(at, branch) => {
                if let Some(key) = known(at, self) {
                    left_alone[at] = false;
                    self.streams[&key].link.stop_branch(BranchIndex(branch));
                }
            }
        }
    }
}

/// A load that must preempt and must find prefixes, so that the promises above are about something.
#[test]
fn preemptions_and_found_prefixes_happen_and_show_in_the_status_alone() {
    let asks: Vec<_> = (0..12)
        .map(|at| Ask {
            story: at % 2,
            prompt: 20 + at,
            max_tokens: 60,
            emitted: vec![0; 1 + at as usize % 3],
            scored: at % 5 == 0,
            user: u64::from(at % 2),
        })
        .collect();
    let mut bench = Bench::new(Bounds { slots: 6, blocks: 12, ..ROOMY });
    let expected: Vec<_> = asks.iter().map(Ask::expect).collect();
    let keys: Vec<_> = expected.iter().map(|(submit, _)| bench.submit(submit.clone())).collect();
    bench.run();
    bench.assert_idle();
    for ((key, ask), (_, whole)) in keys.into_iter().zip(&asks).zip(&expected) {
        ask.assert_heard(bench.heard(key), whole);
    }
    let status = bench.status();
    assert!(status.preemptions > 10, "{} preemptions", status.preemptions);
    assert!(status.cached_tokens > 200, "{} tokens found", status.cached_tokens);
    assert!(status.looked_up_tokens > status.cached_tokens);
}

#[test]
fn the_next_turn_of_a_conversation_finds_the_answer_to_the_last() {
    let mut bench = Bench::new(ROOMY);
    let first = bench.submit(submission(&story(1, 40), 41, 1));
    bench.run();
    let answer: Vec<u32> = bench.heard(first).tokens(0).iter().map(|score| score.token.0).collect();
    let turn: Vec<u32> = story(1, 40).into_iter().chain(answer).chain([1, 2, 3]).collect();
    let second = bench.submit(submission(&turn, 10, 1));
    bench.run();
    // 40 + 40 tokens have KV: five blocks, of 84 tokens.
    assert_eq!(bench.status().cached_tokens, 80);
    assert_eq!(bench.heard(second).tokens(0), alone(submission(&turn, 10, 1)).tokens(0));
}

#[test]
fn another_salt_finds_nothing() {
    let mut bench = Bench::new(ROOMY);
    for salt in [1, 2, 1] {
        let mut submit = submission(&story(1, 40), 4, 1);
        submit.cache_salt = CacheSalt(salt);
        let before = bench.status().cached_tokens;
        bench.submit(submit);
        bench.run();
        let found = bench.status().cached_tokens - before;
        assert_eq!(found, if before == 0 && salt == 1 && bench.streams.len() == 3 { 32 } else { 0 });
    }
}

#[test]
fn a_failed_step_leaves_nothing_in_the_cache() {
    use super::backend::FAILS;
    let mut bench = Bench::new(ROOMY);
    let mut poisoned = story(1, 33);
    poisoned[20] = FAILS.0;
    for _ in 0..2 {
        bench.submit(submission(&poisoned, 4, 1));
        bench.run();
        bench.assert_idle();
    }
    assert_eq!(bench.status().cached_tokens, 0);
}

#[test]
fn a_parked_group_makes_room_and_goes_on_where_it_was() {
    let mut bench = Bench::new(Bounds { slots: 2, blocks: 40, ..ROOMY });
    let talkative = submission(&story(1, 20), 200, 2);
    let clogged = bench.submit(talkative.clone());
    bench.streams.get_mut(&clogged).unwrap().draining = Draining::No;
    while bench.turn() == Turn::Busy {}
    assert_eq!(bench.status().running, 2);
    let other = bench.submit(submission(&story(2, 20), 50, 2));
    bench.run();
    assert_eq!(bench.heard(other).tokens(1).len(), 50);
    assert_eq!((bench.status().running, bench.status().preemptions), (0, 2));
    bench.streams.get_mut(&clogged).unwrap().draining = Draining::Yes;
    bench.turn();
    bench.run();
    bench.assert_idle();
    let expected = alone(talkative);
    (0..2).for_each(|branch| assert_eq!(bench.heard(clogged).tokens(branch), expected.tokens(branch)));
}
