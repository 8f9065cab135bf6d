//! GGUF files: the checked [`header`], the model's settings and tensor names (`model`), and the tokenizer that the metadata
//! holds (`tokenizer`; `pre_tokenizer` and `spm` for its two kinds).

mod header;
mod model;
mod pre_tokenizer;
mod spm;
mod tokenizer;
mod value;

pub(super) use header::Header;
pub use header::HeaderFault;

use std::path::Path;

use shoal_common::ids::Digest;

use self::model::Settings;
use super::bytes::FileBytes;
use super::error::WeightsError;
use super::{ModelFile, check};

/// Opens a GGUF file.
pub(super) fn open(path: &Path) -> Result<ModelFile, WeightsError> {
    model(path, FileBytes::read(path)?)
}

/// The model in a file's content; `path` is for messages.
pub(super) fn model(path: &Path, file: FileBytes) -> Result<ModelFile, WeightsError> {
    let header = Header::parse(file.as_slice()).map_err(|source| match source {
        HeaderFault::NotGguf => WeightsError::UnknownFormat { path: path.to_owned() },
        source => WeightsError::Gguf { path: path.to_owned(), source },
    })?;
    let settings = Settings::of(&header, file.as_slice())?;
    let config = settings.shape()?;
    config.check()?;
    let tensors = settings.tensors(&config)?;
    check::tensors(&config, &tensors)?;
    let bundle = tokenizer::bundle(&header, config.vocab)?;
    let digest = Digest::of(file.as_slice());
    Ok(ModelFile::new(config, bundle, digest, tensors, vec![file]))
}
