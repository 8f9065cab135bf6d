//! Steps under way at once: the same bits as one after the other, and nobody idle who could compute. Times are virtual where
//! they matter.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use shoal_common::wire::hello::ModelCard;
use shoal_common::wire::message::{GroupFailure, GroupFrame, Submit, TokenScore};

use super::*;
use crate::backend::{BackendError, BlockId, LogitsBuffer, Slice, Wake};
use crate::engine::sink::StreamKey;
use crate::engine::tests::backend::{FAILS, HashBackend};
use crate::engine::tests::bench::{Bench as Engine, ROOMY, alone, card, submission};
use crate::scheduler::Bounds;
use crate::stage::ring::{Leg, Ring};

const BOUNDS: Bounds = Bounds { slots: 12, blocks: BLOCKS as usize, step_tokens: 48, ..ROOMY };

/// Prompts that begin alike or not, with branches, short and long.
fn submissions() -> Vec<Submit> {
    let prompt = |story: u32, length: u32| (0..length).map(|at| (story * 7 + at * 5) % 37).collect::<Vec<_>>();
    let ask = |at: u32| {
        let mut submit = submission(&prompt(at % 4, 5 + at * 13), 6 + at * 3, 1 + at % 3);
        submit.score_prompt = (at % 4 == 1).then_some(2);
        submit
    };
    (0..9).map(ask).collect()
}

/// All that was said of every branch, and the prompts' scores.
fn said(engine: &Engine, asked: &[(StreamKey, Submit)]) -> Vec<(Vec<Vec<TokenScore>>, Vec<TokenScore>)> {
    let of_group = |(key, submit): &(StreamKey, Submit)| {
        let heard = engine.heard(*key);
        assert_eq!(heard.ends, 1);
        ((0..submit.branches.len() as u16).map(|branch| heard.tokens(branch)).collect(), heard.scores())
    };
    asked.iter().map(of_group).collect()
}

fn ask_all(engine: &mut Engine) -> Vec<(StreamKey, Submit)> {
    submissions().into_iter().map(|submit| (engine.submit(submit.clone()), submit)).collect()
}

#[test]
fn steps_under_way_at_once_give_the_tokens_of_one_after_the_other() {
    let model = ModelCard { vocab_size: 512, ..card() };
    let mut whole = Engine::over(&model, BOUNDS, cpu(layers(0, 4)));
    let asked = ask_all(&mut whole);
    whole.run_waiting();
    let expected = said(&whole, &asked);
    let cluster = Cluster::new();
    for cuts in [&[2][..], &[1, 3]] {
        for depth in 1..=4 {
            let ranges: Vec<_> = cuts.iter().zip(cuts[1..].iter().chain([&4])).map(|(a, b)| layers(*a, *b)).collect();
            let names = ["beta", "gamma"];
            let stages: Vec<_> =
                names.into_iter().zip(&ranges).map(|(name, range)| cluster.stage(name, LOOPBACK, *range)).collect();
            let members: Vec<_> = names
                .into_iter()
                .zip(&stages)
                .zip(&ranges)
                .map(|((name, stage), range)| (name, stage, *range))
                .collect();
            let (mut pipeline, _states, _closer) = cluster.pipeline(layers(0, cuts[0]), &members, None);
            together(&mut pipeline, None).unwrap();
            let pipeline = pipeline.at_depth(NonZero::new(depth).unwrap());
            let mut engine = Engine::over(&model, BOUNDS, Box::new(pipeline));
            let asked = ask_all(&mut engine);
            engine.run_waiting();
            engine.assert_idle();
            assert!(said(&engine, &asked) == expected, "{cuts:?} with {depth} steps under way");
        }
    }
}

/// When the parts of a virtual split model compute.
#[derive(Debug, Default)]
struct Clock {
    now: f64,
    /// Of each part, the head first: when it is free, and how long it has computed.
    free: Vec<f64>,
    busy: Vec<f64>,
}

