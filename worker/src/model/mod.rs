//! A model that is ready to run.

use std::fmt;

use shoal_common::wire::hello::ModelCard;

use crate::backend::Backend;

/// A model with everything a worker needs of it.
pub struct LoadedModel {
    /// What routers are told.
    pub card: ModelCard,
    /// The encoded tokenizer bundle; its BLAKE3 is `card.tokenizer`.
    pub bundle: Vec<u8>,
    /// Computes its logits.
    pub backend: Box<dyn Backend>,
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("card", &self.card).finish_non_exhaustive()
    }
}
