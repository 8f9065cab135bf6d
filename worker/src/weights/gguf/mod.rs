//! GGUF files of the llama architecture: the checked [`header`], the model's settings and tensor names (`model`), and
//! the tokenizer that the metadata holds (`tokenizer`, with the cutting rules of `pre_tokenizer`).

mod header;
mod model;
mod pre_tokenizer;
mod spm;
mod tokenizer;
mod value;

pub use header::HeaderFault;

use std::path::Path;

use shoal_common::ids::Digest;

use super::bytes::FileBytes;
use super::error::WeightsError;
use super::{ModelFile, check};

/// Opens a GGUF file.
pub(super) fn open(path: &Path) -> Result<ModelFile, WeightsError> {
    let file = FileBytes::read(path)?;
    let unsound = |source| WeightsError::Gguf { path: path.to_owned(), source };
    let header = header::Header::parse(file.as_slice()).map_err(unsound)?;
    let config = model::shape(&header, file.as_slice())?;
    config.check()?;
    let tensors = model::tensors(&header, &config)?;
    check::tensors(&config, &tensors)?;
    let bundle = tokenizer::bundle(&header, config.vocab)?;
    let digest = Digest::of(file.as_slice());
    Ok(ModelFile::new(config, bundle, digest, tensors, vec![file]))
}
