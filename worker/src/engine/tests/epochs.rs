//! A life of the pool's content ends at any moment, as a stage's loss ends it: nothing is computed from what was before.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use shoal_common::wire::hello::WorkerState;
use shoal_common::wire::message::{GroupFailure, GroupFrame, Submit};

use super::backend::HashBackend;
use super::bench::{Bench, ROOMY, alone, card, submission};
use crate::backend::{BLOCK_TOKENS, Backend, BackendError, BlockId, KvEpoch, LogitsBuffer, Slice};
use crate::engine::sink::StreamKey;
use crate::engine::turn::Turn;
use crate::scheduler::Bounds;

/// The lives of a pool, as the test has them come and go.
#[derive(Debug, Default)]
struct Lives {
    now: Option<KvEpoch>,
    begun: u64,
    /// What comes after the next pin, between planning and computing.
    next: Option<Change>,
    /// Positions that were read and had been computed in an earlier life.
    crossed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Ends,
    Another,
}

impl Lives {
    fn change(&mut self, change: Change) {
        self.begun += u64::from(change == Change::Another);
        self.now = (change == Change::Another).then_some(KvEpoch(self.begun));
    }
}

/// A [`HashBackend`] that knows in which life each position of its pool was computed.
struct Mortal {
    inner: HashBackend,
    lives: Arc<Mutex<Lives>>,
    pinned: Option<KvEpoch>,
    computed_in: Vec<[Option<KvEpoch>; BLOCK_TOKENS]>,
}

#[derive(Debug, thiserror::Error)]
#[error("its life is over")]
struct Over;

impl Mortal {
    fn alive(&self) -> Result<KvEpoch, BackendError> {
        let now = self.lives.lock().unwrap().now;
        let over = || BackendError { backend: "mortal", source: Box::new(Over) };
        self.pinned.filter(|pinned| now == Some(*pinned)).ok_or_else(over)
    }
}

impl Backend for Mortal {
    fn kv_bytes_per_token(&self) -> u64 {
        self.inner.kv_bytes_per_token()
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.computed_in = vec![[None; BLOCK_TOKENS]; blocks];
        self.inner.reserve(blocks)
    }

    fn pin_epoch(&mut self) -> Option<KvEpoch> {
        let mut lives = self.lives.lock().unwrap();
        self.pinned = lives.now;
        if let Some(change) = lives.next.take() {
            lives.change(change);
        }
        self.pinned
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        let life = self.alive()?;
        for slice in slices {
            for position in 0..slice.end() {
                let at = &mut self.computed_in[slice.blocks[position / BLOCK_TOKENS].index()][position % BLOCK_TOKENS];
                if position >= slice.start {
                    *at = Some(life);
                }
                self.lives.lock().unwrap().crossed += usize::from(*at != Some(life));
            }
        }
        self.inner.forward(slices, logits)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.alive()?;
        self.computed_in[to.index()] = self.computed_in[from.index()];
        self.inner.copy_block(from, to)
    }
}

struct World {
    bench: Bench,
    lives: Arc<Mutex<Lives>>,
}

impl World {
    fn new(bounds: Bounds) -> Self {
        let lives = Arc::new(Mutex::new(Lives { now: Some(KvEpoch(0)), ..Lives::default() }));
        let (pinned, computed_in) = (None, Vec::new());
        let backend = Mortal { inner: HashBackend::default(), lives: lives.clone(), pinned, computed_in };
        Self { bench: Bench::over(&card(), bounds, Box::new(backend)), lives }
    }

    fn change(&self, change: Change) {
        self.lives.lock().unwrap().change(change);
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.bench.turn();
        }
    }

    fn last_frame(&self, key: StreamKey) -> Option<&GroupFrame> {
        self.bench.heard(key).frames.last()
    }

    /// All blocks are to be had: a group that needs every one of them runs to its end.
    fn assert_nothing_leaked(&mut self, bounds: Bounds) {
        self.bench.assert_idle();
        let whole = (bounds.blocks * BLOCK_TOKENS) as u32;
        let submit = submission(&prompt(99, whole - 4), 4, 1);
        let key = self.bench.submit(submit.clone());
        self.bench.run();
        assert_eq!(self.bench.heard(key).tokens(0), alone(submit).tokens(0));
    }
}

const LOST: GroupFrame = GroupFrame::Failed(GroupFailure::Incomplete);

fn prompt(salt: u32, len: u32) -> Vec<u32> {
    (0..len).map(|at| (salt * 7 + at * 5) % 37).collect()
}

