//! Whether an adapter's two files are usable with a base model, and what they say. The router asks when an adapter is
//! registered, the worker again when it loads one: the same bytes and the same geometry give the same answer.

use super::bundle::Bundle;
use super::error::AdapterError;
use super::geometry::{Geometry, Linear};
use super::values::Values;

/// Largest rank of an update.
pub const MAX_RANK: u32 = 256;

/// An adapter that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked<'a> {
    /// What it adds, by layer and, within a layer, in the order of computation. Never empty.
    pub updates: Vec<Update<'a>>,
}

/// What an adapter adds to one linear layer: `y += scale * B(A x)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update<'a> {
    /// Index of the layer.
    pub layer: u32,
    /// Which of its linear layers.
    pub linear: Linear,
    /// Rows of `a` and columns of `b`, 1 to [`MAX_RANK`].
    pub rank: u32,
    /// What `b`'s result is multiplied with; finite.
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: Values<'a>,
    /// `[outputs, rank]`
    pub b: Values<'a>,
}

impl Checked<'_> {
    /// Largest rank of an update.
    pub fn rank(&self) -> u32 {
        self.updates.iter().map(|update| update.rank).max().unwrap_or(0)
    }

    /// Numbers in all A and B.
    pub fn values(&self) -> u64 {
        self.updates.iter().map(|update| (update.a.len() + update.b.len()) as u64).sum()
    }
}

/// What `bundle` says, if it is a usable adapter for a model of `geometry`.
pub fn check<'a>(bundle: &Bundle<'a>, _geometry: &Geometry) -> Result<Checked<'a>, AdapterError> {
    if bundle.config.is_empty() {
        return Err(AdapterError::Empty { file: "adapter_config.json" });
    }
    unimplemented!("filled by the next commit of this branch")
}
