//! From a bundle's bytes to an adapter in memory. Behind a small trait, so that the store is tested without weights.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use shoal_common::adapter::{Bundle, Geometry, check};
use shoal_common::ids::Generation;
use shoal_common::wire::hello::ModelCard;

use super::Adapter;

/// An adapter that was just loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Ready for a step.
    pub adapter: Arc<Adapter>,
    /// What it takes of memory.
    pub bytes: u64,
    /// Its largest rank.
    pub rank: u32,
}

/// Why a bundle cannot be used with the model that is served: a fact about its content, so that another try would end the
/// same. Its text is told to routers.
pub type Unusable = Box<dyn Error + Send + Sync>;

/// Checks and packs bundles for one model. Called on blocking threads, for seconds with large ones.
pub trait Loader: fmt::Debug + Send + Sync {
    /// Loads the bundle of `generation`, whose hash was checked.
    fn load(&self, generation: Generation, bundle: &[u8]) -> Result<Loaded, Unusable>;
}

/// Makes adapters of PEFT bundles for the layers that a worker hosts.
#[derive(Debug)]
pub struct PeftLoader {
    geometry: Geometry,
}

impl PeftLoader {
    /// For the model of `card`.
    pub fn new(card: &ModelCard) -> Self {
        Self { geometry: card.geometry }
    }
}

impl Loader for PeftLoader {
    fn load(&self, generation: Generation, bundle: &[u8]) -> Result<Loaded, Unusable> {
        let checked = check(&Bundle::parse(bundle)?, &self.geometry)?;
        let adapter = Arc::new(Adapter::new(generation));
        Ok(Loaded { adapter, bytes: checked.values() * size_of::<f32>() as u64, rank: checked.rank() })
    }
}
