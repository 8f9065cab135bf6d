//! Brings in what the configuration names and what lies in the watched directory, and keeps it as it is there: new files are
//! read once they are quiet, a directory that goes takes its adapter with it. The kernel says when something changes; a slow
//! look of our own finds what it does not tell (network file systems, a queue that overflowed). One task, started by
//! [`crate::bind`]; adapters are taken in one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use shoal_common::ambient;
use shoal_common::config::{AdapterConfig, Pinning};
use shoal_common::ids::Name;
use tokio::sync::Notify;

use super::change::Order;
use super::entry::{Origin, Source};
use super::intake::Payload;
use super::keep::Models;
use super::quiet::Quiet;
use super::registry::Registry;
use super::scan::{self, Scan};
use super::stamp::Stamp;
use crate::fleet::FleetView;

/// Files that nobody has touched for this long are taken for whole.
const QUIET: Duration = Duration::from_secs(1);

/// Between two looks while nothing is told.
const POLL: Duration = Duration::from_secs(30);

/// Events come in bursts: a look waits this long for the rest of one.
const BURST: Duration = Duration::from_millis(200);

/// Where adapters come from by themselves.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `[[adapter]]`
    pub configured: Vec<AdapterConfig>,
    /// `router.adapters`
    pub directory: Option<PathBuf>,
}

/// A place where an adapter's files are.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    order: Order,
}

/// When to look.
#[derive(Clone, Copy, Debug)]
struct Rhythm {
    quiet: Duration,
    poll: Duration,
}

/// Watches until its task is dropped.
pub async fn watch(registry: Registry, view: FleetView, sources: Sources) {
    run(Watcher::new(registry, sources, Rhythm { quiet: QUIET, poll: POLL }), view).await
}

async fn run(mut watcher: Watcher, view: FleetView) {
    let (registry, mut models) = (watcher.registry.clone(), Models::new(view));
    let nudge = Arc::new(Notify::new());
    let _notifier = watcher.notifier(&nudge);
    let mut verifying = tokio::spawn(async move { registry.verify().await });
    let mut verified = false;
    loop {
        let wait = watcher.turn(ambient::now()).await;
        tokio::select! {
            biased;
            () = nudge.notified() => tokio::time::sleep(BURST).await,
            () = models.changed() => watcher.retry(),
            lost = &mut verifying, if !verified => {
                verified = true;
                watcher.read_again(&lost.unwrap_or_default());
            }
            () = tokio::time::sleep(wait) => watcher.retry(),
        }
    }
}

/// What is known of the places.
#[derive(Debug)]
struct Watcher {
    registry: Registry,
    sources: Sources,
    rhythm: Rhythm,
    quiet: Quiet,
    /// Adapters that may be taken later as they are.
    waiting: BTreeSet<Name>,
    announced: BTreeSet<Name>,
    /// Names that were complained of.
    strange: BTreeSet<String>,
    /// Why the directory could not be read, when that was last tried.
    unreadable: Option<std::io::ErrorKind>,
}

impl Watcher {
    fn new(registry: Registry, sources: Sources, rhythm: Rhythm) -> Self {
        Self {
            registry,
            sources,
            rhythm,
            quiet: Quiet::new(rhythm.quiet),
            waiting: BTreeSet::new(),
            announced: BTreeSet::new(),
            strange: BTreeSet::new(),
            unreadable: None,
        }
    }

