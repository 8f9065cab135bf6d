//! Chooses the replica for a group: a pure function of a snapshot, so that any router makes the same choice from the same
//! state. Policies swap behind [`Pick`]; requests use [`ByAdapter`].
//!
//! 1. [`fit`]: which replicas may serve the group at all, or why none does.
//! 2. [`rendezvous`]: in which order an adapter's replicas come.
//! 3. [`score`]: what each of them costs, in tokens.
//! 4. [`by_adapter`]: the choice among them; [`plain`]: simpler policies, to compare with.

pub mod by_adapter;
pub mod fit;
pub mod plain;
pub mod rendezvous;
pub mod score;
#[cfg(test)]
pub(crate) mod scripted;

use std::fmt;
use std::sync::Arc;

use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Generation, Name};

pub use by_adapter::ByAdapter;
pub use plain::{LeastQueued, NaiveAffinity};

use super::demand::Width;
use super::prefix::Overlaps;
use super::{Replica, Seat, Snapshot};

/// Whether the request's key may use the adapter, or the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// There are no keys: everybody may use everything.
    Everybody,
    /// The key may not.
    Denied,
}

/// An adapter that a group needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterNeed {
    /// Which.
    pub generation: Generation,
    /// Workers that its traffic is worth.
    pub width: Width,
}

/// What a group needs of a replica.
#[derive(Clone, Debug)]
pub struct Need<'a> {
    /// The model's name.
    pub model: &'a Name,
    /// Answers must come under this fingerprint.
    pub fingerprint: Fingerprint,
    /// Absent: the base model.
    pub adapter: Option<AdapterNeed>,
    /// Whether it may have it.
    pub access: Access,
    /// What replicas have computed of its prompt.
    pub overlaps: &'a Overlaps,
    /// Places that failed or refused this group already. A worker that was only out of reach comes back in another.
    pub excluded: &'a [Seat],
}

/// Why a replica was chosen: logged and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is the only one.
    OnlyOne,
    /// Fewest tokens wait there.
    LeastQueued,
    /// It is the first in the adapter's order.
    First,
    /// It has the beginning of the prompt, and would not have been chosen without.
    Prefix,
    /// It has the adapter in memory.
    Resident,
    /// It is loading the adapter.
    Loading,
    /// It has the adapter on disk.
    Disk,
    /// It must fetch the adapter, and so must the others.
    Fetch,
    /// It was out of reach, is back, and has what it had computed.
    Returned,
    /// It stands behind those that the adapter is worth, and they have longer to work than it has to load.
    Spill,
}

impl Why {
    /// As metrics and logs name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::OnlyOne => "only_one",
            Self::LeastQueued => "least_queued",
            Self::First => "first",
            Self::Prefix => "prefix",
            Self::Resident => "resident",
            Self::Loading => "loading",
            Self::Disk => "disk",
            Self::Fetch => "fetch",
            Self::Returned => "returned",
            Self::Spill => "spill",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A replica and the reason for it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Where the group goes.
    pub replica: Arc<Replica>,
    /// Why there.
    pub why: Why,
}

/// Why no replica can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    /// No replica that fits takes groups now.
    #[error("no worker takes groups of this model now")]
    Nobody,
    /// Replicas fit, but what is pinned on them leaves no room for the adapter.
    #[error("no worker has room for the adapter")]
    NoRoom,
    /// Every replica has found that the adapter cannot be used.
    #[error("no worker can use the adapter{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    AdapterRefused {
        /// What one of them said.
        reason: Option<String>,
    },
    /// The key may not use it.
    #[error("this key may not use it")]
    Forbidden,
}

/// A routing policy.
pub trait Pick: Send + Sync + fmt::Debug {
    /// A replica for the group. Equal arguments give equal choices.
    fn pick(&self, snapshot: &Snapshot, need: &Need<'_>) -> Result<Choice, Unroutable>;

    /// Replicas that should load the group's adapter now, before groups of it come to them: asked when it has become worth
    /// more workers. None for a policy that has no order of workers.
    fn ahead(&self, _snapshot: &Snapshot, _need: &Need<'_>) -> Vec<Arc<Replica>> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests;
