//! The watcher over real directories. Its turns are made by hand, so that nothing depends on a clock; one test leaves it to
//! the kernel.

use std::fs;

use super::super::book::Found;
use super::super::entry::{Listing, State};
use super::*;
use crate::testing::{Fleet, adapter_settings, golden};

/// Whatever is there is quiet at once, and nothing is looked at by the clock.
const AT_ONCE: Rhythm = Rhythm { quiet: Duration::ZERO, poll: Duration::from_secs(3600) };

struct Scene {
    watched: tempfile::TempDir,
    data: tempfile::TempDir,
    fleet: Arc<Fleet>,
    registry: Registry,
    watcher: Watcher,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn open(data: &Path, fleet: &Arc<Fleet>) -> Registry {
    Registry::open(adapter_settings(data), Arc::<Fleet>::clone(fleet)).unwrap()
}

impl Scene {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(configured: Vec<AdapterConfig>) -> Self {
        let (watched, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let fleet = Arc::new(Fleet::default());
        fleet.join("tiny");
        let registry = open(data.path(), &fleet);
        let sources = Sources { configured, directory: Some(watched.path().to_owned()) };
        let watcher = Watcher::new(registry.clone(), sources, AT_ONCE);
        Self { watched, data, fleet, registry, watcher }
    }

    /// Copies a golden directory to `name`, both files or the first only.
    fn copy(&self, from: &str, name: &str, files: usize) {
        let to = self.watched.path().join(name);
        fs::create_dir_all(&to).unwrap();
        for file in &super::super::stamp::FILES[..files] {
            fs::copy(golden(from).join(file), to.join(file)).unwrap();
        }
    }

    async fn turn(&mut self) {
        self.watcher.turn(Instant::now()).await;
    }

    fn listing(&self, text: &str) -> Listing {
        self.registry.listing(&name(text)).unwrap()
    }

