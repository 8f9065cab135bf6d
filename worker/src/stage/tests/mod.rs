//! The promises of a split model, over real connections on loopback, with the tiny golden model on the cpu backend.

mod adapters;
mod overlap;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use shoal_common::config::{Quant, Timers};
use shoal_common::fingerprint::NUMERICS_VERSION;
use shoal_common::ids::{Digest, Incarnation, LayerRange, Name, TokenId};
use shoal_common::pki::{Authority, Role};
use shoal_common::quic;
use shoal_common::shutdown::{self, Trigger};
use shoal_common::wire::stage::StageHello;
use tokio::runtime::Runtime;

use super::replica::{Dial, HeadOffer};
use super::{Member, Pipeline, Replica, StageOffer, StageServer};
use crate::adapters::AdapterStore;
use crate::backend::bench::{Bench, assert_same_bits, golden};
use crate::backend::{Backend, KvEpoch};
use crate::cpu::Cpu;
use crate::weights::ModelFile;

const MODEL: &str = "tiny/gguf/tiny-q4_1.gguf";
/// Of the bench's pool.
const BLOCKS: u32 = 1024;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn layers(begin: u32, end: u32) -> LayerRange {
    LayerRange { begin, end }
}

fn cpu(layers: LayerRange) -> Box<dyn Backend> {
    let file = ModelFile::open(&golden(MODEL)).unwrap();
    let range = layers.begin as usize..layers.end as usize;
    Box::new(Cpu::load_stage(&file, range, NonZero::<usize>::MIN, Quant::Q8_0).unwrap())
}

fn weights() -> Digest {
    Digest::of(b"tiny")
}

/// A stage that runs, until it is dropped.
struct Stage {
    endpoint: Endpoint,
    address: SocketAddr,
    closer: Trigger,
    server: tokio::task::JoinHandle<()>,
}

impl Stage {
    fn stop(self, cluster: &Cluster) {
        self.closer.fire();
        self.endpoint.close(0_u32.into(), b"stopped");
        cluster.runtime.block_on(async {
            let _ = self.server.await;
            self.endpoint.wait_idle().await;
        });
    }
}

struct Cluster {
    runtime: Runtime,
    authority: Authority,
    timers: Timers,
}

impl Cluster {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let timers = Timers { idle: Duration::from_secs(30), connect: Duration::from_secs(5), ..Timers::default() };
        Self { runtime, authority: Authority::create(&name("reef")).unwrap(), timers }
    }

    fn stage(&self, worker: &str, address: SocketAddr, layers: LayerRange) -> Stage {
        self.stage_with(worker, address, layers, None)
    }

    fn stage_with(
        &self,
        worker: &str,
        address: SocketAddr,
        layers: LayerRange,
        adapters: Option<AdapterStore>,
    ) -> Stage {
        let identity = self.authority.issue(Role::Worker, &name(worker)).unwrap();
        let (closer, closing) = shutdown::channel();
        let offer = StageOffer {
            worker: name(worker),
            incarnation: Incarnation::draw(),
            weights: weights(),
            numerics_class: "int8".to_owned(),
            layers,
            blocks: BLOCKS,
            width: 64,
        };
        let server = StageServer::new(offer, cpu(layers), closing).unwrap();
        adapters.into_iter().for_each(|store| server.use_adapters(store));
        let _in = self.runtime.enter();
        // The socket of a stage that was stopped is closed with its last connection.
        let bind = || quic::stage_endpoint(address, &identity, &self.timers).ok();
        let endpoint = (0..500).find_map(|_| {
            bind().or_else(|| {
                std::thread::sleep(Duration::from_millis(10));
                None
            })
        });
        let endpoint = endpoint.expect("the address is free");
        let (address, timers) = (endpoint.local_addr().unwrap(), self.timers);
        let running = endpoint.clone();
        let server = self.runtime.spawn(async move { server.run(running, timers).await });
        Stage { endpoint, address, closer, server }
    }

    /// A head of the given members.
    fn head(&self, first: LayerRange, members: &[(&str, &Stage, LayerRange)]) -> Head {
        self.head_with(first, members, None)
    }

    fn head_with(
        &self,
        first: LayerRange,
        members: &[(&str, &Stage, LayerRange)],
        adapters: Option<&AdapterStore>,
    ) -> Head {
        let (pipeline, states, closer) = self.pipeline(first, members, adapters);
        Head { bench: Bench::over(Box::new(pipeline)), states, _closer: closer }
    }

    /// The backend of a head of the given members, which is kept until the trigger is dropped.
    fn pipeline(
        &self,
        first: LayerRange,
        members: &[(&str, &Stage, LayerRange)],
        adapters: Option<&AdapterStore>,
    ) -> (Pipeline, tokio::sync::watch::Receiver<Vec<super::StageState>>, Trigger) {
        let member = |(worker, stage, layers): &(&str, &Stage, LayerRange)| Member {
            worker: name(worker),
            address: stage.address.to_string(),
            layers: *layers,
        };
        let offer = HeadOffer {
            head: name("head"),
            incarnation: Incarnation::draw(),
            weights: weights(),
            numerics_class: "int8".to_owned(),
            blocks: BLOCKS,
        };
        let replica = Replica::new(offer, members.iter().map(member).collect());
        if let Some(store) = adapters {
            replica.lend(store.clone());
            store.require(Arc::new(replica.adapters()));
        }
        let pipeline = Pipeline::new(cpu(first), &replica);
        let identity = self.authority.issue(Role::Worker, &name("head")).unwrap();
        let _in = self.runtime.enter();
        let endpoint = quic::worker_endpoint(&identity, &self.timers).unwrap();
        let (closer, closing) = shutdown::channel();
        let (states, dial) = (replica.states(), Dial { endpoint, identity, timers: self.timers });
        self.runtime.spawn(async move { replica.keep(dial, closing).await });
        (pipeline, states, closer)
    }
}

