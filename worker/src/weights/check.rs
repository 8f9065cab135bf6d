//! The last check before a model is believed: the tensors found are exactly those its settings ask for, in shapes and
//! types that can be computed with. Pure; the readers of every format end here.

use std::collections::HashMap;
use std::ops::Range;

use super::error::WeightsError;
use super::shape::ModelShape;
use super::tensor::{RowOrder, TensorName, TensorType};

/// The tensors of a model by name.
pub(super) type Tensors = HashMap<TensorName, Entry>;

/// Where a tensor is and how it is stored. The reader of its format has checked that `range` lies inside the file and
/// holds exactly the elements of `shape`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Index of the file.
    pub(super) file: usize,
    /// Bytes of that file.
    pub(super) range: Range<usize>,
    pub(super) dtype: TensorType,
    /// `[rows, cols]`, vectors `[length, 1]`.
    pub(super) shape: [usize; 2],
    pub(super) order: RowOrder,
}

/// Refuses a model whose tensors are not the ones its settings ask for.
pub(super) fn tensors(config: &ModelShape, found: &Tensors) -> Result<(), WeightsError> {
    let mut needed = 0;
    for name in config.tensor_names() {
        let entry = found.get(&name).ok_or(WeightsError::MissingTensor(name))?;
        check_one(name, entry, config.tensor_shape(name))?;
        needed += 1;
    }
    if needed == found.len() {
        return Ok(());
    }
    let expected: std::collections::HashSet<_> = config.tensor_names().collect();
    match found.keys().filter(|name| !expected.contains(name)).min() {
        Some(surplus) => Err(WeightsError::Unsupported(format!("has the surplus tensor {surplus}"))),
        None => Ok(()),
    }
}

fn check_one(name: TensorName, entry: &Entry, expected: [usize; 2]) -> Result<(), WeightsError> {
    if entry.shape != expected {
        return Err(WeightsError::TensorShape { name, found: entry.shape, expected });
    }
    if name.is_vector() && !entry.dtype.is_float() {
        let rule = "F32, F16 or BF16";
        return Err(WeightsError::TensorType { name, found: entry.dtype.to_string(), rule });
    }
    Ok(())
}

/// The commonest element type of the linear layers, the later in the list of types on a tie.
pub(super) fn commonest_type(tensors: &Tensors) -> TensorType {
    let mut counts = std::collections::BTreeMap::new();
    for (name, entry) in tensors {
        if matches!(name, TensorName::Layer { part, .. } if part.is_linear()) {
            *counts.entry(entry.dtype).or_insert(0usize) += 1;
        }
    }
    counts.into_iter().max_by_key(|&(_, count)| count).map_or(TensorType::F32, |(dtype, _)| dtype)
}
