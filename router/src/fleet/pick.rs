//! Chooses the replica for a group: a pure function of a snapshot, so that any router makes the same choice from the same
//! state. Policies swap behind [`Pick`].

use std::fmt;
use std::sync::Arc;

use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::Name;

use super::{Replica, Seat, Snapshot};

/// What a group needs of a replica.
#[derive(Clone, Debug)]
pub struct Need<'a> {
    /// The model's name.
    pub model: &'a Name,
    /// Answers must come under this fingerprint.
    pub fingerprint: Fingerprint,
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
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnlyOne => "only_one",
            Self::LeastQueued => "least_queued",
        })
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

/// A routing policy.
pub trait Pick: Send + Sync + fmt::Debug {
    /// A replica for the group; `None` where no replica fits.
    fn pick(&self, snapshot: &Snapshot, need: &Need<'_>) -> Option<Choice>;
}

/// Fewest queued tokens first, then worker name, so that equal states give equal choices.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastQueued;

impl Pick for LeastQueued {
    fn pick(&self, snapshot: &Snapshot, need: &Need<'_>) -> Option<Choice> {
        let mut fitting = snapshot.replicas.iter().filter(|replica| fits(replica, need)).peekable();
        let first = fitting.next()?;
        let why = if fitting.peek().is_none() { Why::OnlyOne } else { Why::LeastQueued };
        let least = fitting.fold(
            first,
            |best, replica| {
                if replica.queued_tokens() < best.queued_tokens() { replica } else { best }
            },
        );
        Some(Choice { replica: Arc::clone(least), why })
    }
}

fn fits(replica: &Replica, need: &Need<'_>) -> bool {
    replica.model.card.name == *need.model
        && replica.model.card.fingerprint == need.fingerprint
        && replica.takes_groups()
        && !need.excluded.contains(&replica.seat)
}
