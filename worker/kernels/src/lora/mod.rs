//! Low-rank updates of linear layers: `y += scale (x Aᵀ) Bᵀ` in f32, each row with the update of its own adapter, or with
//! none. Called after the product with the layers' own weights, once for all layers that share their inputs.
//!
//! **Bits.** A row is computed alone: what shares the step does not show. A row of A is reduced in 16 lanes, lane l over
//! the inputs k = l (mod 16) in ascending order with fused multiply-adds from zero, folded as [`Simd::sum`] does. An output
//! ascends over the ranks with fused multiply-adds from zero, `d = fma(reduced, b, d)`; then `y = fma(scale, d, y)`. What
//! packing may round is said by [`Precision`]; how wide the numbers are stored does not show otherwise, for widening is exact,
//! and so are powers of two.
//!
//! [`Simd::sum`]: crate::simd::Simd::sum

mod expand;
mod low_rank;
mod numbers;
mod reduce;

use std::ops::Range;

use self::expand::Expand;
pub use self::low_rank::{Factors, LowRank, Unpacked};
pub use self::numbers::Precision;
use self::reduce::Reduce;
use crate::pool::Pool;
use crate::rows::{Rows, Shared};
use crate::simd::{LANES, dispatch};

/// Rows of one adapter that pass over its update before the next rows do: of 576 inputs they fill a first level cache
/// twice, of 2,048 half a second level cache of 512 KiB.
const ROWS_PER_PASS: usize = 32;

/// Rows that meet a tile or a panel together where there are registers for their sums: numbers that are kept in 16 bits are
/// widened once for all of them.
const FOUR: usize = 4;

/// Rows of an adapter at most whose update is worked off in one go: with more of them what counts is not how it is read, but
/// how the rows' inputs and outputs are.
const ROWS_OF_WHOLE: usize = 8;

/// Shares of the work per thread: a thread that the system takes away for a while delays a step by a part of its share.
const SHARES_PER_THREAD: usize = 2;

/// Bytes of A or B, each counted for every row that meets them, that another thread is worth waking for: a microsecond.
const WORTH_SHARING: usize = 64 << 10;

/// The operator, with the rows of a step by adapter and its working memory.
#[derive(Debug, Default)]
pub struct Lora {
    /// Whether each row of the step has an adapter.
    has: Vec<bool>,
    /// The rows that have one, those of the same adapter side by side.
    rows: Vec<u32>,
    /// Where the rows of each adapter begin in `rows`, and where the last ones end.
    starts: Vec<usize>,
    /// The address of each adapter's update, zero without one.
    updates: Vec<usize>,
    /// For each adapter, pieces of work before its own; where the last ones end.
    items: Vec<usize>,
    /// `x Aᵀ` of each of `rows`, in rows of whole lines.
    reduced: Vec<f32>,
}

/// Some units of an update and the rows that meet them: a piece of work.
struct Run<'a> {
    low_rank: &'a LowRank,
    units: Range<usize>,
    /// Places in [`Lora::rows`].
    slots: Range<usize>,
}

/// What a step's updates are cut into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Tiles of A.
    Tile,
    /// Panels of B, once all tiles are done.
    Panel,
    /// All tiles, then all panels: nobody waits in between, and an update is read in one go.
    Whole,
}

impl Unit {
    fn count(self, update: &LowRank) -> usize {
        match self {
            Self::Tile => update.tiles(),
            Self::Panel => update.panels(),
            Self::Whole => 1,
        }
    }

    fn bytes(self, update: &LowRank) -> usize {
        match self {
            Self::Tile => update.bytes_of_a(),
            Self::Panel => update.bytes_of_b(),
            Self::Whole => update.bytes(),
        }
    }

    /// How many shares `items` units become, which together read `bytes`.
    fn shares(self, items: usize, bytes: usize, threads: usize) -> usize {
        let most = if self == Self::Whole { items } else { threads * SHARES_PER_THREAD };
        most.min(bytes / WORTH_SHARING).max(1)
    }
}

