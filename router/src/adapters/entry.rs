//! One name of the [`book`](super::book): who registered it, what it points at, why its newest files are not that, and what
//! all this means to a request. Pure.

use serde::{Deserialize, Serialize};
use shoal_common::adapter::Geometry;
use shoal_common::config::Pinning;
use shoal_common::ids::{Generation, Name};

use super::stamp::Stamp;

/// Why an adapter is not usable yet, before anybody looked at it.
pub(super) const UNREAD: &str = "its files are still to be read";

/// Why an adapter is not usable until it has been looked at again.
const MODEL_CHANGED: &str = "it is checked again, as its base model has other widths than when it was registered";

/// The widths of a base model, where a worker has told them.
pub type Widths<'a> = &'a dyn Fn(&Name) -> Option<Geometry>;

/// Who registered a name. A name has one owner; a later one in this order may take it from an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A request.
    Api,
    /// A directory within `router.adapters`.
    Directory,
    /// An `[[adapter]]` of the configuration.
    Config,
}

impl Source {
    /// As it is told to clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Directory => "directory",
            Self::Config => "config",
        }
    }
}

/// Where an adapter's files came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who registered it.
    pub source: Source,
    /// Whether workers must keep it.
    pub pinning: Pinning,
    /// What its files looked like when they were read; absent for an upload.
    pub stamp: Option<Stamp>,
}

/// One content of an adapter that passed the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its identity.
    pub generation: Generation,
    /// The model it belongs to.
    pub base: Name,
    /// The widths of that model when it was checked.
    pub geometry: Geometry,
    /// Largest rank of an update.
    pub rank: u32,
    /// Bytes of its bundle.
    pub bytes: u64,
    /// Unix seconds at which the name was pointed at it.
    pub created: u64,
}

/// Whether requests may have an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// They may.
    Ready,
    /// Not yet: it waits for its base model, or for its turn.
    Pending,
    /// It cannot be used as it is.
    Quarantined,
}

impl State {
    /// All, for what counts by state.
    pub const ALL: [Self; 3] = [Self::Ready, Self::Pending, Self::Quarantined];

    /// As it is told to clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Pending => "pending",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Why the newest files of an adapter are not what its name points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// They will be looked at again by themselves.
    Waiting(String),
    /// They were looked at and will be again when they change.
    Refused(String),
}

/// An adapter as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its name.
    pub name: Name,
    /// Who registered it.
    pub source: Source,
    /// Whether workers must keep it.
    pub pinning: Pinning,
    /// Its base model, where that is known.
    pub base: Option<Name>,
    /// Whether requests may have it.
    pub state: State,
    /// Why not; for one that is ready, why its newest files are not what is served.
    pub reason: Option<String>,
    /// What the name points at.
    pub version: Option<Version>,
    /// What it pointed at before.
    pub previous: Option<Generation>,
}

/// A name's place in the book.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) origin: Origin,
    pub(super) base: Option<Name>,
    pub(super) version: Option<Version>,
    pub(super) previous: Option<Generation>,
    pub(super) trouble: Option<Trouble>,
    /// Widths that `version` was found not to fit after its model changed.
    pub(super) misfit: Option<(Geometry, String)>,
}

impl Entry {
    /// A name whose files nobody has looked at yet.
    pub(super) fn unread(origin: &Origin, base: Option<Name>) -> Self {
        let origin = Origin { stamp: None, ..origin.clone() };
        Self { origin, base, version: None, previous: None, trouble: None, misfit: None }
    }

    /// Whether requests may have it, and why not.
    pub(super) fn state(&self, widths: Widths<'_>) -> (State, Option<String>) {
        let trouble = match &self.trouble {
            None => None,
            Some(Trouble::Waiting(reason) | Trouble::Refused(reason)) => Some(reason.clone()),
        };
        let Some(version) = &self.version else {
            return match &self.trouble {
                Some(Trouble::Refused(_)) => (State::Quarantined, trouble),
                _ => (State::Pending, trouble.or_else(|| Some(UNREAD.to_owned()))),
            };
        };
        match (widths(&version.base), &self.misfit) {
            (Some(now), Some((held, reason))) if now == *held => (State::Quarantined, Some(reason.clone())),
            (Some(now), _) if now != version.geometry => (State::Pending, Some(MODEL_CHANGED.to_owned())),
            _ => (State::Ready, trouble),
        }
    }

    /// The entry as it is listed.
    pub(super) fn listing(&self, name: &Name, widths: Widths<'_>) -> Listing {
        let (state, reason) = self.state(widths);
        Listing {
            name: name.clone(),
            source: self.origin.source,
            pinning: self.origin.pinning,
            base: self.base.clone(),
            state,
            reason,
            version: self.version.clone(),
            previous: self.previous,
        }
    }
}
