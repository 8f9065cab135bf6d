//! `adapter_model.safetensors`: its header, checked against the bytes that follow it, and the tensors it describes. What the
//! tensors are is for [`tensors`](super::tensors) to say.

use std::collections::BTreeMap;

use safetensors::tensor::Metadata;

use super::error::{AdapterError, Excerpt};

/// Longest header in bytes: all tensors of the largest models have some 300 KB. What reading one takes grows with it.
const MAX_HEADER: u64 = 1 << 20;
/// Bytes of the header's length.
const LENGTH: usize = 8;

/// A tensor as the header describes it.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    pub(super) dtype: safetensors::Dtype,
    pub(super) shape: Vec<usize>,
    /// As many as `dtype` and `shape` make.
    pub(super) bytes: &'a [u8],
}

/// All tensors of a file, by name.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<String, Tensor<'_>>, AdapterError> {
    if file.is_empty() {
        return Err(AdapterError::Empty { file: "adapter_model.safetensors" });
    }
    let (metadata, data) = header(file).map_err(|reason| not_safetensors(file, &reason))?;
    let tensor = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (begin, end) = info.data_offsets;
        (name, Tensor { dtype: info.dtype, shape: info.shape.clone(), bytes: &data[begin..end] })
    };
    Ok(metadata.tensors().into_iter().map(tensor).collect())
}

/// The header and what follows it. Every tensor lies within, they do not overlap, and they leave nothing out.
fn header(file: &[u8]) -> Result<(Metadata, &[u8]), String> {
    let (length, rest) = file.split_first_chunk::<LENGTH>().ok_or("it ends before its header")?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("its header would have {length} bytes, {MAX_HEADER} is the limit"));
    }
    let (json, data) = rest.split_at_checked(length as usize).ok_or("it ends within its header")?;
    // Not `SafeTensors::read_metadata`: it adds the end of the last tensor to other lengths, and that sum can overflow.
    let metadata: Metadata = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if metadata.data_len() != data.len() {
        return Err(format!("its tensors have {} bytes, {} follow the header", metadata.data_len(), data.len()));
    }
    Ok((metadata, data))
}

/// Why `file` is none, by what it looks like. Only asked of files whose header makes no sense: a good one may begin as a
/// pickle does.
fn not_safetensors(file: &[u8], reason: &str) -> AdapterError {
    let plausible = file.first_chunk().is_some_and(|length| u64::from_le_bytes(*length) <= MAX_HEADER);
    let pickle = file.starts_with(b"PK\x03\x04") || matches!(file, [0x80, 2..=5, ..]);
    if pickle && !plausible {
        AdapterError::Pickle
    } else if file.starts_with(b"version https://git-lfs") {
        AdapterError::LfsPointer
    } else {
        AdapterError::NotSafetensors { reason: Excerpt::of(reason) }
    }
}