fn address(update: &LowRank) -> usize {
    std::ptr::from_ref(update).addr()
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
        self.items.clone_from(&self.starts);
        self.rows.resize(self.starts[self.adapters()], 0);
        let mut row = 0;
        for (count, adapter) in spans {
            if let Some(adapter) = adapter {
                let begin = self.items[adapter];
                self.items[adapter] += count;
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

    /// Adds to the rows of `y` what the updates make of the rows of `x`: `update_of` says which one an adapter has here, the
    /// same whenever it is asked. `x` is read at rows that have an adapter, and only there.
    pub fn add<'a>(
        &mut self,
        pool: &mut Pool,
        update_of: impl Fn(usize) -> Option<&'a LowRank> + Sync,
        x: &Rows,
        y: &mut Rows,
    ) {
        let Some(most_ranks) = self.look_up(&update_of, x, y) else { return };
        let stride = most_ranks.next_multiple_of(LANES);
        let length = self.rows.len() * stride;
        if length > self.reduced.len() {
            self.reduced.resize(length, 0.0);
        }
        let isa = pool.isa();
        let mut reduced = std::mem::take(&mut self.reduced);
        let to = Shared::new(&mut reduced);
        let reduce = |lora: &Self, low_rank: &LowRank, tiles, slots: Range<usize>| {
            let (first, rows) = (slots.start * stride, &lora.rows[slots]);
            dispatch(isa, Reduce { low_rank, tiles, rows, x, to: &to, first, stride });
        };
        let (row_width, y) = (y.stride(), Shared::new(y.values_mut()));
        let expand = |lora: &Self, low_rank: &LowRank, panels, slots: Range<usize>| {
            let (first, length, rows) = (slots.start * stride, slots.len() * stride, &lora.rows[slots]);
            // SAFETY: there is room for every row, and what is read was written by this thread or before the last split;
            // nobody writes there now.
            let reduced = unsafe { std::slice::from_raw_parts(to.pointer(first), length) };
            dispatch(isa, Expand { low_rank, panels, rows, reduced, stride, y: &y, row_width });
        };
        if self.is_for_whole_updates(pool.threads()) {
            self.split(pool, Unit::Whole, &update_of, |lora, Run { low_rank, slots, .. }| {
                reduce(lora, low_rank, 0..low_rank.tiles(), slots.clone());
                expand(lora, low_rank, 0..low_rank.panels(), slots);
            });
        } else {
            self.split(pool, Unit::Tile, &update_of, |lora, run| reduce(lora, run.low_rank, run.units, run.slots));
            self.split(pool, Unit::Panel, &update_of, |lora, run| expand(lora, run.low_rank, run.units, run.slots));
        }
        self.reduced = reduced;
    }

    /// Whether threads had better take whole updates: each has few rows, and all threads are busy for eight ninths of the
    /// time at least, if the updates are of one size.
    fn is_for_whole_updates(&self, threads: usize) -> bool {
        let mut updates = 0;
        for adapter in (0..self.adapters()).filter(|&adapter| self.updates[adapter] > 0) {
            if self.count_of(adapter) > ROWS_OF_WHOLE {
                return false;
            }
            updates += 1;
        }
        8 * usize::next_multiple_of(updates, threads) <= 9 * updates
    }

    /// Rows of an adapter.
    fn count_of(&self, adapter: usize) -> usize {
        self.starts[adapter + 1] - self.starts[adapter]
    }

    /// How often an adapter's rows pass over its update.
    fn passes(&self, adapter: usize) -> usize {
        self.count_of(adapter).div_ceil(ROWS_PER_PASS)
    }

    /// Notes each adapter's update and refuses what does not fit; the most ranks of one, `None` if no adapter has any.
    fn look_up<'a>(&mut self, update_of: &impl Fn(usize) -> Option<&'a LowRank>, x: &Rows, y: &Rows) -> Option<usize> {
        self.updates.clear();
        let mut most = None;
        for adapter in 0..self.adapters() {
            let update = update_of(adapter);
            self.updates.push(update.map_or(0, address));
            most = most.max(update.map(|update| update.check(x, y)));
        }
        let rows = self.count();
        assert!(most.is_none() || (x.count(), y.count()) == (rows, rows), "rows of the step");
        most
    }

    /// Calls `work` with runs that together are every unit of every update with every row, on all threads.
    fn split<'a>(
        &mut self,
        pool: &mut Pool,
        unit: Unit,
        update_of: &(impl Fn(usize) -> Option<&'a LowRank> + Sync),
        work: impl Fn(&Self, Run<'a>) + Sync,
    ) {
        let (mut items, mut cost) = (0, 0);
        self.items.clear();
        for adapter in 0..self.adapters() {
            self.items.push(items);
            if let Some(update) = self.update(adapter, update_of) {
                items += unit.count(update) * self.passes(adapter);
                cost += unit.bytes(update) * self.count_of(adapter);
            }
        }
        self.items.push(items);
        let shares = unit.shares(items, cost, pool.threads());
        let lora = &*self;
        pool.split(items, items.div_ceil(shares), |_, mut range| {
            let mut adapter = lora.items.partition_point(|&before| before <= range.start) - 1;
            while !range.is_empty() {
                if let Some(update) = lora.update(adapter, update_of).filter(|_| range.start < lora.items[adapter + 1])
                {
                    let run = lora.run(adapter, (update, unit.count(update)), &range);
                    range.start += run.units.len();
                    work(lora, run);
                } else {
                    adapter += 1;
                }
            }
        });
    }

    /// The update of an adapter that [`Lora::look_up`] has found. What threads may write where rests on its shape.
    fn update<'a>(&self, adapter: usize, update_of: &impl Fn(usize) -> Option<&'a LowRank>) -> Option<&'a LowRank> {
        let update = update_of(adapter);
        assert_eq!(update.map_or(0, address), self.updates[adapter], "an adapter's update is always the same");
        update
    }

    /// The work that `range` begins with, which is an adapter's: as many units as it has left for the same rows.
    fn run<'a>(&self, adapter: usize, (low_rank, units): (&'a LowRank, usize), range: &Range<usize>) -> Run<'a> {
        let within = range.start - self.items[adapter];
        let (pass, first) = (within / units, within % units);
        let begin = self.starts[adapter] + pass * ROWS_PER_PASS;
        let end = self.starts[adapter + 1].min(begin + ROWS_PER_PASS);
        Run { low_rank, units: first..units.min(first + range.len()), slots: begin..end }
    }
}
