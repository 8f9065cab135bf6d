//! A life of the pool's content ends at any moment, as a stage's loss ends it: nothing is computed from what was before.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use shoal_common::ids::{BranchIndex, Digest, Generation};
use shoal_common::wire::hello::WorkerState;
use shoal_common::wire::message::{GroupFailure, GroupFrame, Submit};

use super::backend::HashBackend;
use super::bench::{Bench, ROOMY, alone, card, submission};
use crate::adapters::{Adapter, Held, Lease};
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
    /// Whether the next step fails, and computes nothing.
    fails: bool,
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
    depth: usize,
    /// Steps that were launched: computed, and not collected.
    away: VecDeque<Result<LogitsBuffer, BackendError>>,
    computed_in: Vec<[Option<KvEpoch>; BLOCK_TOKENS]>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("its life is over")]
    Over,
    #[error("on order")]
    OnOrder,
}

impl From<Trouble> for BackendError {
    fn from(source: Trouble) -> Self {
        Self { backend: "mortal", source: Box::new(source) }
    }
}

impl Mortal {
    fn alive(&self) -> Result<KvEpoch, BackendError> {
        let now = self.lives.lock().unwrap().now;
        self.pinned.filter(|pinned| now == Some(*pinned)).ok_or_else(|| Trouble::Over.into())
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
        if self.pinned != lives.now {
            self.away.clear();
        }
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
        if std::mem::take(&mut self.lives.lock().unwrap().fails) {
            return Err(Trouble::OnOrder.into());
        }
        self.inner.forward(slices, logits)
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn launch(&mut self, slices: &[Slice<'_>]) -> Result<(), BackendError> {
        let mut logits = LogitsBuffer::default();
        self.alive()?;
        let computed = self.forward(slices, &mut logits);
        self.away.push_back(computed.map(|()| logits));
        Ok(())
    }

    fn collect(&mut self, logits: &mut LogitsBuffer) -> Option<Result<Duration, BackendError>> {
        let computed = self.alive().and(self.away.pop_front()?);
        Some(computed.map(|computed| {
            *logits = computed;
            Duration::from_millis(1)
        }))
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
        Self::overlapping(bounds, 1)
    }

    /// With so many steps under way at once.
    fn overlapping(bounds: Bounds, depth: usize) -> Self {
        let lives = Arc::new(Mutex::new(Lives { now: Some(KvEpoch(0)), ..Lives::default() }));
        let backend = Mortal {
            inner: HashBackend::default(),
            lives: lives.clone(),
            pinned: None,
            depth,
            away: VecDeque::new(),
            computed_in: Vec::new(),
        };
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

/// What stages of an earlier life hold.
#[derive(Debug, Default)]
struct Elsewhere(AtomicBool);

impl Held for Elsewhere {
    fn is_lost(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[test]
fn a_group_that_waits_with_an_adapter_of_an_earlier_life_fails_with_it() {
    let mut world = World::new(Bounds { slots: 1, ..ROOMY });
    let elsewhere = Arc::new(Elsewhere::default());
    let generation = Generation(Digest([1; 32]));
    let ask = |world: &mut World| {
        let mut submit = submission(&prompt(1, 10), 20, 1);
        submit.adapter = Some(generation);
        submit.fingerprint = card().fingerprint_with(submit.adapter);
        let hold: Arc<Elsewhere> = elsewhere.clone();
        world.bench.submit_with(submit, Some(Lease::of(Adapter::empty(generation)).with(hold)))
    };
    world.bench.submit(submission(&prompt(2, 10), 20, 1));
    let waits = ask(&mut world);
    world.turns(2);
    assert_eq!(world.last_frame(waits), None);
    elsewhere.0.store(true, Ordering::Release);
    world.change(Change::Another);
    world.turns(1);
    let late = ask(&mut world);
    world.bench.run();
    assert_eq!([world.last_frame(waits), world.last_frame(late)], [Some(&LOST); 2]);
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
    /// The router gives up on a group, or on a branch.
    Cancel(usize),
    StopBranch(usize, u16),
    Now(Change),
    WithinTheStep(Change),
    /// The next step fails.
    Fail,
}

fn any_act() -> impl Strategy<Value = Act> {
    let change = prop_oneof![1 => Just(Change::Ends), 2 => Just(Change::Another)].boxed();
    prop_oneof![
        4 => (0..3u32, 1..60u32, 1..30u32, 1..4u32).prop_map(|(story, length, max_tokens, branches)| Act::Submit {
            story, length, max_tokens, branches,
        }),
        30 => Just(Act::Turn),
        1 => (0..8usize).prop_map(Act::Cancel),
        1 => (0..8usize, 0..4u16).prop_map(|(group, branch)| Act::StopBranch(group, branch)),
        1 => change.clone().prop_map(Act::Now),
        1 => change.prop_map(Act::WithinTheStep),
        1 => Just(Act::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_token_is_ever_computed_from_kv_of_an_earlier_life_or_of_a_step_that_failed(
        acts in prop::collection::vec(any_act(), 1..120),
        depth in 1..5usize,
    ) {
        let bounds = Bounds { slots: 3, blocks: 14, step_tokens: 24, ..ROOMY };
        let mut world = World::overlapping(bounds, depth);
        let mut given_up = BTreeSet::new();
        let mut asked: Vec<(StreamKey, Submit)> = Vec::new();
        for act in acts {
            match act {
                Act::Submit { story, length, max_tokens, branches } => {
                    let submit = submission(&prompt(story, length), max_tokens, branches);
                    asked.push((world.bench.submit(submit.clone()), submit));
                }
                Act::Turn => world.turns(1),
                Act::Cancel(at) => {
                    if let Some((key, _)) = asked.iter().rev().nth(at) {
                        world.bench.streams[key].link.cancel();
                        given_up.insert(*key);
                    }
                }
                Act::StopBranch(at, branch) => {
                    if let Some((key, _)) = asked.iter().rev().nth(at) {
                        world.bench.streams[key].link.stop_branch(BranchIndex(branch));
                        given_up.insert(*key);
                    }
                }
                Act::Now(change) => world.change(change),
                Act::WithinTheStep(change) => world.lives.lock().unwrap().next = Some(change),
                Act::Fail => world.lives.lock().unwrap().fails = true,
            }
        }
        {
            let mut lives = world.lives.lock().unwrap();
            (lives.next, lives.fails) = (None, false);
        }
        world.change(Change::Another);
        world.bench.run();
        prop_assert_eq!(world.lives.lock().unwrap().crossed, 0);
        for (key, submit) in asked {
            prop_assert_eq!(world.bench.heard(key).ends, 1);
            let (expected, heard) = (alone(submit.clone()), world.bench.heard(key));
            for branch in 0..submit.branches.len() as u16 {
                let (tokens, whole) = (heard.tokens(branch), expected.tokens(branch));
                prop_assert!(whole.starts_with(&tokens));
                let failed = [&LOST, &GroupFrame::Failed(GroupFailure::Engine)].map(Some);
                let is_lost = failed.contains(&heard.frames.last()) && heard.end(branch).is_none();
                prop_assert!(given_up.contains(&key) || is_lost == (tokens.len() < whole.len()));
            }
        }
        world.assert_nothing_leaked(bounds);
    }
}
