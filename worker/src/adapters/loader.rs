//! From a bundle's bytes to an adapter in memory. Behind a small trait, so that the store is tested without weights.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use shoal_common::ids::Generation;
use shoal_common::wire::hello::ModelCard;
use shoal_kernels::Precision;

use super::{Adapter, LoadFor};

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
    load_for: LoadFor,
}

impl PeftLoader {
    /// For the model of `card` on a backend that asks for `precision`.
    pub fn new(card: &ModelCard, precision: Precision) -> Self {
        Self { load_for: LoadFor { geometry: card.geometry, layers: card.layers, precision } }
    }
}

impl Loader for PeftLoader {
    fn load(&self, generation: Generation, bundle: &[u8]) -> Result<Loaded, Unusable> {
        let adapter = Adapter::load(generation, bundle, &self.load_for)?;
        let (bytes, rank) = (adapter.bytes(), adapter.rank());
        Ok(Loaded { adapter: Arc::new(adapter), bytes, rank })
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use shoal_common::adapter::{Geometry, Linear};
    use shoal_common::ids::{Digest, LayerRange};

    use super::*;
    use crate::adapters::recipe::Recipe;
    use crate::engine::tests::bench::card;

    #[test]
    fn a_bundle_is_loaded_for_the_layers_of_the_card_and_a_bad_one_is_refused_in_a_sentence() {
        let card = ModelCard { layers: LayerRange { begin: 1, end: 3 }, ..card() };
        let loader = PeftLoader::new(&card, Precision::Exact);
        let recipe = |geometry| Recipe { geometry, linears: &[Linear::Q], rank: 3, dtype: Dtype::F32, seed: 1 };
        let bundle = recipe(card.geometry).bundle();
        let generation = Generation(Digest::of(&bundle));
        let loaded = loader.load(generation, &bundle).unwrap();
        let layers = LayerRange { begin: 0, end: 4 };
        let load_for = LoadFor { geometry: card.geometry, layers, precision: Precision::Exact };
        let whole = Adapter::load(generation, &bundle, &load_for).unwrap();
        assert_eq!((loaded.adapter.generation(), loaded.rank), (generation, 3));
        assert!(loaded.bytes > 0 && loaded.bytes == loaded.adapter.bytes() && loaded.bytes < whole.bytes());
        let other = recipe(Geometry { hidden: 32, ..card.geometry }).bundle();
        let refused = loader.load(generation, &other).unwrap_err().to_string();
        assert!(refused.contains("q_proj"), "{refused}");
    }
}