    /// Asks the kernel to `nudge` when something changes. Where it cannot, the slow look must do.
    fn notifier(&self, nudge: &Arc<Notify>) -> Option<RecommendedWatcher> {
        let nudge = Arc::clone(nudge);
        let told = move |event: notify::Result<notify::Event>| {
            // Reading is an access, too, and would nudge for ever.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                nudge.notify_one();
            }
        };
        let slow = |error: notify::Error, path: Option<&Path>| {
            tracing::warn!(%error, ?path, seconds = self.rhythm.poll.as_secs(), "adapters' files are looked at by the clock only");
        };
        let mut notifier = notify::recommended_watcher(told).map_err(|error| slow(error, None)).ok()?;
        let directory = self.sources.directory.iter().map(|path| (path, RecursiveMode::Recursive));
        let configured = self.sources.configured.iter().map(|adapter| (&adapter.path, RecursiveMode::NonRecursive));
        for (path, mode) in directory.chain(configured) {
            if let Err(error) = notifier.watch(path, mode) {
                slow(error, Some(path));
            }
        }
        Some(notifier)
    }

    /// Looks everywhere once and takes in what is quiet; returns when to look again.
    async fn turn(&mut self, now: Instant) -> Duration {
        let places = self.places().await;
        self.remove_others(&places).await;
        for (name, place) in &places {
            if self.announced.insert(name.clone()) {
                // Why not is told when its files are looked at.
                let _ = self.registry.announce(&place.order);
            }
        }
        let stamps = stamps(&places).await;
        let look = self.quiet.look(&stamps, now);
        for name in &look.ready {
            if let (Some(place), Some(stamp)) = (places.get(name), stamps.get(name)) {
                self.take_in(place, stamp).await;
            }
        }
        if look.restless.is_empty() { self.rhythm.poll } else { self.rhythm.quiet }
    }

    /// Looks again at what could not be judged, or stored, before.
    fn retry(&mut self) {
        self.waiting.iter().for_each(|name| self.quiet.again(name));
    }

    /// Reads `names` again though their files are as they were.
    fn read_again(&mut self, names: &[Name]) {
        names.iter().for_each(|name| self.quiet.again(name));
    }

    /// What lies in the directory; nothing where it cannot be read.
    async fn scan(&mut self) -> Scan {
        let Some(directory) = self.sources.directory.clone() else { return Scan::default() };
        let scanned = ambient::off_runtime(move || scan::scan(&directory)).await;
        let error = match scanned.map_err(std::io::Error::other).flatten() {
            Ok(scan) => {
                self.unreadable = None;
                return scan;
            }
            Err(error) => error,
        };
        if self.unreadable.replace(error.kind()) != Some(error.kind()) {
            tracing::error!(%error, directory = ?self.sources.directory, "the adapters' directory cannot be read");
        }
        Scan::default()
    }

    /// Every place, by name.
    async fn places(&mut self) -> BTreeMap<Name, Place> {
        let scan = self.scan().await;
        for name in &scan.strange {
            if self.strange.insert(name.clone()) {
                tracing::warn!(name, "a directory's name is none for an adapter");
            }
        }
        let found = scan.found.into_iter().map(|(name, path)| {
            let origin = Origin { source: Source::Directory, pinning: Pinning::Evictable, stamp: None };
            (name.clone(), Place { path, order: Order { name, origin, base: None } })
        });
        let configured = self.sources.configured.iter().map(|adapter| {
            let origin = Origin { source: Source::Config, pinning: adapter.pinning, stamp: None };
            let order = Order { name: adapter.name.clone(), origin, base: adapter.model.clone() };
            (adapter.name.clone(), Place { path: adapter.path.clone(), order })
        });
        // A name that both have is the configuration's.
        found.chain(configured).collect()
    }

    /// Removes the adapters of these sources that are nowhere any more. What was in a directory that cannot be read is kept.
    async fn remove_others(&mut self, places: &BTreeMap<Name, Place>) {
        let readable = self.unreadable.is_none().then_some(Source::Directory);
        for source in readable.into_iter().chain([Source::Config]) {
            for name in self.registry.names_of(source) {
                if places.get(&name).is_some_and(|place| place.order.origin.source >= source) {
                    continue;
                }
                self.announced.remove(&name);
                self.waiting.remove(&name);
                if let Err(error) = self.registry.remove(name.clone(), source).await {
                    tracing::error!(%error, adapter = %name, "an adapter could not be removed");
                }
            }
        }
    }

    /// Registers what lies at `place`, or notes why not.
    async fn take_in(&mut self, place: &Place, stamp: &Stamp) {
        let name = &place.order.name;
        self.quiet.done(name);
        if self.is_known(place, stamp) {
            return;
        }
        let mut order = place.order.clone();
        order.origin.stamp = Some(stamp.clone());
        match self.registry.register(order, Payload::Directory(place.path.clone())).await {
            Ok(_) => drop(self.waiting.remove(name)),
            Err(error) => {
                self.registry.note(&place.order, &error);
                let waits = error.will_pass();
                if !waits {
                    tracing::warn!(%error, adapter = %name, path = %place.path.display(), "an adapter cannot be used");
                    self.waiting.remove(name);
                } else if self.waiting.insert(name.clone()) {
                    tracing::info!(%error, adapter = %name, "an adapter waits");
                }
            }
        }
    }

    /// Whether what the name points at was read from these very files, for the same model.
    fn is_known(&self, place: &Place, stamp: &Stamp) -> bool {
        let Order { name, origin, base } = &place.order;
        self.registry.stamp(name, origin.source).as_ref() == Some(stamp)
            && base.as_ref().is_none_or(|base| self.registry.base_of(name).as_ref() == Some(base))
    }
}

async fn stamps(places: &BTreeMap<Name, Place>) -> BTreeMap<Name, Stamp> {
    let paths: Vec<(Name, PathBuf)> = places.iter().map(|(name, place)| (name.clone(), place.path.clone())).collect();
    let look = move || paths.into_iter().map(|(name, path)| (name, Stamp::of(&path))).collect();
    ambient::off_runtime(look).await.unwrap_or_default()
}

#[cfg(test)]
mod tests;
