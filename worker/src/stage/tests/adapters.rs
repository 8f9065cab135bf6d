//! Adapters of a split model: each stage has its layers' part, or the group does not run.

use std::collections::BTreeMap;
use std::io::Cursor;

use safetensors::Dtype;
use shoal_common::adapter::{self, Bundle, Linear};
use shoal_common::ids::Generation;
use shoal_common::wire::hello::{AdapterTier, ModelCard};
use shoal_kernels::Precision;

use super::*;
use crate::adapters::recipe::Recipe;
use crate::adapters::{
    AcquireError, Adapter, Blob, FetchError, Lease, Limits, LoadFor, Opening, Pace, PeftLoader, Source, StoreSettings,
    Unavailable, Via,
};
use crate::backend::LogitsOf;
use crate::backend::bench::Part;
use crate::backend::contract::TINY_GEOMETRY;
use crate::engine::tests::bench::card;

/// What the cpu backend asks for.
const PRECISION: Precision = Precision::Fixed16;
const ROOMY: Limits = Limits { slots: 8, bytes: 64 << 20, disk_bytes: 64 << 20 };

/// A router that has some adapters.
#[derive(Debug)]
struct Shelf(BTreeMap<Generation, Vec<u8>>);

impl Source for Shelf {
    fn open(&self, generation: Generation) -> Opening<'_> {
        let found = self.0.get(&generation).cloned().ok_or(FetchError::NotFound);
        Box::pin(async {
            found.map(|bytes| Blob {
                len: bytes.len() as u64,
                content: Box::new(Cursor::new(bytes)),
                pace: Pace::Patient,
                permit: None,
            })
        })
    }
}

/// Three golden ones and two of other ranks and widths.
fn bundles() -> Vec<(Generation, Vec<u8>)> {
    let golden = |name: &str| {
        let (config, weights) = adapter::read_directory(&golden(&format!("tiny/{name}")), u64::MAX).unwrap();
        Bundle { config: &config, weights: &weights }.to_bytes().unwrap()
    };
    let made =
        |linears, rank, dtype| Recipe { geometry: TINY_GEOMETRY, linears, rank, dtype, seed: rank as u32 }.bundle();
    let all = [
        golden("tiny-qv"),
        golden("tiny-all"),
        golden("tiny-pattern"),
        made(&Linear::ALL, 17, Dtype::F16),
        made(&[Linear::K, Linear::Up, Linear::Down], 64, Dtype::BF16),
    ];
    all.into_iter().map(|bytes| (Generation(Digest::of(&bytes)), bytes)).collect()
}

fn load((generation, bundle): &(Generation, Vec<u8>), layers: LayerRange) -> Arc<Adapter> {
    let load_for = LoadFor { geometry: TINY_GEOMETRY, layers, precision: PRECISION };
    Arc::new(Adapter::load(*generation, bundle, &load_for).unwrap())
}

/// A store for some layers, with its directory.
fn store(cluster: &Cluster, layers: LayerRange, limits: Limits) -> (AdapterStore, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let settings = StoreSettings { limits, directory: directory.path().to_owned() };
    let loader = Arc::new(PeftLoader::new(&ModelCard { layers, layer_count: 4, ..card() }, PRECISION));
    (cluster.runtime.block_on(AdapterStore::open(settings, loader)), directory)
}

/// A head of some stages, whose adapters come from a shelf.
struct Scene {
    cluster: Cluster,
    head: Head,
    store: AdapterStore,
    via: Via,
    _stages: Vec<Stage>,
    _directories: Vec<tempfile::TempDir>,
}

impl Scene {
    /// The layers are cut at `cuts`; what stages may hold of adapters is `limits`.
    fn new(cuts: &[u32], limits: Limits) -> Self {
        let cluster = Cluster::new();
        let (head_store, directory) = store(&cluster, layers(0, cuts[0]), ROOMY);
        let (mut stages, mut directories) = (Vec::new(), vec![directory]);
        let ranges: Vec<_> = cuts.iter().zip(cuts[1..].iter().chain([&4])).map(|(a, b)| layers(*a, *b)).collect();
        let names = ["beta", "gamma", "delta"];
        for (worker, range) in names.into_iter().zip(&ranges) {
            let (store, directory) = store(&cluster, *range, limits);
            directories.push(directory);
            stages.push(cluster.stage_with(worker, LOOPBACK, *range, Some(store)));
        }
        let named = names.into_iter().zip(stages.iter().zip(&ranges));
        let members: Vec<_> = named.map(|(name, (stage, range))| (name, stage, *range)).collect();
        let head = cluster.head_with(layers(0, cuts[0]), &members, Some(&head_store));
        let via = head_store.via(Arc::new(Shelf(bundles().into_iter().collect())));
        via.offer();
        Self { cluster, head, store: head_store, via, _stages: stages, _directories: directories }
    }

    fn acquire(&self, generation: Generation) -> Result<Lease, AcquireError> {
        self.cluster.runtime.block_on(self.via.acquire(generation, None))
    }

