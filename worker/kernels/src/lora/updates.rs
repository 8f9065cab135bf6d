//! What adapters add to one product: `x Aᵀ` in pieces that threads claim, and then, output by output, what is made of it.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Lora;
use super::expand::Expand;
use super::low_rank::LowRank;
use super::reduce::Reduce;
use crate::Isa;
use crate::pool::{Pool, wait_until};
use crate::rows::{Rows, Shared};
use crate::simd::{LANES, dispatch};

/// Rows of one adapter that pass over its update before the next rows do: of 576 inputs they fill a first level cache
/// twice, of 2,048 half a second level cache of 512 KiB.
const ROWS_PER_PASS: usize = 32;

/// Pieces of `x Aᵀ` per thread: a thread that the system takes away for a while delays a step by a part of its share.
const PIECES_PER_THREAD: usize = 2;

/// Bytes of A, each counted for every row that meets them, that are worth a piece of their own: a microsecond.
const WORTH_SHARING: usize = 64 << 10;

/// The updates of a step's rows at one place: made by [`Lora::updates`].
#[derive(Debug)]
#[must_use = "a product adds them"]
pub struct Updates<'a> {
    lora: &'a mut Lora,
    /// The update of each adapter.
    of_adapters: Vec<Option<&'a LowRank>>,
    x: &'a Rows,
}

impl<'a> Updates<'a> {
    pub(super) fn new(lora: &'a mut Lora, update_of: impl Fn(usize) -> Option<&'a LowRank>, x: &'a Rows) -> Self {
        let mut of_adapters: Vec<Option<&'a LowRank>> = std::mem::take(&mut lora.of_adapters);
        of_adapters.extend((0..lora.adapters()).map(update_of));
        Self { lora, of_adapters, x }
    }

    /// Prepares for a product whose outputs go to `y`; `None` if no adapter has an update here.
    pub(crate) fn begin(&mut self, pool: &Pool, y: &Rows) -> Option<Adding<'_>> {
        let most_ranks = self.of_adapters.iter().flatten().map(|update| update.check(self.x, y)).max()?;
        let count = self.lora.count();
        assert_eq!((self.x.count(), y.count()), (count, count), "rows of the step");
        let Lora { rows, starts, units, reduced, .. } = &mut *self.lora;
        let stride = most_ranks.next_multiple_of(LANES);
        if rows.len() * stride > reduced.len() {
            reduced.resize(rows.len() * stride, 0.0);
        }
        let (mut all, mut cost) = (0, 0);
        units.clear();
        for (update, bounds) in self.of_adapters.iter().zip(starts.windows(2)) {
            units.push(all);
            if let Some(update) = update {
                let count = bounds[1] - bounds[0];
                all += update.tiles() * count.div_ceil(ROWS_PER_PASS);
                cost += update.bytes_of_a() * count;
            }
        }
        units.push(all);
        if all == 0 {
            return None;
        }
        let grain = all.div_ceil((cost / WORTH_SHARING).clamp(1, pool.threads() * PIECES_PER_THREAD));
        Some(Adding {
            isa: pool.isa(),
            rows,
            starts,
            units,
            of_adapters: &self.of_adapters,
            x: self.x,
            reduced: Shared::new(reduced),
            stride,
            grain,
            pieces: all.div_ceil(grain),
            reduced_pieces: AtomicUsize::new(0),
        })
    }
}

impl Drop for Updates<'_> {
    /// Gives the room back.
    fn drop(&mut self) {
        self.lora.of_adapters = emptied(std::mem::take(&mut self.of_adapters));
    }
}

/// The same memory without what is in it (vectors that are collected from themselves keep it), for references of another
/// lifetime.
fn emptied<'b>(mut updates: Vec<Option<&LowRank>>) -> Vec<Option<&'b LowRank>> {
    updates.clear();
    updates.into_iter().map(|_| None).collect()
}

