//! Other workers of this worker's zone: [`Peers`] are those whom it may fetch adapters from instead of the router, `source` does
//! it, and [`lend`] is the other side. A router names the peers, the configuration knows their addresses, TLS proves their
//! names; what they send is believed by its hash alone.
//!
//! A peer can cost a fetch some seconds and nothing else: each has little time, and one that failed is left alone for a while.

pub mod lend;
mod shunned;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Endpoint;
use shoal_common::ambient;
use shoal_common::config::Timers;
use shoal_common::ids::Name;
use shoal_common::pki::Identity;
use shoal_common::wire::blob::Nearer;

use self::shunned::Shunned;
use self::source::PeerSource;
use super::fetch::Source;

/// How long peers are waited for before the router is asked.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a peer to be found, dialled and to say that it has the adapter.
    pub answer: Duration,
    /// For each 512 KiB of it.
    pub chunk: Duration,
    /// For all peers that are asked for one adapter.
    pub all: Duration,
    /// For which a peer that failed is not asked again.
    pub shun: Duration,
}

impl Patience {
    /// A group waits for its adapter for 30 s at most, and half of that is left for the router. Within a zone an answer takes
    /// milliseconds, and 256 KiB a second is no better than any router far away.
    pub const DEFAULT: Self = Self {
        answer: Duration::from_secs(2),
        chunk: Duration::from_secs(2),
        all: Duration::from_secs(15),
        shun: Duration::from_secs(60),
    };
}

/// Whom a worker dials, and as whom.
#[derive(Debug)]
pub struct Dialling {
    /// From where.
    pub endpoint: Endpoint,
    /// The worker's own.
    pub identity: Identity,
    /// Of the connections.
    pub timers: Timers,
}

/// The peers of a worker.
#[derive(Debug)]
pub struct Peers {
    dialling: Dialling,
    /// `host:port` of each. Nobody else is dialled, whoever is named.
    addresses: BTreeMap<Name, String>,
    patience: Patience,
    shunned: Mutex<Shunned>,
}

impl Peers {
    /// Those at `addresses`.
    pub fn new(dialling: Dialling, addresses: BTreeMap<Name, String>, patience: Patience) -> Self {
        Self { dialling, addresses, patience, shunned: Mutex::default() }
    }

    /// Whether it is of any use to ask who is nearer.
    pub(super) fn may_be_asked(&self) -> bool {
        let now = ambient::now();
        let mut shunned = self.shunned();
        self.addresses.keys().any(|name| !shunned.holds(name, now))
    }

    /// Those whom a router has named and who can be asked, in its order.
    pub(super) fn sources(self: &Arc<Self>, hint: Nearer) -> Vec<Arc<dyn Source>> {
        let now = ambient::now();
        let until = now + self.patience.all;
        let mut sources: Vec<Arc<dyn Source>> = Vec::new();
        for (at, name) in hint.peers.iter().enumerate() {
            let is_new = !hint.peers[..at].contains(name);
            if is_new && self.addresses.contains_key(name) && !self.shunned().holds(name, now) {
                sources.push(Arc::new(PeerSource::new(self.clone(), name.clone(), hint.len, until)));
            }
        }
        sources
    }

    fn shunned(&self) -> MutexGuard<'_, Shunned> {
        self.shunned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
