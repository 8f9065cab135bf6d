//! The header of a GGUF file (versions 2 and 3, little-endian), parsed out of the file's bytes without copying them.
//!
//! Every count, length, product, offset and type is checked against the file before it is used, nothing is allocated in
//! proportion to a number that the file only claims, and every tensor that comes out lies inside the file. The format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::value::{Reader, Value};
use crate::weights::tensor::TensorType;

/// Longest metadata key and tensor name in bytes. The format allows keys of 65535 and names of 64.
const MAX_NAME: u64 = 256;
/// Most metadata entries and tensors. Files in use have under 100 entries and under 2000 tensors.
const MAX_ENTRIES: u64 = 65_536;
/// Bytes that a metadata entry takes at least: key length, one character, type, one byte of value.
const MIN_METADATA_ENTRY: u64 = 8 + 1 + 4 + 1;
/// Bytes that a tensor's description takes at least: name length, one character, rank, one dimension, type, offset.
const MIN_TENSOR_ENTRY: u64 = 8 + 1 + 4 + 8 + 4 + 8;
/// Where the file does not say how tensors are aligned.
const DEFAULT_ALIGNMENT: u64 = 32;

/// What is wrong with a GGUF header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum HeaderFault {
    #[error("it does not begin with GGUF")]
    NotGguf,
    #[error("it is big-endian")]
    BigEndian,
    #[error("it has version {0}, not 2 or 3")]
    Version(u32),
    #[error("it ends at byte {at} inside {what}")]
    Truncated { what: &'static str, at: usize },
    #[error("it claims {count} {what}, more than it has room for or than are taken")]
    TooMany { what: &'static str, count: u64 },
    #[error("a {what} is empty, too long or not printable ASCII")]
    BadName { what: &'static str },
    #[error("the {what} {name:?} occurs twice")]
    Duplicate { what: &'static str, name: String },
    #[error("a value has the unknown type {0}")]
    ValueType(u32),
    #[error("a boolean is {0}, not 0 or 1")]
    Boolean(u8),
    #[error("an array holds arrays")]
    NestedArray,
    #[error("the alignment is not a power of two from 8 to 4096")]
    Alignment,
    #[error("the tensor {name:?} has {rank} dimensions, not 1 to 4")]
    Rank { name: String, rank: u32 },
    #[error("the tensor {name:?} has a dimension of 0")]
    ZeroDimension { name: String },
    #[error("the tensor {name:?} has more elements than can be counted")]
    Overflow { name: String },
    #[error("the tensor {name:?} has the element type {number}, which is not supported")]
    TensorType { name: String, number: u32 },
    #[error("the tensor {name:?} has rows of {cols} elements, not a multiple of its block of {block}")]
    PartialBlock { name: String, cols: u64, block: usize },
    #[error("the tensor {name:?} begins at {offset}, not a multiple of the alignment")]
    Unaligned { name: String, offset: u64 },
    #[error("the tensor {name:?} reaches beyond the end of the file")]
    BeyondEnd { name: String },
    #[error("the tensors {first:?} and {second:?} overlap")]
    Overlap { first: String, second: String },
}

/// A checked header.
#[derive(Debug)]
pub(in crate::weights) struct Header<'a> {
    pub(super) metadata: HashMap<&'a str, Value<'a>>,
    pub(super) tensors: Vec<TensorInfo<'a>>,
}

/// A tensor that lies inside the file.
#[derive(Debug, Clone)]
pub(super) struct TensorInfo<'a> {
    pub(super) name: &'a str,
    /// Slowest dimension first, as everywhere but in GGUF.
    pub(super) dims: Vec<u64>,
    pub(super) dtype: TensorType,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

impl<'a> Header<'a> {
    /// Parses and checks the header of a whole file.
    pub(in crate::weights) fn parse(file: &'a [u8]) -> Result<Self, HeaderFault> {
        let mut reader = Reader::new(file);
        check_version(&mut reader)?;
        let tensor_count = reader.u64("the tensor count")?;
        let metadata_count = reader.u64("the metadata count")?;
        check_count("tensors", tensor_count, MIN_TENSOR_ENTRY, &reader)?;
        check_count("metadata entries", metadata_count, MIN_METADATA_ENTRY, &reader)?;
        let metadata = read_metadata(&mut reader, metadata_count)?;
        check_count("tensors", tensor_count, MIN_TENSOR_ENTRY, &reader)?;
        let described: Vec<_> = (0..tensor_count).map(|_| Description::read(&mut reader)).collect::<Result<_, _>>()?;
        let alignment = alignment(&metadata)?;
        let data = (reader.position() as u64).next_multiple_of(alignment);
        let placed = described.into_iter().map(|tensor| tensor.place(data, alignment, file.len()));
        let tensors = placed.collect::<Result<Vec<_>, _>>()?;
        check_distinct(&tensors)?;
        Ok(Self { metadata, tensors })
    }
}

fn check_version(reader: &mut Reader<'_>) -> Result<(), HeaderFault> {
    if reader.take(4, "the magic number").map_err(|_| HeaderFault::NotGguf)? != b"GGUF" {
        return Err(HeaderFault::NotGguf);
    }
    match reader.u32("the version")? {
        2 | 3 => Ok(()),
        other if matches!(other.swap_bytes(), 2 | 3) => Err(HeaderFault::BigEndian),
        other => Err(HeaderFault::Version(other)),
    }
}

/// A count is believed when that many of the smallest entries fit into the rest of the file.
fn check_count(what: &'static str, count: u64, smallest: u64, reader: &Reader<'_>) -> Result<(), HeaderFault> {
    let room = reader.remaining() as u64 / smallest;
    if count > room.min(MAX_ENTRIES) { Err(HeaderFault::TooMany { what, count }) } else { Ok(()) }
}

fn read_metadata<'a>(reader: &mut Reader<'a>, count: u64) -> Result<HashMap<&'a str, Value<'a>>, HeaderFault> {
    let mut metadata = HashMap::new();
    for _ in 0..count {
        let key = read_name(reader, "metadata key")?;
        let value = Value::read(reader)?;
        if metadata.insert(key, value).is_some() {
            return Err(HeaderFault::Duplicate { what: "metadata key", name: key.to_owned() });
        }
    }
    Ok(metadata)
}

fn read_name<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<&'a str, HeaderFault> {
    let len = reader.u64(what)?;
    if !(1..=MAX_NAME).contains(&len) {
        return Err(HeaderFault::BadName { what });
    }
    let bytes = reader.take(len, what)?;
    match str::from_utf8(bytes) {
        Ok(name) if name.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(name),
        _ => Err(HeaderFault::BadName { what }),
    }
}

