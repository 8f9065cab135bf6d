//! An engine without a thread, with one connection whose writer is the test.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_common::block_hash::CacheSalt;
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{BranchIndex, Digest, LayerRange, Name, TokenId};
use shoal_common::sampling::SamplingParams;
use shoal_common::wire::hello::{ModelCard, Status};
use shoal_common::wire::message::{
    BranchEnd, BranchStart, BranchToken, EndRules, GroupFrame, PromptIds, Submit, TokenScore,
};
use tokio::sync::mpsc;

use super::backend::{HashBackend, VOCAB};
use crate::adapters::{Adapter, Lease};
use crate::backend::Backend;
use crate::engine::link::GroupLink;
use crate::engine::sink::{ConnectionKey, Outgoing, Outlet, StepReport, StreamKey, report_bound};
use crate::engine::turn::{Engine, Turn};
use crate::engine::{EngineHandle, GroupSink, Served, assemble};
use crate::scheduler::Bounds;
use crate::scripted;

pub(crate) const CONTEXT: u32 = 512;
pub(crate) const ROOMY: Bounds =
    Bounds { slots: 16, blocks: 512, groups: 64, queued_tokens: u64::MAX, step_tokens: 32 };

/// What [`HashBackend`] serves.
pub(crate) fn card() -> ModelCard {
    let (weights, tokenizer, numerics_class) = (Digest::of(b"hash"), Digest::of(b"none"), "hash".to_owned());
    ModelCard {
        name: Name::new("hash").unwrap(),
        weights,
        tokenizer,
        fingerprint: Fingerprint::new(weights, None, tokenizer, &numerics_class),
        numerics_class,
        layers: LayerRange { begin: 0, end: 1 },
        layer_count: 1,
        vocab_size: VOCAB,
        context: CONTEXT,
        geometry: scripted::GEOMETRY,
    }
}

/// What a group has said, its acceptance apart.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) accepted: usize,
    pub(crate) frames: Vec<GroupFrame>,
    pub(crate) ends: usize,
}

impl Heard {
    /// Takes note of a frame, after a check that the acceptance is the first or never comes.
    pub(crate) fn note(&mut self, frame: GroupFrame) {
        let is_refusal = matches!(frame, GroupFrame::Busy { .. } | GroupFrame::Failed(_));
        if frame == GroupFrame::Accepted {
            assert!(self.frames.is_empty(), "an acceptance comes first");
            self.accepted += 1;
        } else {
            assert!(self.accepted == 1 || is_refusal, "only a refusal comes without an acceptance");
            self.frames.push(frame);
        }
    }

    /// The branch's tokens, after a check that their positions are without gaps.
    pub(crate) fn tokens(&self, branch: u16) -> Vec<TokenScore> {
        let mut tokens = Vec::new();
        let mut next = None;
        for token in self.steps().filter(|token| token.branch == BranchIndex(branch)) {
            assert_eq!(*next.get_or_insert(token.position), token.position);
            next = next.map(|position| position + 1);
            tokens.extend(token.score.clone());
        }
        tokens
    }

    /// The prompt's scores, after a check that they come in order and without gaps.
    pub(crate) fn scores(&self) -> Vec<TokenScore> {
        let mut all = Vec::new();
        for frame in &self.frames {
            if let GroupFrame::PromptScores { first, scores } = frame {
                assert_eq!(*first as usize, all.len() + 1);
                all.extend(scores.iter().cloned());
            }
        }
        all
    }

    pub(crate) fn first_position(&self, branch: u16) -> Option<u32> {
        self.steps().find(|token| token.branch == BranchIndex(branch)).map(|token| token.position)
    }

    pub(crate) fn end(&self, branch: u16) -> Option<BranchEnd> {
        self.steps().filter(|token| token.branch == BranchIndex(branch)).find_map(|token| token.end)
    }

    pub(crate) fn steps(&self) -> impl Iterator<Item = &BranchToken> {
        self.frames.iter().flat_map(|frame| match frame {
            GroupFrame::Step(tokens) => &tokens[..],
            _ => &[],
        })
    }
}

/// Whether the test's writer hands frames to its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draining {
    Yes,
    No,
}

pub(crate) struct Stream {
    pub(crate) link: Arc<GroupLink>,
    pub(crate) draining: Draining,
    unsent: Vec<usize>,
    pub(crate) heard: Heard,
}

pub(crate) struct Bench {
    pub(in crate::engine) engine: Engine,
    pub(crate) handle: EngineHandle,
    outlet: Outlet,
    reports: mpsc::Receiver<StepReport>,
    pub(crate) streams: BTreeMap<StreamKey, Stream>,
}

