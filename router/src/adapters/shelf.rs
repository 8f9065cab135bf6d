//! The generations whose bytes are on this router, and how long they stay. A generation that no name points at stays for as
//! long as a [`Lease`] of it is out, and for a grace after the last one: a worker that was told of it may still come for its
//! bytes. Part of the [`book`](super::book); pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_common::ids::{Generation, Name};

use super::entry::Version;

/// Keeps a generation's bytes on this router until dropped.
#[derive(Clone, Debug)]
pub struct Lease(#[expect(dead_code, reason = "what counts is how many there are")] Arc<Generation>);

/// A generation whose bytes can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Which.
    pub generation: Generation,
    /// The models whose workers may have it.
    pub bases: BTreeSet<Name>,
}

#[derive(Debug)]
struct Kept {
    lease: Arc<Generation>,
    bytes: u64,
    bases: BTreeSet<Name>,
    unused_since: Option<Instant>,
}

/// The shelf.
#[derive(Debug)]
pub struct Shelf {
    kept: BTreeMap<Generation, Kept>,
    grace: Duration,
}

impl Shelf {
    /// An empty one; `grace` is how long a generation outlives its last use.
    pub fn new(grace: Duration) -> Self {
        Self { kept: BTreeMap::new(), grace }
    }

    /// Puts a version's generation here, or notes that it is needed again.
    pub fn keep(&mut self, version: &Version) {
        let kept = self.kept.entry(version.generation).or_insert_with(|| Kept {
            lease: Arc::new(version.generation),
            bytes: version.bytes,
            bases: BTreeSet::new(),
            unused_since: None,
        });
        kept.bases.insert(version.base.clone());
        kept.unused_since = None;
    }

    /// A lease of a generation that is here, and its bytes.
    pub fn lease(&self, generation: Generation) -> Option<(Lease, u64)> {
        self.kept.get(&generation).map(|kept| (Lease(Arc::clone(&kept.lease)), kept.bytes))
    }

    /// Every generation that is here.
    pub fn generations(&self) -> Vec<Generation> {
        self.kept.keys().copied().collect()
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Lets go of a generation at once.
    pub fn drop_now(&mut self, generation: Generation) {
        self.kept.remove(&generation);
    }

    /// Lets go of those that are not `named` and that nobody has used for the grace.
    pub fn sweep(&mut self, named: &BTreeSet<Generation>, now: Instant) -> Vec<Retired> {
        let mut gone = Vec::new();
        for (generation, kept) in &mut self.kept {
            let used = named.contains(generation) || Arc::strong_count(&kept.lease) > 1;
            let since = *kept.unused_since.get_or_insert(now);
            if used {
                kept.unused_since = None;
            } else if now.saturating_duration_since(since) >= self.grace {
                gone.push(*generation);
            }
        }
        let retire = |generation| self.kept.remove(&generation).map(|kept| Retired { generation, bases: kept.bases });
        gone.into_iter().filter_map(retire).collect()
    }
}