fn alignment(metadata: &HashMap<&str, Value<'_>>) -> Result<u64, HeaderFault> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::Unsigned(value)) if value.is_power_of_two() && (8..=4096).contains(&value) => Ok(value),
        Some(_) => Err(HeaderFault::Alignment),
    }
}

/// A tensor as the header describes it, before anything is known about its place.
struct Description<'a> {
    name: &'a str,
    /// Fastest first, as in the file.
    dims: Vec<u64>,
    dtype: TensorType,
    offset: u64,
}

impl<'a> Description<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, HeaderFault> {
        let name = read_name(reader, "tensor name")?;
        let rank = reader.u32("a tensor's rank")?;
        if !(1..=4).contains(&rank) {
            return Err(HeaderFault::Rank { name: name.to_owned(), rank });
        }
        let dims = (0..rank).map(|_| reader.u64("a tensor's dimensions")).collect::<Result<Vec<_>, _>>()?;
        if dims.contains(&0) {
            return Err(HeaderFault::ZeroDimension { name: name.to_owned() });
        }
        let number = reader.u32("a tensor's type")?;
        let dtype =
            TensorType::from_gguf(number).ok_or_else(|| HeaderFault::TensorType { name: name.to_owned(), number })?;
        let offset = reader.u64("a tensor's offset")?;
        Ok(Self { name, dims, dtype, offset })
    }

    /// Finds the tensor's bytes in a file of `file_len` whose tensor data begins at `data`.
    fn place(self, data: u64, alignment: u64, file_len: usize) -> Result<TensorInfo<'a>, HeaderFault> {
        let name = || self.name.to_owned();
        let block = self.dtype.block_elements();
        let cols = self.dims[0];
        if !cols.is_multiple_of(block as u64) {
            return Err(HeaderFault::PartialBlock { name: name(), cols, block });
        }
        if !self.offset.is_multiple_of(alignment) {
            return Err(HeaderFault::Unaligned { name: name(), offset: self.offset });
        }
        let elements = self.dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let bytes =
            elements.and_then(|elements| (elements / block as u64).checked_mul(self.dtype.block_bytes() as u64));
        let bytes = bytes.ok_or_else(|| HeaderFault::Overflow { name: name() })?;
        let begin = data.checked_add(self.offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= file_len as u64 => Ok(TensorInfo {
                name: self.name,
                dims: self.dims.into_iter().rev().collect(),
                dtype: self.dtype,
                range: begin as usize..end as usize,
            }),
            _ => Err(HeaderFault::BeyondEnd { name: name() }),
        }
    }
}

/// No two tensors have one name or share a byte.
fn check_distinct(tensors: &[TensorInfo<'_>]) -> Result<(), HeaderFault> {
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name)) {
        return Err(HeaderFault::Duplicate { what: "tensor name", name: twice.name.to_owned() });
    }
    let mut by_place: Vec<_> = tensors.iter().collect();
    by_place.sort_by_key(|tensor| tensor.range.start);
    match by_place.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => Err(HeaderFault::Overlap { first: pair[0].name.to_owned(), second: pair[1].name.to_owned() }),
        None => Ok(()),
    }
}
