//! `adapter_model.safetensors`: its header, checked against the bytes that follow it, and the tensors it describes. What the
//! tensors are is for [`tensors`](super::tensors) to say.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

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
    let (tensors, data) = header(file).map_err(|reason| not_safetensors(file, &reason))?;
    let tensor = |(name, TensorInfo { dtype, shape, data_offsets: (begin, end) })| {
        (name, Tensor { dtype, shape, bytes: &data[begin..end] })
    };
    Ok(tensors.into_iter().map(tensor).collect())
}

/// The header and what follows it. Every tensor lies within, they do not overlap, and they leave nothing out.
fn header(file: &[u8]) -> Result<(BTreeMap<String, TensorInfo>, &[u8]), String> {
    let (length, rest) = file.split_first_chunk::<LENGTH>().ok_or("it ends before its header")?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("its header would have {length} bytes, {MAX_HEADER} is the limit"));
    }
    let (json, data) = rest.split_at_checked(length as usize).ok_or("it ends within its header")?;
    let Header(tensors) = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if let Some((name, _)) = tensors.iter().find(|(_, info)| !is_consistent(info)) {
        return Err(format!("{} is not as long as its shape says", Excerpt::of(name)));
    }
    let mut in_order: Vec<_> = tensors.iter().map(|(name, info)| (name.clone(), info.clone())).collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    // Not `SafeTensors::deserialize`, which does the same: it tells one file's fault in several ways, from run to run, and it
    // adds the end of the last tensor to other lengths, which can overflow.
    let metadata = Metadata::new(None, in_order).map_err(|error| error.to_string())?;
    if metadata.data_len() != data.len() {
        return Err(format!("its tensors have {} bytes, {} follow the header", metadata.data_len(), data.len()));
    }
    Ok((tensors, data))
}

fn is_consistent(info: &TensorInfo) -> bool {
    let numbers = info.shape.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
    let bits = numbers.and_then(|numbers| numbers.checked_mul(info.dtype.bitsize()));
    let (begin, end) = info.data_offsets;
    bits.is_some_and(|bits| bits % 8 == 0 && end.checked_sub(begin) == Some(bits / 8))
}

/// A header's tensors; what else it says is left out.
struct Header(BTreeMap<String, TensorInfo>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a header of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(map.next_value::<TensorInfo>()?),
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format_args!("{} is there twice", Excerpt::of(entry.key()))));
                }
            };
        }
        Ok(Header(tensors))
    }
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