/// A split model whose parts take the times that they are given, and none in truth. A step is computed when it is launched,
/// as its effects come before the next one's.
struct Virtual {
    inner: HashBackend,
    /// Seconds of a step, of each part; and from part to part.
    takes: Vec<f64>,
    way: f64,
    clock: Arc<Mutex<Clock>>,
    away: VecDeque<(f64, Vec<Leg>, Result<LogitsBuffer, BackendError>)>,
    ring: Ring,
    /// Steps until one fails.
    fails: Option<usize>,
}

impl Virtual {
    fn new(takes: &[f64], way: f64, ring: Ring) -> (Box<Self>, Arc<Mutex<Clock>>) {
        let zeros = vec![0.0; takes.len()];
        let clock = Arc::new(Mutex::new(Clock { now: 0.0, free: zeros.clone(), busy: zeros }));
        let (inner, away) = (HashBackend::default(), VecDeque::new());
        let new = Self { inner, takes: takes.to_vec(), way, clock: clock.clone(), away, ring, fails: None };
        (Box::new(new), clock)
    }
}

impl Backend for Virtual {
    fn kv_bytes_per_token(&self) -> u64 {
        self.inner.kv_bytes_per_token()
    }

    fn reserve(&mut self, blocks: usize) -> Result<(), BackendError> {
        self.inner.reserve(blocks)
    }

    fn depth(&self) -> usize {
        self.ring.depth()
    }

    fn wake_with(&mut self, _wake: Wake) {}

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.launch(slices)?;
        self.collect(logits).expect("it is always back").map(drop)
    }

    fn launch(&mut self, slices: &[Slice<'_>]) -> Result<(), BackendError> {
        let mut logits = LogitsBuffer::default();
        let computed = self.inner.forward(slices, &mut logits).map(|()| logits);
        let mut clock = self.clock.lock().unwrap();
        let (mut at, mut legs) = (clock.now, Vec::new());
        for (part, takes) in self.takes.iter().enumerate() {
            let asked = at;
            at = (if part == 0 { at } else { at + self.way / 2.0 }).max(clock.free[part]) + takes;
            clock.free[part] = at;
            clock.busy[part] += takes;
            if part == 0 {
                // On the engine's thread.
                clock.now = at;
            } else {
                at += self.way / 2.0;
                let (took, around) = (Duration::from_secs_f64(*takes), Duration::from_secs_f64(at - asked));
                legs.push(Leg { took, around });
            }
        }
        self.away.push_back((at, legs, computed));
        Ok(())
    }

    fn collect(&mut self, logits: &mut LogitsBuffer) -> Option<Result<Duration, BackendError>> {
        let (at, legs, computed) = self.away.pop_front()?;
        let mut clock = self.clock.lock().unwrap();
        clock.now = clock.now.max(at);
        self.ring.observe(Duration::from_secs_f64(self.takes[0]), &legs);
        if self.fails.as_mut().is_some_and(|left| std::mem::replace(left, left.wrapping_sub(1)) == 0) {
            return Some(Err(BackendError { backend: "virtual", source: "on order".into() }));
        }
        match computed {
            Ok(computed) => *logits = computed,
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(Duration::from_secs_f64(self.takes.iter().copied().fold(0.0, f64::max))))
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), BackendError> {
        self.inner.copy_block(from, to)
    }
}

/// The share of the time in which each part computed, over twelve streams of sixty tokens.
fn busy(takes: &[f64], way: f64, ring: Ring) -> Vec<f64> {
    let (backend, clock) = Virtual::new(takes, way, ring);
    let mut engine = Engine::over(&card(), BOUNDS, backend);
    let ask = |at: u32| submission(&[at, at + 1, at + 2], 60, 1);
    let asked: Vec<_> = (0..12).map(|at| (engine.submit(ask(at)), ask(at))).collect();
    engine.run();
    engine.assert_idle();
    for (key, submit) in asked {
        assert_eq!(engine.heard(key).tokens(0), alone(submit).tokens(0));
    }
    let clock = clock.lock().unwrap();
    clock.busy.iter().map(|busy| busy / clock.now).collect()
}

