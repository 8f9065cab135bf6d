//! The workers that a worker's adapters come from and go to beside its routers, from its configuration to what its sessions need.
//! Called by [`run`](super::run).

use std::collections::BTreeMap;
use std::sync::Arc;

use quinn::Endpoint;
use shoal_common::config::{Timers, WorkerConfig};
use shoal_common::ids::Name;
use shoal_common::shutdown::Shutdown;
use shoal_common::wire::hello;

use crate::adapters::AdapterStore;
use crate::adapters::peers::{Dialling, Patience, Peers, lend};

/// Whom a worker shares its adapters with. By default nobody.
#[derive(Debug, Default)]
pub struct Neighbourhood {
    /// Where others of the cluster fetch from it.
    pub listen: Option<Endpoint>,
    /// Those of its zone that it may fetch from, and what is dialled for each, `host:port`.
    pub addresses: BTreeMap<Name, String>,
}

impl Neighbourhood {
    /// With what it takes to dial them.
    pub(super) fn with(self, dialling: Dialling) -> Lending {
        let Self { listen, addresses } = self;
        let peers = (!addresses.is_empty()).then(|| Arc::new(Peers::new(dialling, addresses, Patience::DEFAULT)));
        Lending { listen, peers }
    }
}

/// A neighbourhood whose members can be dialled.
#[derive(Default)]
pub(super) struct Lending {
    listen: Option<Endpoint>,
    peers: Option<Arc<Peers>>,
}

impl Lending {
    /// What routers are told.
    pub(super) fn locality(&self, config: &WorkerConfig) -> Option<hello::Locality> {
        let lending = if self.listen.is_some() { hello::Lending::Workers } else { hello::Lending::Nobody };
        config.peering.zone.clone().map(|zone| hello::Locality { zone, lending })
    }

    /// Serves others from `store` until `closing` fires; those that can be fetched from.
    pub(super) fn begin(self, timers: Timers, store: &AdapterStore, closing: &Shutdown) -> Option<Arc<Peers>> {
        if let Some(endpoint) = self.listen {
            let address = endpoint.local_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string());
            tracing::info!(address, "lending adapters to other workers");
            tokio::spawn(lend::lend(endpoint, timers, store.clone(), closing.clone()));
        }
        self.peers
    }
}
