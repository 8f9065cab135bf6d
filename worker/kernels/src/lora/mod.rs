//! Low-rank updates of linear layers: `y += scale (x Aᵀ) Bᵀ` in f32, each row with the update of its own adapter, or with
//! none. They are added while the product with the layers' own weights is computed ([`Matrix::multiply_adapted`]), once for
//! all layers that share their inputs: `x Aᵀ` first, and an output's update as soon as the output is there, by the thread
//! that has it in its cache. No thread waits for another in between, unless the sums that it needs are not there yet.
//!
//! **Bits.** A row is computed alone: what shares the step does not show. A row of A is reduced in 16 lanes, lane l over
//! the inputs k = l (mod 16) in ascending order with fused multiply-adds from zero, folded as [`Simd::sum`] does. An output
//! ascends over the ranks with fused multiply-adds from zero, `d = fma(reduced, b, d)`; then `y = fma(scale, d, y)`. What
//! packing may round is said by [`Precision`]; how wide the numbers are stored does not show otherwise, for widening is exact,
//! and so are powers of two.
//!
//! [`Matrix::multiply_adapted`]: crate::Matrix::multiply_adapted
//! [`Simd::sum`]: crate::simd::Simd::sum

mod expand;
mod low_rank;
mod numbers;
mod reduce;
mod updates;

pub(crate) use self::low_rank::PANEL;
pub use self::low_rank::{Factors, LowRank, Unpacked};
pub use self::numbers::Precision;
pub(crate) use self::updates::Adding;
pub use self::updates::Updates;
use crate::rows::Rows;

/// Rows that meet a tile or a panel together where there are registers for their sums: numbers that are kept in 16 bits are
/// widened once for all of them.
const FOUR: usize = 4;

/// The rows of a step by adapter, and working memory for their updates.
#[derive(Debug, Default)]
pub struct Lora {
    /// Whether each row of the step has an adapter.
    has: Vec<bool>,
    /// The rows that have one, those of the same adapter side by side, in ascending order.
    rows: Vec<u32>,
    /// Where the rows of each adapter begin in `rows`, and where the last ones end.
    starts: Vec<usize>,
    /// Room for the update of each adapter; empty in between.
    of_adapters: Vec<Option<&'static LowRank>>,
    /// For each adapter, units of work before its own; where the last ones end. [`Lora::plan`] counts rows in it.
    units: Vec<usize>,
    /// `x Aᵀ` of each of `rows`, in rows of whole lines.
    reduced: Vec<f32>,
}

impl Lora {
    /// Lays out a step of spans of rows, each of which has adapter number `Some(_)` or none. Numbers count from zero, and
    /// each up to the largest occurs.
    pub fn plan(&mut self, spans: impl Iterator<Item = (usize, Option<usize>)> + Clone) {
        self.has.clear();
        self.starts.clear();
        self.starts.push(0);
        for (count, adapter) in spans.clone() {
            self.has.extend(std::iter::repeat_n(adapter.is_some(), count));
            let Some(adapter) = adapter else { continue };
            if self.starts.len() < adapter + 2 {
                self.starts.resize(adapter + 2, 0);
            }
            self.starts[adapter + 1] += count;
        }
        for adapter in 1..self.starts.len() {
            self.starts[adapter] += self.starts[adapter - 1];
        }
        self.units.clone_from(&self.starts);
        self.rows.resize(self.starts[self.adapters()], 0);
        let mut row = 0;
        for (count, adapter) in spans {
            if let Some(adapter) = adapter {
                let begin = self.units[adapter];
                self.units[adapter] += count;
                (begin..).zip(row..row + count).for_each(|(slot, row)| self.rows[slot] = row as u32);
            }
            row += count;
        }
    }

    /// Whether no row of the step has an adapter.
    pub fn is_idle(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether row `row` of the step has an adapter.
    pub(crate) fn has(&self, row: usize) -> bool {
        self.has[row]
    }

    /// Rows of the step.
    pub(crate) fn count(&self) -> usize {
        self.has.len()
    }

    fn adapters(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// What the adapters add to a product at one place: `update_of` says which update an adapter has there. `x` are the
    /// product's inputs as they are, read at rows that have an adapter, and only there.
    pub fn updates<'a>(&'a mut self, update_of: impl Fn(usize) -> Option<&'a LowRank>, x: &'a Rows) -> Updates<'a> {
        Updates::new(self, update_of, x)
    }
}