    fn is_in_memory(&self, generation: Generation) -> bool {
        let states = self.store.news().take();
        states.iter().any(|state| state.generation == generation && state.tier == AdapterTier::Memory)
    }
}

/// All rows of each sequence, computed in steps that they share.
fn together(bench: &mut Bench, worn: &[Option<Arc<Adapter>>], tokens: &[TokenId]) -> Vec<Vec<Vec<f32>>> {
    let names: Vec<_> = worn.iter().map(|adapter| bench.tables.name_with(adapter.as_ref())).collect();
    let mut rows = vec![Vec::new(); names.len()];
    for (at, tokens) in tokens.chunks(7).enumerate() {
        let part = |name: &_| Part { sequence: *name, start: at * 7, tokens, logits: LogitsOf::All };
        bench.run(&names.iter().map(part).collect::<Vec<_>>());
        for (sequence, rows) in rows.iter_mut().enumerate() {
            rows.extend(bench.rows(sequence * tokens.len()..(sequence + 1) * tokens.len()));
        }
    }
    rows
}

#[test]
fn groups_with_adapters_on_stages_get_the_bits_of_the_whole() {
    let (bundles, tokens) = (bundles(), text(60));
    let mut whole = Bench::over(cpu(layers(0, 4)));
    for cuts in [&[2][..], &[1, 3]] {
        let mut scene = Scene::new(cuts, ROOMY);
        scene.head.together(None);
        let leases: Vec<_> = bundles.iter().map(|(generation, _)| scene.acquire(*generation).unwrap()).collect();
        assert!(leases.iter().all(|lease| !lease.is_lost() && scene.is_in_memory(lease.generation())));
        let worn: Vec<_> = [None].into_iter().chain(leases.iter().map(|lease| Some(lease.adapter()))).collect();
        let rows = together(&mut scene.head.bench, &worn, &tokens);
        for (at, rows) in rows.iter().enumerate() {
            let full = at.checked_sub(1).map(|at| load(&bundles[at], layers(0, 4)));
            assert_same_bits(&format!("{cuts:?}, {full:?}"), rows, &whole.alone_with(full.as_ref(), &tokens, 16));
        }
        let base = bits_of(&rows[0]);
        assert!(rows[1..].iter().all(|rows| bits_of(rows) != base), "an adapter changed nothing");
    }
}

fn bits_of(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    crate::backend::bench::bits(rows)
}

#[test]
fn an_adapter_that_a_stage_cannot_have_is_unavailable_and_the_others_are_not() {
    let bundles = bundles();
    let large = &bundles[4];
    let limits = Limits { bytes: load(large, layers(2, 4)).bytes() - 1, ..ROOMY };
    let mut scene = Scene::new(&[2], limits);
    scene.head.together(None);
    let unavailable = AcquireError::Unavailable(Unavailable::Stage);
    assert_eq!(scene.acquire(large.0).unwrap_err(), unavailable);
    assert!(!scene.is_in_memory(large.0), "a router would send groups for it");
    let small = scene.acquire(bundles[0].0).unwrap();
    let rows = together(&mut scene.head.bench, &[None, Some(small.adapter())], &text(30));
    let mut whole = Bench::over(cpu(layers(0, 4)));
    let full = load(&bundles[0], layers(0, 4));
    assert_same_bits("base", &rows[0], &whole.alone(&text(30), 16));
    assert_same_bits("small", &rows[1], &whole.alone_with(Some(&full), &text(30), 16));
}

#[test]
fn a_stage_holds_an_adapter_as_long_as_a_group_needs_it_and_no_longer() {
    let bundles = bundles();
    let mut scene = Scene::new(&[2], Limits { slots: 1, ..ROOMY });
    scene.head.together(None);
    for (generation, _) in [&bundles[0], &bundles[1], &bundles[0]] {
        let (lease, other) = (scene.acquire(*generation).unwrap(), scene.acquire(*generation).unwrap());
        drop(lease);
        let name = scene.head.bench.tables.name_with(Some(&other.adapter()));
        scene.head.bench.extend(name, 0, &text(20), 20);
    }
}

#[test]
fn an_adapter_is_not_ready_before_the_stages_are_there_and_lost_with_them() {
    let (generation, _) = bundles()[0];
    let mut scene = Scene::new(&[2], ROOMY);
    scene.head.together(None);
    let lease = scene.acquire(generation).unwrap();
    let stage = scene._stages.pop().unwrap();
    let address = stage.address;
    stage.stop(&scene.cluster);
    for _ in 0..1000 {
        if lease.is_lost() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(lease.is_lost());
    let late = scene.cluster.runtime.block_on(scene.via.acquire(generation, Some(Duration::from_millis(50))));
    assert_eq!(late.unwrap_err(), AcquireError::Unavailable(Unavailable::Stage));
    let (store, _directory) = store(&scene.cluster, layers(2, 4), ROOMY);
    let _stage = scene.cluster.stage_with("beta", address, layers(2, 4), Some(store));
    let again = scene.acquire(generation).unwrap();
    assert!(lease.is_lost() && !again.is_lost());
}
