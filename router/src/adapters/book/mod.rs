//! Which name means which content of an adapter. Pure: time and the models' widths come in as arguments, files are
//! [`disk`](super::disk)'s. Owned by the [`Registry`](super::registry::Registry) behind a lock that is never held over I/O.
//!
//! A name points at one [`Version`]; to re-point it is one assignment. A request takes a lease of the generation it found and
//! keeps that to its end: see [`shelf`](super::shelf).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use shoal_common::adapter::Geometry;
use shoal_common::config::Pinning;
use shoal_common::ids::{Generation, Name};

use super::entry::{Entry, Listing, Origin, Source, State, Trouble, UNREAD, Version, Widths};
use super::shelf::{Lease, Retired, Shelf};
use super::stamp::Stamp;

/// Generations at most that no name points at any more. Who re-points names faster than requests end has to wait.
const MAX_RETIRED: usize = 256;

/// An adapter as one request has it, whatever becomes of its name meanwhile.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The name.
    pub name: Name,
    /// Its base model.
    pub base: Name,
    /// What the name pointed at when the request came.
    pub generation: Generation,
    /// Keeps that.
    pub lease: Lease,
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.generation.0.short())
    }
}

/// What a name means to a request.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing.
    Unknown,
    /// An adapter that cannot be used yet.
    Pending {
        /// Its base model, where that is known.
        base: Option<Name>,
        /// Why not.
        reason: String,
    },
    /// An adapter that cannot be used as it is.
    Quarantined {
        /// Its base model, where that is known.
        base: Option<Name>,
        /// Why not.
        reason: String,
    },
    /// This one.
    Ready(Resolved),
}

/// Why a name cannot be pointed somewhere or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// Somebody else registered it.
    #[error("{}", owned(*.by))]
    Owned {
        /// Who.
        by: Source,
    },
    /// There is no such adapter.
    #[error("there is no adapter of this name")]
    Unknown,
    /// `limits.adapters` are registered.
    #[error("the server holds as many adapters as it may ({limit}); remove one first")]
    Full {
        /// How many.
        limit: usize,
    },
    /// Too many old generations are still in use.
    #[error("too many replaced adapters are still in use; try again in a moment")]
    Retiring,
}

fn owned(by: Source) -> &'static str {
    match by {
        Source::Api => "a request registered this adapter, and only a request changes it",
        Source::Directory => "this adapter comes from the watched directory; change it there",
        Source::Config => "this adapter comes from the server's configuration; change it there",
    }
}

/// The book.
#[derive(Debug)]
pub struct Book {
    entries: BTreeMap<Name, Entry>,
    shelf: Shelf,
    limit: usize,
}

impl Book {
    /// An empty one of `limit` names at most.
    pub fn new(limit: usize, grace: Duration) -> Self {
        Self { entries: BTreeMap::new(), shelf: Shelf::new(grace), limit }
    }

    /// Whether `source` may point `name` at something.
    pub fn claim(&self, name: &Name, source: Source) -> Result<(), BookError> {
        match self.entries.get(name) {
            Some(entry) if entry.origin.source > source => Err(BookError::Owned { by: entry.origin.source }),
            None if self.entries.len() >= self.limit => Err(BookError::Full { limit: self.limit }),
            _ if self.shelf.len() >= self.entries.len() + MAX_RETIRED => Err(BookError::Retiring),
            _ => Ok(()),
        }
    }

    /// Notes that `source` has files for `name`, which nobody has looked at yet. What the name points at stays.
    pub fn announce(&mut self, name: &Name, origin: &Origin, base: Option<Name>) -> Result<(), BookError> {
        self.claim(name, origin.source)?;
        match self.entries.get_mut(name) {
            Some(entry) if entry.origin.source == origin.source => {
                entry.origin.pinning = origin.pinning;
                entry.base = base.or_else(|| entry.base.take());
            }
            Some(entry) => {
                entry.origin = Origin { stamp: None, ..origin.clone() };
                entry.base = base;
            }
            None => drop(self.entries.insert(name.clone(), Entry::unread(origin, base))),
        }
        Ok(())
    }

    /// `version` as the next of `name`, and what would be its previous one. The same content once more is no next one.
    pub fn succession(&self, name: &Name, version: Version) -> (Version, Option<Generation>) {
        let entry = self.entries.get(name);
        let Some((entry, before)) = entry.and_then(|entry| Some((entry, entry.version.as_ref()?))) else {
            return (version, entry.and_then(|entry| entry.previous));
        };
        if before.generation == version.generation && before.base == version.base {
            (Version { created: before.created, ..version }, entry.previous)
        } else {
            (version, Some(before.generation))
        }
    }

    /// Points `name` at `version`. Whether it may was asked with [`Book::claim`].
    pub fn point(&mut self, name: &Name, origin: Origin, version: Version, previous: Option<Generation>) {
        self.shelf.keep(&version);
        let base = Some(version.base.clone());
        let entry = Entry { origin, base, version: Some(version), previous, trouble: None, misfit: None };
        self.entries.insert(name.clone(), entry);
    }

    /// Takes over what an earlier life of the router knew: a version, or why its bytes are lost.
    pub fn restore(
        &mut self,
        name: Name,
        origin: Origin,
        previous: Option<Generation>,
        known: Result<Version, String>,
    ) {
        let mut entry = Entry { previous, ..Entry::unread(&origin, None) };
        match known {
            Ok(version) => {
                self.shelf.keep(&version);
                entry.base = Some(version.base.clone());
                entry.version = Some(version);
                entry.origin = origin;
            }
            Err(reason) => entry.trouble = Some(Trouble::Refused(reason)),
        }
        self.entries.insert(name, entry);
    }