struct Head {
    bench: Bench,
    states: tokio::sync::watch::Receiver<Vec<super::StageState>>,
    _closer: Trigger,
}

impl Head {
    /// Waits until all stages are there, in an epoch other than `before`.
    fn together(&mut self, before: Option<KvEpoch>) -> KvEpoch {
        let epoch = together(&mut *self.bench.backend, before);
        epoch.unwrap_or_else(|| panic!("the stages did not come together: {:?}", *self.states.borrow()))
    }
}

/// Waits for an epoch other than `before`.
fn together(backend: &mut dyn Backend, before: Option<KvEpoch>) -> Option<KvEpoch> {
    (0..2000).find_map(|_| {
        let epoch = backend.pin_epoch().filter(|epoch| Some(*epoch) != before);
        if epoch.is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        epoch
    })
}

fn text(length: u32) -> Vec<TokenId> {
    (0..length).map(|at| TokenId((at * 7919 + 13) % 512)).collect()
}

fn whole(tokens: &[TokenId]) -> Vec<Vec<f32>> {
    Bench::over(cpu(layers(0, 4))).alone(tokens, usize::MAX)
}

#[test]
fn stages_on_other_machines_give_the_bits_of_the_whole() {
    let (cluster, tokens) = (Cluster::new(), text(150));
    let expected = whole(&tokens);
    let beta = cluster.stage("beta", LOOPBACK, layers(2, 4));
    let mut two = cluster.head(layers(0, 2), &[("beta", &beta, layers(2, 4))]);
    two.together(None);
    assert_same_bits("two stages", &two.bench.alone(&tokens, 7), &expected);
    let gamma = cluster.stage("gamma", LOOPBACK, layers(1, 3));
    let delta = cluster.stage("delta", LOOPBACK, layers(3, 4));
    let mut three = cluster.head(layers(0, 1), &[("gamma", &gamma, layers(1, 3)), ("delta", &delta, layers(3, 4))]);
    three.together(None);
    assert_same_bits("three stages", &three.bench.alone(&tokens, 64), &expected);
    let root = three.bench.name();
    three.bench.extend(root, 0, &tokens[..70], 64);
    let fork = three.bench.fork(root, 70);
    assert_same_bits("a fork", &three.bench.extend(fork, 70, &tokens[70..], 1), &expected[70..]);
}

#[test]
fn a_stage_that_is_lost_ends_the_epoch_and_one_that_comes_back_begins_another() {
    let (cluster, tokens) = (Cluster::new(), text(60));
    let expected = whole(&tokens);
    let beta = cluster.stage("beta", LOOPBACK, layers(2, 4));
    let mut head = cluster.head(layers(0, 2), &[("beta", &beta, layers(2, 4))]);
    let first = head.together(None);
    assert_same_bits("before", &head.bench.alone(&tokens, 16), &expected);
    let address = beta.address;
    beta.stop(&cluster);
    let sequence = head.bench.name();
    head.bench.tables.grow(sequence, 16);
    let slice = head.bench.tables.slice(sequence, 0, &tokens[..16], crate::backend::LogitsOf::Last);
    let mut logits = crate::backend::LogitsBuffer::default();
    assert!(head.bench.backend.forward(&[slice], &mut logits).is_err(), "a step went through a stage that is gone");
    assert_eq!(head.bench.backend.pin_epoch(), None);
    let _beta = cluster.stage("beta", address, layers(2, 4));
    head.together(Some(first));
    assert_same_bits("after", &head.bench.alone(&tokens, 16), &expected);
}

