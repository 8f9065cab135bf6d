//! The routers, the loader and the bench that the store's tests are played on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use shoal_common::ids::{Digest, Generation};
use shoal_common::wire::hello::{AdapterState, AdapterTier};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::Semaphore;

use crate::adapters::disk::{Disk, Quota};
use crate::adapters::loader::{Loaded, Loader, Unusable};
use crate::adapters::store::{AdapterStore, News, Via};
use crate::adapters::{Adapter, Blob, FetchError, Limits, Opening, Pace, Source};

pub(super) const ROOMY: Limits = Limits { slots: 8, bytes: 1 << 20, disk_bytes: 1 << 20 };

/// A bundle that can be loaded, and takes as much memory as it has bytes.
pub(super) fn bundle(name: &str) -> Vec<u8> {
    format!("good {name}").into_bytes()
}

pub(super) fn generation(bundle: &[u8]) -> Generation {
    Generation(Digest::of(bundle))
}

/// How a router sends a bundle.
#[derive(Clone, Debug)]
pub(super) enum Sends {
    Whole,
    /// With one byte changed.
    Corrupt,
    /// Bytes that it did not announce, or fewer than it did.
    Length(u64),
    /// The connection breaks within the content.
    Breaks,
    /// Not before a permit is there.
    Gated(Arc<Semaphore>),
}

/// A router.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    bundles: Mutex<BTreeMap<Generation, (Vec<u8>, Sends)>>,
    /// What was asked for, in order.
    asked: Mutex<Vec<Generation>>,
}

impl Shelf {
    pub(super) fn put(&self, bundle: &[u8], sends: Sends) -> Generation {
        let at = generation(bundle);
        self.bundles.lock().unwrap().insert(at, (bundle.to_vec(), sends));
        at
    }

    pub(super) fn asked(&self) -> Vec<Generation> {
        self.asked.lock().unwrap().clone()
    }

    async fn send(&self, at: Generation) -> Result<Blob, FetchError> {
        self.asked.lock().unwrap().push(at);
        let found = self.bundles.lock().unwrap().get(&at).cloned();
        let (mut bytes, sends) = found.ok_or(FetchError::NotFound)?;
        let mut len = bytes.len() as u64;
        let mut end: Box<dyn AsyncRead + Send + Unpin> = Box::new(tokio::io::empty());
        match sends {
            Sends::Whole => {}
            Sends::Corrupt => bytes[3] ^= 1,
            Sends::Length(announced) => len = announced,
            Sends::Breaks => {
                bytes.truncate(2);
                end = Box::new(Broken);
            }
            Sends::Gated(gate) => gate.acquire().await.unwrap().forget(),
        }
        Ok(Blob { len, content: Box::new(io::Cursor::new(bytes).chain(end)), pace: Pace::Patient, permit: None })
    }
}

impl Source for Shelf {
    fn open(&self, at: Generation) -> Opening<'_> {
        Box::pin(self.send(at))
    }
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

/// Loads what begins with "good".
#[derive(Debug, Default)]
pub(super) struct Fake;

impl Loader for Fake {
    fn load(&self, at: Generation, bundle: &[u8]) -> Result<Loaded, Unusable> {
        assert_eq!(at, generation(bundle), "the store has checked the hash");
        assert!(!bundle.starts_with(b"panics"), "on order");
        match bundle.strip_prefix(b"good ") {
            Some(_) => Ok(Loaded { adapter: Arc::new(Adapter::empty(at)), bytes: bundle.len() as u64, rank: 4 }),
            None => Err("its rank\nis wrong".into()),
        }
    }
}

/// A store, one router, and a directory.
pub(super) struct Bench {
    pub(super) directory: TempDir,
    pub(super) quota: Quota,
    pub(super) store: AdapterStore,
    pub(super) shelf: Arc<Shelf>,
    pub(super) via: Arc<Via>,
    news: News,
    told: BTreeMap<Generation, AdapterState>,
}

impl Bench {
    pub(super) async fn new(limits: Limits) -> Self {
        Self::with(limits, Quota::default()).await
    }

    pub(super) async fn with(limits: Limits, quota: Quota) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Self::open(&directory, limits, &quota).await;
        let shelf: Arc<Shelf> = Arc::default();
        let via = Arc::new(store.via(shelf.clone()));
        via.offer();
        let news = store.news();
        Self { directory, quota, store, shelf, via, news, told: BTreeMap::new() }
    }

    async fn open(directory: &TempDir, limits: Limits, quota: &Quota) -> AdapterStore {
        let disk = Disk::new(directory.path().to_owned(), quota.clone());
        AdapterStore::over(limits, disk, Arc::new(Fake)).await
    }

    /// The worker ends and comes back to its directory.
    pub(super) async fn restart(&mut self, limits: Limits) {
        self.store = Self::open(&self.directory, limits, &self.quota).await;
        self.via = Arc::new(self.store.via(self.shelf.clone()));
        self.via.offer();
        (self.news, self.told) = (self.store.news(), BTreeMap::new());
    }

    /// Another router.
    pub(super) fn router(&self) -> (Arc<Shelf>, Via) {
        let shelf: Arc<Shelf> = Arc::default();
        let via = self.store.via(shelf.clone());
        via.offer();
        (shelf, via)
    }

    pub(super) fn files(&self) -> BTreeSet<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(self.directory.path()).unwrap().map(name).collect()
    }

    pub(super) fn file(&self, at: Generation) -> std::path::PathBuf {
        Path::new(self.directory.path()).join(format!("{at}.adapter"))
    }

    /// What the router knows of it.
    pub(super) fn told(&mut self, at: Generation) -> Option<AdapterState> {
        for state in self.news.take() {
            match state.tier {
                AdapterTier::Gone => self.told.remove(&state.generation),
                _ => self.told.insert(state.generation, state),
            };
        }
        self.told.get(&at).cloned()
    }

    /// Waits until the router knows it to be there, or to be gone.
    pub(super) async fn told_in(&mut self, at: Generation, tier: AdapterTier) -> Option<AdapterState> {
        loop {
            let state = self.told(at);
            if state.as_ref().map_or(AdapterTier::Gone, |state| state.tier) == tier {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A group that waits for its adapter, from the moment on that it does or has its answer already: what fetches may run on
    /// another thread.
    pub(super) async fn waiting(&self, at: Generation) -> tokio::task::JoinHandle<super::super::desk::Outcome> {
        let (via, before) = (self.via.clone(), self.store.waiting());
        let group = tokio::spawn(async move { via.acquire(at, None).await });
        while self.store.waiting() == before && !group.is_finished() {
            tokio::task::yield_now().await;
        }
        group
    }
}
