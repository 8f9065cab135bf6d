//! What is served, as requests see it: the words that the fleet, which knows, and the HTTP side, which tells, have in common.
//! No state here; [`crate::fleet::FleetView`] implements it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use shoal_common::ids::Name;
use shoal_common::wire::hello::ModelCard;

use crate::text::Tokenizer;

/// A model that clients may ask for.
#[derive(Debug)]
pub struct ServedModel {
    /// As its workers describe it.
    pub card: ModelCard,
    /// Its text.
    pub tokenizer: Arc<Tokenizer>,
    /// Unix seconds at which this router first saw it.
    pub created: u64,
}

/// Now, as clients are told when something was made.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether requests can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// At least one model has a worker that takes groups.
    Ready,
    /// None has, or the router is draining.
    NotReady {
        /// Which, in words for `/readyz`.
        reason: &'static str,
    },
}

/// What is served. Implemented over the fleet's snapshot: a call reads memory and never waits.
pub trait Catalogue: Send + Sync {
    /// All models, by name.
    fn models(&self) -> Vec<Arc<ServedModel>>;

    /// One model.
    fn model(&self, name: &Name) -> Option<Arc<ServedModel>>;

    /// Whether requests can be answered.
    fn readiness(&self) -> Readiness;
}
