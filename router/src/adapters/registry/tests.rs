//! The registry over a real disk, with the tiny model's adapters.

use std::fs;
use std::path::Path;

use shoal_common::adapter::Geometry;
use shoal_common::wire::hello::AdapterOrder;

use super::super::base::NoBase;
use super::super::book::BookError;
use super::super::intake::Unusable;
use super::*;
use crate::testing::{Fleet, Heard, adapter_settings, golden, order};

/// A registry in a directory of its own.
struct Scene {
    dir: tempfile::TempDir,
    fleet: Arc<Fleet>,
    heard: Arc<Heard>,
    registry: Registry,
}

fn open(dir: &Path, fleet: &Arc<Fleet>) -> Registry {
    Registry::open(adapter_settings(dir), Arc::<Fleet>::clone(fleet)).unwrap()
}

impl Scene {
    fn new() -> Self {
        let (dir, fleet) = (tempfile::tempdir().unwrap(), Arc::new(Fleet::default()));
        let registry = open(dir.path(), &fleet);
        let heard = Arc::new(Heard::default());
        registry.connect(Arc::<Heard>::clone(&heard));
        Self { dir, fleet, heard, registry }
    }

    /// With a worker of the tiny model.
    fn with_model() -> Self {
        let scene = Self::new();
        scene.fleet.join("tiny");
        scene
    }