#[test]
fn the_slowest_part_computes_nearly_all_the_time() {
    let (takes, way) = ([0.010, 0.020, 0.015], 0.001);
    let one_by_one = busy(&takes, way, Ring::fixed(2, 1));
    assert!(one_by_one[1] < 0.45, "{one_by_one:?}");
    let overlapping = busy(&takes, way, Ring::new(2, 8));
    assert!(overlapping[1] >= 0.9, "{overlapping:?}");
    let far = busy(&takes, 0.020, Ring::new(2, 8));
    assert!(far[1] >= 0.9, "{far:?}");
    let slow_head = busy(&[0.020, 0.010], way, Ring::new(1, 8));
    assert!(slow_head[0] >= 0.9, "{slow_head:?}");
}

#[test]
fn a_long_prompt_goes_through_all_parts_at_once() {
    let mut times = Vec::new();
    for depth in [1, 3] {
        let (backend, clock) = Virtual::new(&[0.01; 3], 0.0, Ring::fixed(2, depth));
        let bounds = Bounds { step_tokens: 16 * depth, ..BOUNDS };
        let mut engine = Engine::over(&card(), bounds, backend);
        let submit = submission(&(0..320).map(|at| at * 5 % 37).collect::<Vec<_>>(), 1, 1);
        let key = engine.submit(submit.clone());
        engine.run();
        assert_eq!(engine.heard(key).tokens(0), alone(submit).tokens(0));
        times.push(clock.lock().unwrap().now);
    }
    // 20 chunks of 3 parts each, and 20 that follow each other.
    assert!((times[0] - 0.60).abs() < 1e-9 && (times[1] - 0.22).abs() < 1e-9, "{times:?}");
}

#[test]
fn a_step_that_fails_once_is_computed_again_with_those_that_began_after_it() {
    let (mut backend, _clock) = Virtual::new(&[0.01; 3], 0.0, Ring::fixed(2, 3));
    backend.fails = Some(20);
    let mut engine = Engine::over(&card(), BOUNDS, backend);
    let ask = |at: u32| submission(&[at, at + 1, at + 2], 60, 1);
    let asked: Vec<_> = (0..12).map(|at| (engine.submit(ask(at)), ask(at))).collect();
    engine.run();
    engine.assert_idle();
    for (key, submit) in asked {
        assert_eq!(engine.heard(key).tokens(0), alone(submit).tokens(0));
    }
}

#[test]
fn the_group_that_a_part_fails_at_ends_alone_whatever_is_under_way() {
    let (backend, _clock) = Virtual::new(&[0.01; 3], 0.0, Ring::fixed(2, 3));
    let mut engine = Engine::over(&card(), BOUNDS, backend);
    let ask = |at: u32| submission(&[at, at + 1, at + 2], 60, 1);
    let asked: Vec<_> = (0..6).map(|at| (engine.submit(ask(at)), ask(at))).collect();
    engine.turns(20);
    // It fails in the middle of a prompt whose later parts are under way, too.
    let prompt: Vec<_> = (0..90).map(|at| if at == 40 { FAILS.0 } else { at % 37 }).collect();
    let hit = engine.submit(submission(&prompt, 5, 3));
    let beside: Vec<_> = (6..9).map(|at| (engine.submit(ask(at)), ask(at))).collect();
    engine.run();
    engine.assert_idle();
    assert_eq!(engine.heard(hit).frames.last(), Some(&GroupFrame::Failed(GroupFailure::Engine)));
    assert_eq!(engine.heard(hit).ends, 1);
    for (key, submit) in asked.into_iter().chain(beside) {
        assert_eq!(engine.heard(key).tokens(0), alone(submit).tokens(0));
    }
}
