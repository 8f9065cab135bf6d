//! A model ready to serve: its backend, its tokenizer and the card that says what it is. Called by the binary before
//! `run`; reads files, never a socket.

mod load;
pub(crate) mod memory;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use shoal_common::wire::hello::ModelCard;

pub use self::load::{Layers, LoadError, adapter_bytes_default, kv_tokens_default, load, stage_kv_tokens_default};
pub use self::memory::NoRoom;
use crate::adapters::Loader;
use crate::backend::Backend;

/// A model ready to serve.
pub struct LoadedModel {
    /// What it is.
    pub card: ModelCard,
    /// The encoded `TokenizerBundle`; its BLAKE3 is the card's `tokenizer`.
    pub bundle: Vec<u8>,
    /// Computes its logits.
    pub backend: Box<dyn Backend>,
    /// Makes adapters for it.
    pub adapters: Arc<dyn Loader>,
    /// Bytes of the weights that it keeps.
    pub weight_bytes: u64,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel").field("card", &self.card).finish_non_exhaustive()
    }
}