    async fn register(&self, name: &str, directory: &str) -> Result<Listing, RegisterError> {
        self.registry.register(order(name, Source::Api), Payload::Directory(golden(directory))).await
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.dir.path().join("adapters/blobs")).unwrap().count()
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn ready(registry: &Registry, text: &str) -> super::super::book::Resolved {
    match registry.find(&name(text)) {
        Found::Ready(resolved) => resolved,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_registered_adapter_is_found_and_survives_a_restart() {
    let scene = Scene::with_model();
    let listing = scene.register("a", "tiny/tiny-qv").await.unwrap();
    let generation = ready(&scene.registry, "a").generation;
    assert_eq!(listing.version.as_ref().map(|version| (version.generation, version.rank)), Some((generation, 4)));
    assert_eq!(listing.base, Some(name("tiny")));
    let Scene { dir, fleet, registry, .. } = scene;
    drop(registry);
    let registry = open(dir.path(), &fleet);
    assert_eq!(ready(&registry, "a").generation, generation);
    assert!(registry.verify().await.is_empty());
}

#[tokio::test]
async fn a_bad_update_replaces_nothing() {
    let scene = Scene::with_model();
    scene.register("a", "tiny/tiny-qv").await.unwrap();
    let before = ready(&scene.registry, "a").generation;
    for bad in ["bad-adapters/config-alpha-nan", "adapters/json", "tiny/base"] {
        let error = scene.register("a", bad).await.unwrap_err();
        assert!(matches!(error, RegisterError::Unusable(_)), "{bad}: {error}");
        assert_eq!(ready(&scene.registry, "a").generation, before);
    }
    assert_eq!(scene.blobs(), 1);
    assert_eq!(fs::read_dir(scene.dir.path().join("adapters/incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_replaced_adapter_is_deleted_and_forgotten_after_its_last_request() {
    let scene = Scene::with_model();
    scene.register("a", "tiny/tiny-qv").await.unwrap();
    let request = ready(&scene.registry, "a");
    scene.register("a", "tiny/tiny-all").await.unwrap();
    let (start, long) = (Instant::now(), 2 * GRACE);
    scene.registry.sweep(start + long).await;
    assert!(scene.registry.blob(request.generation.0).is_some_and(|blob| blob.path.exists()), "a replay needs it");
    let old = request.generation;
    drop(request);
    scene.registry.sweep(start + 2 * long).await;
    assert!(scene.heard.orders().is_empty(), "there was no grace");
    scene.registry.sweep(start + 3 * long).await;
    assert_eq!(scene.heard.orders(), [(name("tiny"), AdapterOrder::Forget(old))]);
    assert!(scene.registry.blob(old.0).is_none());
    assert_eq!(scene.blobs(), 1);
}

#[tokio::test]
async fn a_removed_adapter_is_unknown_here_and_after_a_restart() {
    let scene = Scene::with_model();
    scene.register("a", "tiny/tiny-qv").await.unwrap();
    let error = scene.registry.remove(name("a"), Source::Directory).await.unwrap_err();
    assert!(matches!(error, RegisterError::Book(BookError::Owned { by: Source::Api })));
    scene.registry.remove(name("a"), Source::Api).await.unwrap();
    assert!(matches!(scene.registry.find(&name("a")), Found::Unknown));
    let again = scene.registry.remove(name("a"), Source::Api).await;
    assert!(matches!(again, Err(RegisterError::Book(BookError::Unknown))));
    let Scene { dir, fleet, registry, .. } = scene;
    drop(registry);
    assert!(open(dir.path(), &fleet).list().is_empty());
}

#[tokio::test]
async fn without_a_worker_of_the_base_model_nothing_is_judged() {
    let scene = Scene::new();
    let error = scene.register("a", "tiny/tiny-qv").await.unwrap_err();
    assert!(matches!(error, RegisterError::NoBase(NoBase::NoModels)) && error.will_pass(), "{error}");
    let named = Order { base: Some(name("tiny")), ..order("a", Source::Api) };
    let payload = || Payload::Directory(golden("tiny/tiny-qv"));
    let error = scene.registry.register(named.clone(), payload()).await.unwrap_err();
    assert!(matches!(error, RegisterError::Waiting { .. }) && error.will_pass(), "{error}");
    scene.fleet.join("other");
    let error = scene.registry.register(named.clone(), payload()).await.unwrap_err();
    assert!(matches!(error, RegisterError::UnknownBase { .. }), "{error}");
    scene.fleet.join("tiny");
    scene.registry.register(named, payload()).await.unwrap();
    let listing = scene.register("b", "tiny/tiny-qv").await.unwrap();
    assert_eq!(listing.base, Some(name("tiny")), "its configuration says what it was made for");
    scene.fleet.leave();
    scene.fleet.join("x");
    scene.fleet.join("y");
    let error = scene.register("c", "tiny/tiny-qv").await.unwrap_err();
    assert!(matches!(error, RegisterError::NoBase(NoBase::Unsaid { .. })), "two models: {error}");
}

#[tokio::test]
async fn an_adapter_is_not_called_like_a_model() {
    let scene = Scene::with_model();
    let error = scene.register("tiny", "tiny/tiny-qv").await.unwrap_err();
    assert!(matches!(error, RegisterError::NameOfModel), "{error}");
}

#[tokio::test]
async fn an_adapter_larger_than_the_limit_is_refused() {
    let scene = Scene::with_model();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    fs::write(dir.path().join("adapter_model.safetensors"), vec![0; (4 << 20) - 1]).unwrap();
    let error = scene.registry.register(order("a", Source::Api), Payload::Directory(dir.path().to_owned())).await;
    let error = error.unwrap_err();
    assert!(matches!(error, RegisterError::Unusable(Unusable::TooLarge { .. })), "{error}");
}

#[tokio::test]
async fn a_stored_adapter_that_rots_goes_out_of_service_and_heals_when_it_comes_again() {
    let scene = Scene::with_model();
    scene.register("a", "tiny/tiny-qv").await.unwrap();
    let blob = scene.registry.blob(ready(&scene.registry, "a").generation.0).unwrap().path;
    let mut bytes = fs::read(&blob).unwrap();
    bytes[5000] ^= 1;
    fs::write(&blob, bytes).unwrap();
    assert_eq!(scene.registry.verify().await, [name("a")]);
    assert!(matches!(scene.registry.find(&name("a")), Found::Quarantined { .. }));
    scene.register("a", "tiny/tiny-qv").await.unwrap();
    assert!(scene.registry.verify().await.is_empty());
    ready(&scene.registry, "a");
}

#[tokio::test]
async fn a_model_of_other_widths_has_its_adapters_checked_again() {
    let scene = Scene::with_model();
    scene.register("a", "tiny/tiny-qv").await.unwrap();
    scene.fleet.join_with("tiny", |card| card.geometry = Geometry { hidden: 128, ..card.geometry });
    assert!(matches!(scene.registry.find(&name("a")), Found::Pending { .. }));
    scene.registry.recheck().await;
    assert!(matches!(scene.registry.find(&name("a")), Found::Quarantined { .. }));
    // More layers leave those that the adapter changes as they were.
    scene.fleet.join_with("tiny", |card| card.geometry = Geometry { layers: 8, ..card.geometry });
    scene.registry.recheck().await;
    ready(&scene.registry, "a");
}

#[tokio::test]
async fn pins_are_ordered_and_move_with_their_names() {
    let scene = Scene::with_model();
    let mut order = order("a", Source::Config);
    order.origin.pinning = Pinning::Pinned;
    let put = |directory: &str| {
        let registration = scene.registry.register(order.clone(), Payload::Directory(golden(directory)));
        async { registration.await.unwrap().version.unwrap().generation }
    };
    let (first, second) = (put("tiny/tiny-qv").await, put("tiny/tiny-all").await);
    let orders = [AdapterOrder::Pin(first), AdapterOrder::Pin(second), AdapterOrder::Unpin(first)];
    assert_eq!(scene.heard.orders(), orders.map(|order| (name("tiny"), order)));
    // In its next life the router has heard of no worker when it reads what is pinned.
    let Scene { dir, fleet, registry, .. } = scene;
    drop(registry);
    let (registry, heard) = (open(dir.path(), &fleet), Arc::new(Heard::default()));
    registry.announce(&order).unwrap();
    registry.connect(Arc::<Heard>::clone(&heard));
    assert_eq!(heard.orders(), [(name("tiny"), AdapterOrder::Pin(second))]);
}