#[test]
fn who_has_begun_fails_with_the_life_and_who_waits_goes_on_in_the_next() {
    let mut world = World::new(Bounds { slots: 1, ..ROOMY });
    let submit = submission(&prompt(1, 40), 20, 1);
    let (begun, waits) = (world.bench.submit(submit.clone()), world.bench.submit(submit.clone()));
    world.turns(6);
    world.change(Change::Another);
    world.bench.run();
    assert_eq!(world.last_frame(begun), Some(&LOST));
    assert_eq!(world.bench.heard(waits).tokens(0), alone(submit).tokens(0));
    // The prompt that both have was not found again.
    assert_eq!(world.bench.status().cached_tokens, 0);
    assert_eq!(world.bench.status().state, WorkerState::Ready);
    assert_eq!(world.lives.lock().unwrap().crossed, 0);
}

#[test]
fn while_nothing_can_be_computed_nobody_is_kept_waiting() {
    let mut world = World::new(Bounds { slots: 1, ..ROOMY });
    let ask = || submission(&prompt(1, 10), 20, 1);
    let before = [world.bench.submit(ask()), world.bench.submit(ask())];
    world.turns(3);
    world.change(Change::Ends);
    assert_eq!(world.bench.turn(), Turn::Idle);
    let meanwhile = world.bench.submit(ask());
    world.bench.turn();
    assert_eq!(world.bench.status().state, WorkerState::Incomplete);
    world.bench.assert_idle();
    assert!(before.into_iter().chain([meanwhile]).all(|key| world.last_frame(key) == Some(&LOST)));
    assert_eq!(world.bench.heard(meanwhile).accepted, 0);
    world.change(Change::Another);
    world.bench.turn();
    assert_eq!(world.bench.status().state, WorkerState::Ready);
    let after = world.bench.submit(ask());
    world.bench.run();
    assert_eq!(world.bench.heard(after).tokens(0), alone(ask()).tokens(0));
}

#[test]
fn a_step_that_was_planned_in_an_earlier_life_is_not_computed_in_the_next() {
    let mut world = World::new(ROOMY);
    let key = world.bench.submit(submission(&prompt(1, 40), 20, 2));
    world.turns(6);
    let said = world.bench.heard(key).frames.len();
    world.lives.lock().unwrap().next = Some(Change::Another);
    world.bench.turn();
    assert_eq!(world.bench.heard(key).frames[said..], [LOST]);
    assert_eq!(world.lives.lock().unwrap().crossed, 0);
    world.bench.run();
    world.assert_nothing_leaked(ROOMY);
}

#[derive(Clone, Debug)]
enum Act {
    /// One of few prompts, so that some are found in the cache.
    Submit {
        story: u32,
        length: u32,
        max_tokens: u32,
        branches: u32,
    },
    Turn,
    Now(Change),
    WithinTheStep(Change),
}

fn any_act() -> impl Strategy<Value = Act> {
    let change = prop_oneof![1 => Just(Change::Ends), 2 => Just(Change::Another)].boxed();
    prop_oneof![
        4 => (0..3u32, 1..60u32, 1..30u32, 1..4u32).prop_map(|(story, length, max_tokens, branches)| Act::Submit {
            story, length, max_tokens, branches,
        }),
        30 => Just(Act::Turn),
        1 => change.clone().prop_map(Act::Now),
        1 => change.prop_map(Act::WithinTheStep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_token_is_ever_computed_from_kv_of_an_earlier_life(acts in prop::collection::vec(any_act(), 1..120)) {
        let bounds = Bounds { slots: 3, blocks: 14, step_tokens: 24, ..ROOMY };
        let mut world = World::new(bounds);
        let mut asked: Vec<(StreamKey, Submit)> = Vec::new();
        for act in acts {
            match act {
                Act::Submit { story, length, max_tokens, branches } => {
                    let submit = submission(&prompt(story, length), max_tokens, branches);
                    asked.push((world.bench.submit(submit.clone()), submit));
                }
                Act::Turn => world.turns(1),
                Act::Now(change) => world.change(change),
                Act::WithinTheStep(change) => world.lives.lock().unwrap().next = Some(change),
            }
        }
        world.lives.lock().unwrap().next = None;
        world.change(Change::Another);
        world.bench.run();
        prop_assert_eq!(world.lives.lock().unwrap().crossed, 0);
        for (key, submit) in asked {
            prop_assert_eq!(world.bench.heard(key).ends, 1);
            let (expected, heard) = (alone(submit.clone()), world.bench.heard(key));
            for branch in 0..submit.branches.len() as u16 {
                let (tokens, whole) = (heard.tokens(branch), expected.tokens(branch));
                prop_assert!(whole.starts_with(&tokens));
                prop_assert_eq!(tokens.len() < whole.len(), heard.frames.last() == Some(&LOST) && heard.end(branch).is_none());
            }
        }
        world.assert_nothing_leaked(bounds);
    }
}
