//! What overlapping steps are worth: a model in parts that take their time, over QUIC on this machine, first with one step under
//! way at a time and then with as many as its head finds right. Prints tokens a second, and which part of the time each
//! part was idle.
//!
//! `cargo run --release -p shoal-worker --example stages -- [streams] [milliseconds of the head] [of each stage]...`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use shoal_common::adapter::Geometry;
use shoal_common::block_hash::CacheSalt;
use shoal_common::config::Timers;
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Digest, Incarnation, LayerRange, Name, TokenId};
use shoal_common::pki::{Authority, Role};
use shoal_common::quic;
use shoal_common::shutdown::{self, Trigger};
use shoal_common::wire::hello::{ModelCard, WorkerState};
use shoal_common::wire::message::{BranchStart, EndRules, GroupFrame, PromptIds, Submit};
use shoal_worker::backend::{Backend, BackendError, BlockId, LogitsBuffer, Slice};
use shoal_worker::engine::sink::{ConnectionKey, Outgoing, Outlet, StreamKey, report_bound};
use shoal_worker::engine::{self, Drive, EngineHandle, GroupSink, Served};
use shoal_worker::scheduler::Bounds;
use shoal_worker::stage::replica::{Dial, HeadOffer};
use shoal_worker::stage::{Member, Pipeline, Replica, StageOffer, StageServer};
use tokio::sync::mpsc;

type Outcome<T> = Result<T, Box<dyn Error>>;

const VOCAB: usize = 100;
const WIDTH: usize = 576;
const BLOCKS: u32 = 4096;
const TOKENS: u32 = 100;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Layers that take their time and do nothing.
struct Sleeping(Duration);

