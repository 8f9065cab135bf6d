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
use self::value::Value;
use super::bytes::FileBytes;
use super::error::WeightsError;
use super::{ModelFile, check};

/// Opens a GGUF file.
pub(super) fn open(path: &Path) -> Result<ModelFile, WeightsError> {
    model(path, FileBytes::read(path)?)
}

/// The types of ggml that no kernel here takes, by name.
/// <https://github.com/ggml-org/ggml/blob/master/include/ggml.h> (`ggml_type`)
fn foreign_type(number: u32) -> Option<&'static str> {
    Some(match number {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}

/// A part of a model that was split into several files has some of its tensors, and only the first its settings.
fn refuse_a_part(header: &Header<'_>) -> Result<(), WeightsError> {
    match header.optional("split.count", "a whole number", Value::unsigned)? {
        Some(parts @ 2..) => {
            let hint = "llama-gguf-split --merge makes one of them";
            Err(WeightsError::Unsupported(format!("is one of {parts} files of a split one ({hint})")))
        }
        _ => Ok(()),
    }
}

/// The model in a file's content; `path` is for messages.
pub(super) fn model(path: &Path, file: FileBytes) -> Result<ModelFile, WeightsError> {
    let header = Header::parse(file.as_slice()).map_err(|source| match source {
        HeaderFault::NotGguf => WeightsError::UnknownFormat { path: path.to_owned() },
        HeaderFault::TensorType { number, name } => match foreign_type(number) {
            Some(foreign) => {
                let hint = "llama-quantize makes Q4_K_M or Q8_0 of its original";
                WeightsError::Unsupported(format!("has weights of the type {foreign} ({hint})"))
            }
            None => WeightsError::Gguf { path: path.to_owned(), source: HeaderFault::TensorType { number, name } },
        },
        source => WeightsError::Gguf { path: path.to_owned(), source },
    })?;
    refuse_a_part(&header)?;
    let settings = Settings::of(&header, file.as_slice())?;
    let config = settings.shape()?;
    config.check()?;
    let tensors = settings.tensors(&config)?;
    check::tensors(&config, &tensors)?;
    let bundle = tokenizer::bundle(&header, config.vocab)?;
    let digest = Digest::of(file.as_slice());
    Ok(ModelFile::new(config, bundle, digest, tensors, vec![file]))
}