impl Bench {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self::over(&card(), bounds, Box::new(HashBackend::default()))
    }

    pub(crate) fn over(card: &ModelCard, bounds: Bounds, mut backend: Box<dyn Backend>) -> Self {
        backend.reserve(bounds.blocks).unwrap();
        let (handle, engine) = assemble(Served::from(card), bounds, backend);
        let (sender, reports) = mpsc::channel(report_bound(64));
        let outlet = Outlet::new(ConnectionKey(0), sender);
        Self { engine, handle, outlet, reports, streams: BTreeMap::new() }
    }

    pub(crate) fn submit(&mut self, submit: Submit) -> StreamKey {
        let adapter = submit.adapter.map(|generation| Lease::of(Adapter::empty(generation)));
        self.submit_with(submit, adapter)
    }

    pub(crate) fn submit_with(&mut self, submit: Submit, adapter: Option<Lease>) -> StreamKey {
        let (key, link) = (StreamKey(self.streams.len() as u64), self.handle.link());
        let sink = GroupSink::new(self.outlet.clone(), key, link.clone());
        let stream = Stream { link, draining: Draining::Yes, unsent: Vec::new(), heard: Heard::default() };
        self.streams.insert(key, stream);
        self.handle.submit(submit, adapter, sink);
        key
    }

    /// One turn of the engine, and one of the writer.
    pub(in crate::engine) fn turn(&mut self) -> Turn {
        self.engine.read_commands(Turn::Busy);
        let turn = self.engine.turn();
        self.listen();
        turn
    }

    fn listen(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            for outgoing in report.0 {
                match outgoing {
                    Outgoing::Frame { stream, frame, cost } => {
                        let stream = self.streams.get_mut(&stream).unwrap();
                        assert_eq!(stream.heard.ends, 0, "nothing is said after the end");
                        stream.heard.note(frame);
                        stream.unsent.push(cost);
                    }
                    Outgoing::End(stream) => self.streams.get_mut(&stream).unwrap().heard.ends += 1,
                }
            }
        }
        for stream in self.streams.values_mut().filter(|stream| stream.draining == Draining::Yes) {
            stream.unsent.drain(..).for_each(|cost| stream.link.sent(cost));
        }
    }

    /// Turns until nothing is left to do.
    pub(crate) fn run(&mut self) {
        while self.turn() == Turn::Busy {}
    }

    /// So many turns.
    pub(crate) fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    /// Turns until nothing is left to do, with steps that end in their own time.
    pub(crate) fn run_waiting(&mut self) {
        let mut turn = Turn::Busy;
        loop {
            self.engine.read_commands(turn);
            turn = self.engine.turn();
            self.listen();
            let Status { running, waiting, .. } = self.status();
            if turn == Turn::Idle && (running, waiting) == (0, 0) {
                return;
            }
        }
    }

    pub(crate) fn heard(&self, key: StreamKey) -> &Heard {
        &self.streams[&key].heard
    }

    pub(crate) fn status(&self) -> Status {
        *self.handle.status().borrow()
    }

    pub(crate) fn assert_idle(&self) {
        let status = self.status();
        assert_eq!((status.running, status.waiting, status.kv_used, status.queued_tokens), (0, 0, 0, 0));
    }
}

/// A bench that ran `submit` alone.
pub(crate) fn alone(submit: Submit) -> Heard {
    let mut bench = Bench::new(ROOMY);
    let key = bench.submit(submit);
    bench.run();
    bench.assert_idle();
    let heard = bench.streams.remove(&key).unwrap().heard;
    assert_eq!(heard.ends, 1);
    heard
}

pub(crate) fn ids(values: &[u32]) -> PromptIds {
    PromptIds(values.iter().copied().map(TokenId).collect())
}

pub(crate) fn start(choice: u32, emitted: &[TokenScore]) -> BranchStart {
    BranchStart { choice, emitted: PromptIds(emitted.iter().map(|score| score.token).collect()) }
}

/// Draws `max_tokens` at temperature 1 with penalties, so that every part of a branch's state shows in its tokens.
pub(crate) fn submission(prompt: &[u32], max_tokens: u32, branches: u32) -> Submit {
    let sampling = SamplingParams {
        frequency_penalty: shoal_common::sampling::Penalty::new(0.7).unwrap(),
        repetition_penalty: shoal_common::sampling::RepetitionPenalty::new(1.2).unwrap(),
        seed: 11,
        ..SamplingParams::default()
    };
    Submit {
        adapter: None,
        fingerprint: card().fingerprint,
        prompt: ids(prompt),
        branches: (0..branches).map(|choice| start(choice, &[])).collect(),
        sampling,
        end: EndRules { max_tokens, min_tokens: 0, stop_ids: Vec::new() },
        score_tokens: Some(3),
        score_prompt: None,
        share_key: 0,
        cache_salt: CacheSalt(0),
        deadline_ms: None,
    }
}
