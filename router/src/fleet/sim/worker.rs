//! A simulated worker: groups wait for their adapter, then for a sequence, then share what the worker computes. It is as
//! fast as a small model on a few cores: more sequences share a step, up to a peak.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use shoal_common::block_hash::{BLOCK_TOKENS, BlockHash};
use shoal_common::wire::hello::{Status, WorkerState};

use super::demand::{MAX_TOKENS, cost};
use super::scenario::{KV_TOKENS, SEQUENCES};
use super::store::{Asked, Store};

/// Answer tokens a second with many sequences.
pub(super) const PEAK: f64 = 1600.0;

/// Sequences at which half of the peak is reached.
const HALF_PEAK: f64 = 3.0;

/// A group on a worker.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Index of its arrival.
    pub(super) group: usize,
    pub(super) adapter: usize,
    pub(super) prompt: u32,
    pub(super) answer: u32,
    pub(super) blocks: Vec<BlockHash>,
    /// What is left to compute, in answer tokens: of the prompt, and of all.
    prompt_left: f64,
    left: f64,
}

impl Job {
    pub(super) fn new(group: usize, adapter: usize, (prompt, answer): (u32, u32), blocks: Vec<BlockHash>) -> Self {
        Self { group, adapter, prompt, answer, blocks, prompt_left: cost(prompt, 0), left: cost(prompt, answer) }
    }

    /// Tokens a worker must count with until it is done.
    fn queued(&self) -> u64 {
        let prompt = (self.prompt_left * 4.0).round() as u64;
        let told = f64::from(self.answer) - (self.left - self.prompt_left);
        prompt + u64::from(MAX_TOKENS).saturating_sub(told.max(0.0) as u64)
    }
}

/// What a group has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Milestone {
    /// Its prompt is computed: the first token is sent.
    First(usize),
    /// It is done.
    Done(usize),
}

/// One worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) store: Store,
    /// Waiting for their adapters.
    parked: Vec<Job>,
    /// Waiting for a sequence.
    waiting: VecDeque<Job>,
    running: Vec<Job>,
    cache: Cache,
    /// The time up to which it has computed.
    at: Duration,
}

impl Worker {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            store: Store::new(slots),
            parked: Vec::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            cache: Cache::default(),
            at: Duration::ZERO,
        }
    }

    /// Takes a group in; says where its adapter was.
    pub(super) fn take(&mut self, job: Job, now: Duration) -> Asked {
        let asked = self.store.ask(job.adapter, now);
        self.parked.push(job);
        asked
    }

    /// Asks again for adapters that found no slot: those whose loads begin now.
    pub(super) fn ask_again(&mut self, now: Duration) -> Vec<(usize, Asked)> {
        let adapters: Vec<_> = self.parked.iter().map(|job| job.adapter).collect();
        let asked = adapters.into_iter().map(|adapter| (adapter, self.store.ask(adapter, now)));
        asked.filter(|(_, asked)| matches!(asked, Asked::Begins(_))).collect()
    }

    /// Starts whatever has an adapter and a sequence.
    pub(super) fn start(&mut self, now: Duration) {
        let parked = std::mem::take(&mut self.parked);
        for job in parked {
            if self.store.has(job.adapter) {
                self.store.enter(job.adapter, now);
                self.waiting.push_back(job);
            } else {
                self.parked.push(job);
            }
        }
        while self.running.len() < SEQUENCES as usize {
            let Some(mut job) = self.waiting.pop_front() else { break };
            let cached = self.cache.meet(&job.blocks).min(job.prompt - 1);
            job.prompt_left -= cost(cached, 0);
            job.left -= cost(cached, 0);
            self.running.push(job);
        }
    }

    /// Computes up to `now`, which is not beyond [`Self::next`].
    pub(super) fn compute(&mut self, now: Duration) -> Vec<Milestone> {
        let each = self.speed_of_each() * (now - self.at).as_secs_f64();
        self.at = now;
        let mut reached = Vec::new();
        for job in &mut self.running {
            let had_prompt = job.prompt_left > 0.0;
            job.prompt_left = rest(job.prompt_left - each);
            job.left = rest(job.left - each);
            if had_prompt && job.prompt_left == 0.0 {
                reached.push(Milestone::First(job.group));
            }
            if job.left == 0.0 {
                reached.push(Milestone::Done(job.group));
            }
        }
        let done = self.running.extract_if(.., |job| job.left == 0.0);
        done.for_each(|job| self.store.leave(job.adapter));
        reached
    }

    /// When something is next reached, if nothing else happens.
    pub(super) fn next(&self) -> Option<Duration> {
        let next = |job: &Job| if job.prompt_left > 0.0 { job.prompt_left } else { job.left };
        let least = self.running.iter().map(next).min_by(f64::total_cmp)?;
        Some(self.at + Duration::from_secs_f64(least / self.speed_of_each()))
    }

    /// What it tells the router.
    pub(super) fn status(&self, progress: u64) -> Status {
        let all = || self.running.iter().chain(&self.waiting).chain(&self.parked);
        let busy = (self.running.len() as f64).max(1.0);
        Status {
            state: WorkerState::Ready,
            progress,
            running: self.running.len() as u32,
            waiting: (self.waiting.len() + self.parked.len()) as u32,
            queued_tokens: all().map(Job::queued).sum(),
            kv_used: 0,
            tokens_per_second: (PEAK * busy / (busy + HALF_PEAK)) as u32,
            looked_up_tokens: 0,
            cached_tokens: 0,
            preemptions: 0,
        }
    }

    /// The process ends: returns the groups that were on it, in no state but the first.
    pub(super) fn restart(&mut self) -> Vec<usize> {
        self.store.restart();
        self.cache = Cache::default();
        let lost = self.running.drain(..).chain(self.waiting.drain(..)).chain(self.parked.drain(..));
        lost.map(|job| job.group).collect()
    }

    fn speed_of_each(&self) -> f64 {
        PEAK / (self.running.len() as f64 + HALF_PEAK)
    }
}

/// What is left, without the dust of floating point.
fn rest(left: f64) -> f64 {
    if left < 1e-6 { 0.0 } else { left }
}

/// The prefix cache, first in first out.
#[derive(Debug, Default)]
struct Cache {
    blocks: HashSet<BlockHash>,
    order: VecDeque<BlockHash>,
}

impl Cache {
    /// Tokens of these blocks that are there; all are afterwards.
    fn meet(&mut self, blocks: &[BlockHash]) -> u32 {
        let there = blocks.iter().take_while(|block| self.blocks.contains(block)).count();
        for block in &blocks[there..] {
            if self.blocks.insert(*block) {
                self.order.push_back(*block);
            }
        }
        while self.order.len() > KV_TOKENS as usize / BLOCK_TOKENS {
            self.order.pop_front().map(|block| self.blocks.remove(&block));
        }
        (there * BLOCK_TOKENS) as u32
    }
}