    fn rank(&self, text: &str) -> Option<u32> {
        self.listing(text).version.map(|version| version.rank)
    }
}

#[tokio::test]
async fn a_directory_is_an_adapter_for_as_long_as_it_is_there() {
    let mut scene = Scene::new();
    scene.copy("tiny/tiny-qv", "a", 2);
    scene.turn().await;
    assert_eq!((scene.listing("a").state, scene.rank("a")), (State::Ready, Some(4)));
    scene.copy("tiny/tiny-pattern", "a", 2);
    scene.turn().await;
    assert_eq!(scene.rank("a"), Some(6), "new files were not read");
    fs::remove_dir_all(scene.watched.path().join("a")).unwrap();
    scene.turn().await;
    assert!(matches!(scene.registry.find(&name("a")), Found::Unknown));
}

#[tokio::test]
async fn a_half_copied_directory_is_quarantined_until_the_rest_comes() {
    let mut scene = Scene::new();
    scene.copy("tiny/tiny-qv", "a", 1);
    scene.turn().await;
    let listing = scene.listing("a");
    assert_eq!(
        (listing.state, listing.reason.as_deref()),
        (State::Quarantined, Some("adapter_model.safetensors is missing"))
    );
    scene.copy("tiny/tiny-qv", "a", 2);
    scene.turn().await;
    assert_eq!(scene.listing("a").state, State::Ready);
}

#[tokio::test]
async fn a_directory_that_is_still_being_written_is_pending() {
    let mut scene = Scene::new();
    let (hour, now) = (Duration::from_secs(3600), Instant::now());
    scene.watcher.quiet = Quiet::new(hour);
    scene.copy("tiny/tiny-qv", "a", 2);
    assert_eq!(scene.watcher.turn(now).await, AT_ONCE.quiet, "nobody comes back for it");
    assert_eq!(scene.listing("a").state, State::Pending);
    assert_eq!(scene.watcher.turn(now + hour).await, AT_ONCE.poll);
    assert_eq!(scene.listing("a").state, State::Ready);
}

#[tokio::test]
async fn a_bad_adapter_is_quarantined_with_its_reason_and_holds_up_nobody() {
    let mut scene = Scene::new();
    scene.copy("bad-adapters/config-alpha-nan", "a-bad", 2);
    scene.copy("adapters/upper", "b-other-base", 2);
    scene.copy("tiny/tiny-qv", "c-good", 2);
    fs::create_dir(scene.watched.path().join("tiny")).unwrap();
    scene.turn().await;
    for (bad, word) in [("a-bad", "NaN"), ("b-other-base", "for another base model"), ("tiny", "name of a model")] {
        let listing = scene.listing(bad);
        assert_eq!(listing.state, State::Quarantined, "{bad}");
        assert!(listing.reason.as_ref().is_some_and(|reason| reason.contains(word)), "{listing:?}");
    }
    assert_eq!(scene.listing("c-good").state, State::Ready);
}

#[tokio::test]
async fn broken_files_over_good_ones_leave_the_good_ones_in_service() {
    let mut scene = Scene::new();
    scene.copy("tiny/tiny-qv", "a", 2);
    scene.turn().await;
    scene.copy("bad-adapters/config-alpha-nan", "a", 2);
    scene.turn().await;
    let listing = scene.listing("a");
    assert_eq!((listing.state, listing.version.map(|version| version.rank)), (State::Ready, Some(4)));
    assert!(listing.reason.is_some(), "nobody is told");
}

#[tokio::test]
async fn adapters_wait_for_a_worker_of_their_model() {
    let mut scene = Scene::new();
    scene.fleet.leave();
    scene.copy("tiny/tiny-qv", "a", 2);
    scene.turn().await;
    assert_eq!(scene.listing("a").state, State::Pending);
    scene.fleet.join("tiny");
    scene.watcher.retry();
    scene.turn().await;
    assert_eq!(scene.listing("a").state, State::Ready);
}

#[tokio::test]
async fn the_configuration_names_adapters_too_and_wins_a_name() {
    let of = |text: &str, path: &str| AdapterConfig {
        name: name(text),
        path: golden(path),
        model: Some(name("tiny")),
        pinning: Pinning::Pinned,
    };
    let mut scene = Scene::with(vec![of("a", "tiny/tiny-pattern"), of("gone", "tiny/none")]);
    scene.copy("tiny/tiny-qv", "a", 2);
    scene.turn().await;
    let listing = scene.listing("a");
    assert_eq!((listing.source, listing.pinning), (Source::Config, Pinning::Pinned));
    assert_eq!(listing.version.map(|version| version.rank), Some(6));
    assert_eq!(scene.listing("gone").state, State::Quarantined);
}

#[tokio::test]
async fn after_a_restart_unchanged_files_are_not_read_again_and_removed_ones_are_gone() {
    let mut scene = Scene::new();
    scene.copy("tiny/tiny-qv", "a", 2);
    scene.copy("tiny/tiny-all", "b", 2);
    scene.turn().await;
    let created = scene.listing("a").version.map(|version| version.created);
    let Scene { watched, data, fleet, registry, watcher } = scene;
    drop((registry, watcher));
    fs::remove_dir_all(watched.path().join("b")).unwrap();
    // Without a worker nothing can be checked: what is ready was not read again.
    fleet.leave();
    let registry = open(data.path(), &fleet);
    let sources = Sources { configured: Vec::new(), directory: Some(watched.path().to_owned()) };
    let watcher = Watcher::new(registry.clone(), sources, AT_ONCE);
    let mut scene = Scene { watched, data, fleet, registry, watcher };
    scene.turn().await;
    let listing = scene.listing("a");
    assert_eq!((listing.state, listing.reason), (State::Ready, None));
    assert_eq!(listing.version.map(|version| version.created), created);
    assert!(matches!(scene.registry.find(&name("b")), Found::Unknown));
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_for_a_while_takes_nothing_away() {
    let mut scene = Scene::new();
    scene.copy("tiny/tiny-qv", "a", 2);
    scene.turn().await;
    let (here, away) = (scene.watched.path().to_owned(), scene.data.path().join("away"));
    fs::rename(&here, &away).unwrap();
    let configured = AdapterConfig {
        name: name("c"),
        path: golden("tiny/tiny-all"),
        model: Some(name("tiny")),
        pinning: Pinning::Evictable,
    };
    scene.watcher.sources.configured.push(configured);
    scene.turn().await;
    assert_eq!(scene.listing("a").state, State::Ready);
    assert_eq!(scene.listing("c").state, State::Ready, "the configuration's own are held up");
    fs::rename(&away, &here).unwrap();
    scene.turn().await;
    assert_eq!(scene.listing("a").state, State::Ready);
}

#[tokio::test]
async fn the_kernel_tells_of_a_new_directory() {
    let Scene { watched, data: _data, fleet, registry, watcher } = Scene::new();
    let watching = tokio::spawn(run(watcher, fleet.view()));
    let to = watched.path().join("a");
    fs::create_dir(&to).unwrap();
    // By the clock it would be found in an hour.
    let mut at = 0;
    while !matches!(registry.find(&name("a")), Found::Ready(_)) {
        if let Some(file) = super::super::stamp::FILES.get(at) {
            fs::copy(golden("tiny/tiny-qv").join(file), to.join(file)).unwrap();
            at += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    watching.abort();
}
