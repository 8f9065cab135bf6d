//! The adapters that the contract's sequences have.

use std::sync::Arc;

use safetensors::Dtype;
use shoal_common::adapter::{Geometry, Linear};
use shoal_kernels::Precision;

use crate::adapters::Adapter;
use crate::adapters::recipe::Recipe;
use crate::backend::bench::golden_adapter;

/// Of the tiny golden model.
pub(crate) const TINY_GEOMETRY: Geometry = Geometry { layers: 4, hidden: 64, intermediate: 160, queries: 64, keys: 32 };

/// A sequence's adapter, or none.
pub(super) type Worn = Option<Arc<Adapter>>;

/// No adapter, and five that differ in what they change, in rank and in the width of their numbers.
pub(super) fn crowd() -> [Worn; 6] {
    let made = |linears, rank, dtype| {
        Some(Arc::new(Recipe { geometry: TINY_GEOMETRY, linears, rank, dtype, seed: rank as u32 }.adapter()))
    };
    let golden = |name| Some(golden_adapter(name, TINY_GEOMETRY, Precision::Fixed16));
    [
        None,
        golden("tiny/tiny-qv"),
        golden("tiny/tiny-all"),
        golden("tiny/tiny-pattern"),
        made(&Linear::ALL, 17, Dtype::F16),
        made(&[Linear::K, Linear::Up, Linear::Down], 64, Dtype::BF16),
    ]
}

/// No adapter, and the two of the crowd that change everything.
pub(super) fn extremes() -> [Worn; 3] {
    let [none, _, all, _, odd, _] = crowd();
    [none, all, odd]
}

/// For failures.
pub(super) fn name(worn: &Worn) -> String {
    worn.as_ref().map_or_else(|| "base".to_owned(), |adapter| format!("{adapter:?}"))
}