    /// Notes why the newest files of `name` are not used. What it points at stays.
    pub fn fail(&mut self, name: &Name, origin: &Origin, base: Option<Name>, trouble: Trouble) {
        if self.announce(name, origin, base).is_ok()
            && let Some(entry) = self.entries.get_mut(name)
        {
            entry.trouble = Some(trouble);
        }
    }

    /// Removes a name that `source` registered.
    pub fn remove(&mut self, name: &Name, source: Source) -> Result<(), BookError> {
        let entry = self.entries.get(name).ok_or(BookError::Unknown)?;
        if entry.origin.source != source {
            return Err(BookError::Owned { by: entry.origin.source });
        }
        self.entries.remove(name);
        Ok(())
    }

    /// What `name` means to a request that comes now.
    pub fn find(&self, name: &Name, widths: Widths<'_>) -> Found {
        let Some(entry) = self.entries.get(name) else { return Found::Unknown };
        let base = entry.base.clone();
        match (entry.state(widths), &entry.version) {
            ((State::Ready, _), Some(version)) => match self.shelf.lease(version.generation) {
                Some((lease, _)) => {
                    let (name, base, generation) = (name.clone(), version.base.clone(), version.generation);
                    Found::Ready(Resolved { name, base, generation, lease })
                }
                None => Found::Pending { base, reason: UNREAD.to_owned() },
            },
            ((State::Quarantined, reason), _) => Found::Quarantined { base, reason: reason.unwrap_or_default() },
            ((_, reason), _) => Found::Pending { base, reason: reason.unwrap_or_default() },
        }
    }

    /// The base model of an adapter, whatever its state.
    pub fn base_of(&self, name: &Name) -> Option<Name> {
        self.entries.get(name)?.base.clone()
    }

    /// All adapters, by name.
    pub fn list(&self, widths: Widths<'_>) -> Vec<Listing> {
        self.entries.iter().map(|(name, entry)| entry.listing(name, widths)).collect()
    }

    /// One adapter.
    pub fn listing(&self, name: &Name, widths: Widths<'_>) -> Option<Listing> {
        self.entries.get(name).map(|entry| entry.listing(name, widths))
    }

    /// The names that `source` registered.
    pub fn names_of(&self, source: Source) -> Vec<Name> {
        let of = self.entries.iter().filter(|(_, entry)| entry.origin.source == source);
        of.map(|(name, _)| name.clone()).collect()
    }

    /// Who has this name.
    pub fn owner(&self, name: &Name) -> Option<Source> {
        self.entries.get(name).map(|entry| entry.origin.source)
    }

    /// What the files behind `name` looked like when what it points at was read from them.
    pub fn stamp(&self, name: &Name, source: Source) -> Option<&Stamp> {
        let entry = self.entries.get(name).filter(|entry| entry.origin.source == source)?;
        entry.origin.stamp.as_ref().filter(|_| entry.version.is_some())
    }

    /// What of the adapters is here.
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// What workers must keep: base model and generation.
    pub fn pinned(&self) -> BTreeSet<(Name, Generation)> {
        let pinned = self.entries.values().filter(|entry| entry.origin.pinning == Pinning::Pinned);
        pinned.filter_map(|entry| entry.version.as_ref().map(|v| (v.base.clone(), v.generation))).collect()
    }

    /// Adapters whose base model has other widths than those they were last held against, and these widths.
    pub fn stale(&self, widths: Widths<'_>) -> Vec<(Name, Version, Geometry)> {
        let stale = |(name, entry): (&Name, &Entry)| {
            let version = entry.version.as_ref()?;
            let now = widths(&version.base).filter(|now| *now != version.geometry)?;
            let known = entry.misfit.as_ref().is_some_and(|(held, _)| *held == now);
            (!known).then(|| (name.clone(), version.clone(), now))
        };
        self.entries.iter().filter_map(stale).collect()
    }

    /// Notes whether an adapter that was [stale](Book::stale) fits the widths its model has now.
    pub fn held_against(&mut self, name: &Name, generation: Generation, now: Geometry, fits: Result<(), String>) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let Some(version) = entry.version.as_mut().filter(|version| version.generation == generation) else { return };
        match fits {
            Ok(()) => (version.geometry, entry.misfit) = (now, None),
            Err(reason) => entry.misfit = Some((now, reason)),
        }
    }

    /// Lets go of a generation whose bytes are broken; returns the names that pointed at it.
    pub fn lost(&mut self, generation: Generation, reason: &str) -> Vec<Name> {
        self.shelf.drop_now(generation);
        let mut names = Vec::new();
        for (name, entry) in &mut self.entries {
            if entry.version.as_ref().is_some_and(|version| version.generation == generation) {
                entry.version = None;
                entry.trouble = Some(Trouble::Refused(reason.to_owned()));
                names.push(name.clone());
            }
        }
        names
    }

    /// Lets go of the generations that nothing has needed for the grace.
    pub fn sweep(&mut self, now: Instant) -> Vec<Retired> {
        let named = self.named();
        self.shelf.sweep(&named, now)
    }

    fn named(&self) -> BTreeSet<Generation> {
        self.entries.values().filter_map(|entry| entry.version.as_ref().map(|version| version.generation)).collect()
    }
}

#[cfg(test)]
mod tests;