/// The updates of one product under way. Its pieces are all claimed before anything is added.
pub(crate) struct Adding<'a> {
    isa: Isa,
    /// As in [`Lora`].
    rows: &'a [u32],
    starts: &'a [usize],
    /// For each adapter, units before its own: a unit is a tile of A and up to [`ROWS_PER_PASS`] rows.
    units: &'a [usize],
    of_adapters: &'a [Option<&'a LowRank>],
    x: &'a Rows,
    /// `x Aᵀ` of each of `rows`, `stride` from row to row.
    reduced: Shared<f32>,
    stride: usize,
    /// Units of a piece.
    grain: usize,
    pieces: usize,
    /// How many pieces are over.
    reduced_pieces: AtomicUsize,
}

impl Adding<'_> {
    /// Pieces that `x Aᵀ` is cut into: each is to be reduced once, and each is claimed before anything is added.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces
    }

    /// Computes a piece of `x Aᵀ`.
    ///
    /// # Safety
    /// `piece` is below [`Adding::pieces`], and each is computed once only.
    pub(crate) unsafe fn reduce(&self, piece: usize) {
        let _over = Over(&self.reduced_pieces);
        let all = self.units[self.units.len() - 1];
        let mut units = piece * self.grain..all.min((piece + 1) * self.grain);
        let mut adapter = self.units.partition_point(|&before| before <= units.start) - 1;
        while !units.is_empty() {
            let Some(low_rank) = self.of_adapters[adapter].filter(|_| units.start < self.units[adapter + 1]) else {
                adapter += 1;
                continue;
            };
            let within = units.start - self.units[adapter];
            let (pass, tile) = (within / low_rank.tiles(), within % low_rank.tiles());
            let tiles = tile..low_rank.tiles().min(tile + units.len());
            units.start += tiles.len();
            let first = self.starts[adapter] + pass * ROWS_PER_PASS;
            let rows = &self.rows[first..self.starts[adapter + 1].min(first + ROWS_PER_PASS)];
            let (to, first, stride) = (&self.reduced, first * self.stride, self.stride);
            dispatch(self.isa, Reduce { low_rank, tiles, rows, x: self.x, to, first, stride });
        }
    }

    /// Adds what the updates make of `rows` to their outputs in `columns` of `y`, rows of `row_width`, once all of `x Aᵀ` is
    /// there. Columns begin at a vector, and end at one or with the row.
    ///
    /// # Safety
    /// `y` and `row_width` are the values and the stride of the rows that [`Updates::begin`] was given; nobody else uses these
    /// columns of these rows meanwhile.
    pub(crate) unsafe fn add(&self, rows: Range<usize>, columns: &Range<usize>, (y, row_width): (&Shared<f32>, usize)) {
        wait_until(|| self.reduced_pieces.load(Ordering::Acquire) == self.pieces);
        for (low_rank, bounds) in self.of_adapters.iter().zip(self.starts.windows(2)) {
            let Some(low_rank) = *low_rank else { continue };
            let of_adapter = &self.rows[bounds[0]..bounds[1]];
            let before = |end: usize| of_adapter.partition_point(|&row| (row as usize) < end);
            let (first, end) = (before(rows.start), before(rows.end));
            for (pass, rows) in of_adapter[first..end].chunks(ROWS_PER_PASS).enumerate() {
                let slot = bounds[0] + first + pass * ROWS_PER_PASS;
                // SAFETY: there is room for every row, and whoever wrote there is over. (After a panic some of it is of an
                // earlier product; the caller gets the panic and no product.)
                let reduced = unsafe { self.reduced.read(slot * self.stride, rows.len() * self.stride) };
                let columns = columns.clone();
                dispatch(self.isa, Expand { low_rank, columns, rows, reduced, stride: self.stride, y, row_width });
            }
        }
    }
}

/// Counts a piece as over when it is dropped: after a panic, too, or who waits for it would for ever.
struct Over<'a>(&'a AtomicUsize);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_piece_is_over_after_a_panic_too() {
        let over = AtomicUsize::new(0);
        let panicked = catch_unwind(|| {
            let _over = Over(&over);
            panic!("in the middle of a piece");
        });
        assert!(panicked.is_err() && over.into_inner() == 1);
    }
}