#[test]
fn a_stage_of_another_cut_or_model_is_not_used_and_says_why() {
    let cluster = Cluster::new();
    let beta = cluster.stage("beta", LOOPBACK, layers(2, 4));
    let mut head = cluster.head(layers(0, 3), &[("beta", &beta, layers(3, 4))]);
    let refused = |states: &Vec<super::StageState>| states[0].reason.is_some();
    let mut states = head.states.clone();
    let state = cluster.runtime.block_on(async { states.wait_for(refused).await.unwrap()[0].clone() });
    assert_eq!(state.reason.unwrap(), "the stage refuses: the stage hosts the layers 2 to 4");
    assert_eq!(head.bench.backend.pin_epoch(), None);
}

impl Cluster {
    /// What a stage says to the worker `thief` that calls itself `head`, where it does not take it.
    fn refusal(&self, stage: &Stage, head: &str) -> Option<String> {
        self.refusal_of(stage, |hello| hello.head = name(head))
    }

    /// What it says to the worker `thief`, whose hello is changed by `change`.
    fn refusal_of(&self, stage: &Stage, change: impl FnOnce(&mut StageHello)) -> Option<String> {
        let thief = self.authority.issue(Role::Worker, &name("thief")).unwrap();
        let mut hello = StageHello {
            head: name("thief"),
            incarnation: Incarnation(1),
            epoch: 99,
            weights: weights(),
            numerics_class: "int8".to_owned(),
            numerics_version: NUMERICS_VERSION,
            layers: layers(2, 4),
            blocks: 1,
        };
        change(&mut hello);
        let opened = self.runtime.block_on(async {
            let endpoint = quic::worker_endpoint(&thief, &self.timers).unwrap();
            let to = (stage.address, &name("beta"));
            let connection = quic::dial_stage(&endpoint, to, &thief, &self.timers).await.unwrap();
            super::line::Line::open(connection, hello, Default::default()).await
        });
        opened.err().map(|error| error.to_string())
    }
}

#[test]
fn a_head_cannot_take_another_ones_name() {
    let cluster = Cluster::new();
    let beta = cluster.stage("beta", LOOPBACK, layers(2, 4));
    let refusal = cluster.refusal(&beta, "head");
    assert_eq!(refusal.as_deref(), Some("the stage refuses: the certificate is not for this head's name"));
}

#[test]
fn a_stage_serves_one_head_at_a_time() {
    let (cluster, tokens) = (Cluster::new(), text(40));
    let beta = cluster.stage("beta", LOOPBACK, layers(2, 4));
    let mut head = cluster.head(layers(0, 2), &[("beta", &beta, layers(2, 4))]);
    head.together(None);
    let refusal = cluster.refusal(&beta, "thief");
    assert_eq!(refusal.as_deref(), Some("the stage refuses: the stage serves head"));
    assert_same_bits("undisturbed", &head.bench.alone(&tokens, 16), &whole(&tokens));
}

#[test]
fn builds_that_compute_alike_share_a_model_and_others_do_not() {
    let cluster = Cluster::new();
    let beta = cluster.stage("beta", LOOPBACK, layers(2, 4));
    let has = format!("the stage refuses: the stage has the weights {} in int8, version {NUMERICS_VERSION}", weights());
    type Change = fn(&mut StageHello);
    let others: [Change; 3] = [
        |hello| hello.numerics_class = "f32".to_owned(),
        |hello| hello.numerics_version = NUMERICS_VERSION + 1,
        |hello| hello.weights = Digest::of(b"other"),
    ];
    for (at, change) in others.into_iter().enumerate() {
        assert_eq!(cluster.refusal_of(&beta, change).as_deref(), Some(has.as_str()), "{at}");
    }
    // Nothing that a head says of itself tells its build: what it computes alone decides.
    assert_eq!(cluster.refusal_of(&beta, |_| ()), None);
}