impl Backend for Sleeping {
    fn kv_bytes_per_token(&self) -> u64 {
        1
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn reserve(&mut self, _blocks: usize) -> Result<(), BackendError> {
        Ok(())
    }

    fn forward(&mut self, slices: &[Slice<'_>], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        self.begin(slices, &mut [])?;
        self.finish(slices, &[], logits)
    }

    fn begin(&mut self, _slices: &[Slice<'_>], _rows: &mut [f32]) -> Result<(), BackendError> {
        thread::sleep(self.0);
        Ok(())
    }

    fn carry(&mut self, _slices: &[Slice<'_>], _rows: &mut [f32]) -> Result<(), BackendError> {
        thread::sleep(self.0);
        Ok(())
    }

    fn finish(&mut self, slices: &[Slice<'_>], _rows: &[f32], logits: &mut LogitsBuffer) -> Result<(), BackendError> {
        logits.reset(slices.iter().map(Slice::rows).sum(), VOCAB).fill(0.0);
        Ok(())
    }

    fn copy_block(&mut self, _from: BlockId, _to: BlockId) -> Result<(), BackendError> {
        Ok(())
    }
}

fn weights() -> Digest {
    Digest::of(b"sleeping")
}

fn card(layers: u32) -> Outcome<ModelCard> {
    let (tokenizer, numerics_class) = (Digest::of(b"none"), "none".to_owned());
    Ok(ModelCard {
        name: Name::new("sleeping")?,
        weights: weights(),
        tokenizer,
        fingerprint: Fingerprint::new(weights(), None, tokenizer, &numerics_class),
        numerics_class,
        layers: LayerRange { begin: 0, end: 1 },
        layer_count: layers,
        vocab_size: VOCAB as u32,
        context: 512,
        geometry: Geometry { layers, hidden: 576, intermediate: 1536, queries: 576, keys: 192 },
    })
}

/// A head with its stages; they end with the triggers.
struct Cluster {
    pipeline: Pipeline,
    replica: Arc<Replica>,
    _triggers: Vec<Trigger>,
}

/// The first of `takes` is the head's.
fn cluster(takes: &[Duration]) -> Outcome<Cluster> {
    let (authority, timers) = (Authority::create(&Name::new("reef")?)?, Timers::default());
    let (mut members, mut triggers) = (Vec::new(), Vec::new());
    for (at, takes) in (1..).zip(&takes[1..]) {
        let (worker, layers) = (Name::new(format!("stage-{at}"))?, LayerRange { begin: at, end: at + 1 });
        let identity = authority.issue(Role::Worker, &worker)?;
        let endpoint = quic::stage_endpoint(LOOPBACK, &identity, &timers)?;
        members.push(Member { worker: worker.clone(), address: endpoint.local_addr()?.to_string(), layers });
        let (trigger, closing) = shutdown::channel();
        let offer = StageOffer {
            worker,
            incarnation: Incarnation::draw(),
            weights: weights(),
            numerics_class: "none".to_owned(),
            layers,
            blocks: BLOCKS,
            width: WIDTH,
        };
        let server = StageServer::new(offer, Box::new(Sleeping(*takes)), closing)?;
        tokio::spawn(async move { server.run(endpoint, timers).await });
        triggers.push(trigger);
    }
    let identity = authority.issue(Role::Worker, &Name::new("head")?)?;
    let offer = HeadOffer {
        head: Name::new("head")?,
        incarnation: Incarnation::draw(),
        weights: weights(),
        numerics_class: "none".to_owned(),
        blocks: BLOCKS,
    };
    let replica = Arc::new(Replica::new(offer, members));
    let pipeline = Pipeline::new(Box::new(Sleeping(takes[0])), &replica);
    let (trigger, closing) = shutdown::channel();
    let (kept, dial) =
        (replica.clone(), Dial { endpoint: quic::worker_endpoint(&identity, &timers)?, identity, timers });
    tokio::spawn(async move { kept.keep(dial, closing).await });
    triggers.push(trigger);
    Ok(Cluster { pipeline, replica, _triggers: triggers })
}

fn submission(card: &ModelCard, stream: u32) -> Submit {
    Submit {
        fingerprint: card.fingerprint,
        adapter: None,
        prompt: PromptIds((0..4).map(|at| TokenId((stream + at) % VOCAB as u32)).collect()),
        branches: vec![BranchStart { choice: 0, emitted: PromptIds::default() }],
        sampling: Default::default(),
        end: EndRules { max_tokens: TOKENS, min_tokens: 0, stop_ids: Vec::new() },
        score_tokens: None,
        score_prompt: None,
        share_key: 0,
        cache_salt: CacheSalt(u64::from(stream)),
        deadline_ms: None,
    }
}

/// Runs all streams to their ends; tokens a second.
async fn run(engine: &EngineHandle, card: &ModelCard, streams: u32) -> f64 {
    let (reports, mut reported) = mpsc::channel(report_bound(streams as usize));
    let outlet = Outlet::new(ConnectionKey(0), reports);
    let began = Instant::now();
    let mut links = Vec::new();
    for stream in 0..streams {
        let link = engine.link();
        let sink = GroupSink::new(outlet.clone(), StreamKey(stream.into()), link.clone());
        engine.submit(submission(card, stream), None, sink);
        links.push(link);
    }
    let (mut tokens, mut open) = (0, streams);
    while open > 0 {
        let Some(report) = reported.recv().await else { break };
        for outgoing in report.0 {
            match outgoing {
                Outgoing::Frame { stream, frame, cost } => {
                    links[stream.0 as usize].sent(cost);
                    tokens += if let GroupFrame::Step(drawn) = &frame { drawn.len() } else { 0 };
                }
                Outgoing::End(_) => open -= 1,
            }
        }
    }
    tokens as f64 / began.elapsed().as_secs_f64()
}

async fn measure(takes: &[Duration], streams: u32, steps: Option<NonZero<usize>>) -> Outcome<()> {
    let Cluster { pipeline, replica, _triggers } = cluster(takes)?;
    let pipeline = steps.into_iter().fold(pipeline, Pipeline::at_depth);
    let card = card(takes.len() as u32)?;
    let bounds = Bounds {
        slots: streams as usize,
        blocks: BLOCKS as usize,
        groups: streams as usize,
        queued_tokens: u64::MAX,
        step_tokens: 512,
    };
    let (engine, thread) = engine::spawn(Drive::Thread, Served::from(&card), bounds, Box::new(pipeline))?;
    engine.status().wait_for(|status| status.state == WorkerState::Ready).await?;
    let board = replica.board(card.layers);
    let mut teller = board.teller(Instant::now());
    let began = Instant::now();
    let speed = run(&engine, &card, streams).await;
    let took = began.elapsed();
    let idle = |computing_us: u64| {
        let computing = Duration::from_micros(computing_us).as_secs_f64() / took.as_secs_f64();
        format!("{:.0} %", 100.0 - computing * 100.0)
    };
    let parts = teller.news(Instant::now()).unwrap_or_default();
    let parts: Vec<_> = parts.iter().map(|part| idle(part.computing_us)).collect();
    let steps = steps.map_or_else(|| "as many as measured".to_owned(), |steps| steps.to_string());
    println!("steps under way: {steps:<20} {speed:6.0} tokens/s, idle: {}", parts.join(", "));
    engine.stop();
    thread.join().await?;
    Ok(())
}

fn main() -> Outcome<()> {
    let numbers: Vec<u32> = std::env::args().skip(1).map(|number| number.parse()).collect::<Result<_, _>>()?;
    let (streams, takes) = numbers.split_first().map_or((12, &[10, 20, 15][..]), |(streams, takes)| (*streams, takes));
    let takes = if takes.len() < 2 { &[10, 20, 15][..] } else { takes };
    let takes: Vec<_> = takes.iter().map(|millis| Duration::from_millis(u64::from(*millis))).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    println!("{streams} streams of {TOKENS} tokens through parts of {takes:?} a step");
    runtime.block_on(async {
        measure(&takes, streams, Some(NonZero::<usize>::MIN)).await?;
        measure(&takes, streams, None).await
    })
}
