//! Safetensors files: the header is bounded here and validated by the `safetensors` crate (products, order, gaps,
//! overlaps, the exact length of the file); then every tensor is given its place.

use std::path::Path;

use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use ::safetensors::{SafeTensorError, SafeTensors};

use super::check::Entry;
use super::error::WeightsError;
use super::tensor::{RowOrder, TensorType};

/// Longest header in bytes. The crate takes 100 MB; a header of two thousand tensors has 250 KB.
const MAX_HEADER: u64 = 8 << 20;
/// Bytes of the header's length before the header.
const LENGTH_BYTES: usize = size_of::<u64>();

/// Every tensor of a file whose content is `bytes`, by its name in the file. `file` is what the entries call the file.
pub(super) fn entries(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>, WeightsError> {
    let unsound = |source| WeightsError::Safetensors { path: path.to_owned(), source };
    let (header, metadata) = read_header(bytes).map_err(unsound)?;
    let data = LENGTH_BYTES + header;
    let entry = |(name, info): (String, &TensorInfo)| {
        let entry = place(&name, info, data, file)?;
        Ok((name, entry))
    };
    metadata.tensors().into_iter().map(entry).collect()
}

fn read_header(bytes: &[u8]) -> Result<(usize, Metadata), SafeTensorError> {
    let length = bytes.first_chunk().copied().map(u64::from_le_bytes).ok_or(SafeTensorError::HeaderTooSmall)?;
    if length > MAX_HEADER {
        return Err(SafeTensorError::HeaderTooLarge);
    }
    SafeTensors::read_metadata(bytes)
}

fn place(name: &str, info: &TensorInfo, data: usize, file: usize) -> Result<Entry, WeightsError> {
    let unusable = |what: &str| WeightsError::Unsupported(format!("has the tensor {name:?} {what}"));
    let dtype = match info.dtype {
        Dtype::F32 => TensorType::F32,
        Dtype::F16 => TensorType::F16,
        Dtype::BF16 => TensorType::BF16,
        other => return Err(unusable(&format!("of type {other:?}"))),
    };
    let shape = match *info.shape {
        [length] => [length, 1],
        [rows, cols] => [rows, cols],
        _ => return Err(unusable("that is neither a vector nor a matrix")),
    };
    let (begin, end) = info.data_offsets;
    Ok(Entry { file, range: data + begin..data + end, dtype, shape, order: RowOrder::Plain })
}
