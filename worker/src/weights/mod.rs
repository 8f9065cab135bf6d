//! A model's files, opened and checked: GGUF files and Hugging Face directories of a few families. Called by `load`;
//! backends read tensors from [`ModelFile`] by name and do not know the format.
//!
//! Nothing in a file is believed before it is checked: `gguf` and `safetensors` bound every length, offset and product by
//! the file's size, `shape` bounds every dimension, `check` compares the tensors with the dimensions. After
//! [`ModelFile::open`] every tensor can be read. Nothing here computes, and no file is ever written.

mod bundle;
mod bytes;
mod check;
mod error;
mod family;
mod gguf;
mod hf;
mod hf_config;
mod hf_tokenizer;
mod safetensors;
mod shape;
mod tensor;

#[cfg(test)]
mod tests;

use std::path::Path;

use shoal_common::ids::Digest;
use shoal_common::wire::blob::TokenizerBundle;

pub use self::error::{TokenizerFault, WeightsError};
pub use self::gguf::HeaderFault;
pub use self::shape::{ModelShape, RopeConfig, RopeScaling};
pub use self::tensor::{LayerPart, RowOrder, TensorName, TensorType, TensorView};

use self::bytes::FileBytes;
use self::check::Tensors;

/// A model whose files have been read and checked.
#[derive(Debug)]
pub struct ModelFile {
    /// Dimensions and settings.
    pub config: ModelShape,
    /// What a router needs to turn text into this model's tokens and back.
    pub bundle: TokenizerBundle,
    /// BLAKE3 of weights and configuration.
    pub digest: Digest,
    /// The commonest element type of the linear layers, for example `Q4_1`.
    pub quantisation: String,
    tensors: Tensors,
    files: Vec<FileBytes>,
}

impl ModelFile {
    /// Opens a GGUF file, or a directory with `config.json`, safetensors files and `tokenizer.json`. Reads every weight
    /// into memory.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let metadata = std::fs::metadata(path);
        match metadata.map_err(|source| WeightsError::Read { path: path.to_owned(), source })? {
            kind if kind.is_dir() => hf::open(path),
            _ => gguf::open(path),
        }
    }

    fn new(
        config: ModelShape,
        bundle: TokenizerBundle,
        digest: Digest,
        tensors: Tensors,
        files: Vec<FileBytes>,
    ) -> Self {
        let quantisation = check::commonest_type(&tensors).to_string();
        Self { config, bundle, digest, quantisation, tensors, files }
    }

    /// The stored bytes of a tensor. The output head of a model that ties the two is the embedding.
    pub fn tensor(&self, name: TensorName) -> Result<TensorView<'_>, WeightsError> {
        let stored = if name == TensorName::Output && self.config.tied { TensorName::Embedding } else { name };
        let entry = self.tensors.get(&stored).ok_or(WeightsError::MissingTensor(name))?;
        let bytes = &self.files[entry.file].as_slice()[entry.range.clone()];
        Ok(TensorView { dtype: entry.dtype, shape: entry.shape, order: entry.order, bytes })
    }

    /// A tensor's values as f32, row-major, rows in the Hugging Face order; `rows * cols` of [`ModelFile::tensor`]'s
    /// shape.
    pub fn tensor_f32(&self, name: TensorName) -> Result<Vec<f32>, WeightsError> {
        self.tensor(name)?.to_f32(name)
    }

    /// Whether the weights of a linear layer or of the head are floats in the file.
    pub fn has_float_weights(&self) -> bool {
        self.tensors.iter().any(|(name, entry)| !name.is_vector() && entry.dtype.is_float())
    }

    /// Elements of all tensors together.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|entry| entry.shape[0] as u64 * entry.shape[1] as u64).sum()
    }
}
