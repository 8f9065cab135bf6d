//! Quantised rows times packed weights.
//!
//! **Bits.** An output is reduced by one thread in ascending order of the blocks of 32 inputs, whatever the instruction set
//! and however many rows are computed together: `sum = fma(dot, scale_w x scale_x, sum)`, where the dot product of a block
//! is exact in integers; with minima also `sum = fma(minimum, scale_x x sum of quants, sum)`; with 16 weights to a scale the
//! two halves of a block one after the other. The bias is added last; what adapters add comes after it ([`crate::lora`]).

mod panels;

use std::ops::Range;

use self::panels::{Halves, Panel, SixBits, Wide};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use self::panels::{WHOLE, add_dots, add_minimum};
use crate::Isa;
use crate::activations::{Activations, Group, TOGETHER};
use crate::lora::{self, Adding, Updates};
use crate::matrix::{Encoding, Matrix, PANEL, Part};
use crate::pool::Pool;
use crate::rows::{Rows, Shared};
use crate::simd::{LANES, Op, Simd, dispatch};

/// Groups of rows of a share, at most. On tiles all of them pass over a panel before the next panel is read: with 2,048 inputs
/// the blocks of their 192 rows fill less than half of a second level cache of 2 MiB, which CPUs with tiles have.
pub(crate) const GROUPS_PER_PASS: usize = 192 / TOGETHER;

/// Shares of the panels per thread: a thread that the system takes away for a while delays a layer by a part of its share.
const SHARES_PER_THREAD: usize = 6;

/// Whether outputs replace what is there or are added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Replace.
    Set,
    /// Add: `y + x W`, where the product is complete before it is added.
    Add,
}

impl Matrix {
    /// `y = x W` or `y += x W`: `x` is `[rows, inputs]`, `y` becomes `[rows, width]`.
    pub fn multiply(&self, pool: &mut Pool, x: &Activations, y: &mut Rows, write: Write) {
        self.multiply_adapted(pool, x, y, write, None);
    }

    /// [`Matrix::multiply`], and then `y` plus what the updates make of their own inputs.
    ///
    /// # Panics
    /// Where lengths or counts of rows contradict each other.
    pub fn multiply_adapted(
        &self,
        pool: &mut Pool,
        x: &Activations,
        y: &mut Rows,
        write: Write,
        mut updates: Option<Updates<'_>>,
    ) {
        assert_eq!(y.width(), self.width(), "width of the outputs");
        assert_eq!(y.count(), x.rows(), "rows of the outputs");
        let adding = updates.as_mut().and_then(|updates| updates.begin(pool, y));
        let (stride, limit) = (y.stride(), y.stride());
        self.run(pool, x, y.values_mut(), Shape { stride, limit, write }, adding.as_ref());
    }

    /// `y = x W` into rows without padding, `[rows, width]`.
    pub fn multiply_into(&self, pool: &mut Pool, x: &Activations, y: &mut [f32]) {
        let width = self.width();
        assert_eq!(y.len(), x.rows() * width, "size of the outputs");
        self.run(pool, x, y, Shape { stride: width, limit: width, write: Write::Set }, None);
    }

    fn run(&self, pool: &mut Pool, x: &Activations, y: &mut [f32], shape: Shape, adding: Option<&Adding<'_>>) {
        assert_eq!(x.width(), self.inputs(), "width of the inputs");
        let isa = pool.isa();
        let panels: usize = self.parts().iter().map(Part::panels).sum();
        let passes = x.groups().div_ceil(GROUPS_PER_PASS);
        let mut grain = panels.div_ceil(pool.threads() * SHARES_PER_THREAD).clamp(1, MOST_PANELS);
        if adding.is_some() {
            // Whole panels of B, or else whole lines of one: two vectors of 16 bits.
            let whole = if grain < lora::PANEL { lora::PANEL / 2 } else { lora::PANEL };
            grain = (grain / whole * whole).max(whole);
        }
        let (pieces, shares) = (adding.map_or(0, Adding::pieces), panels.div_ceil(grain));
        let y = Shared::new(y);
        pool.split(pieces + passes * shares, 1, |_, items| {
            for item in items {
                if let Some(adding) = adding.filter(|_| item < pieces) {
                    // SAFETY: an item is one thread's.
                    unsafe { adding.reduce(item) };
                    continue;
                }
                let (pass, share) = ((item - pieces) / shares, (item - pieces) % shares);
                let groups = pass * GROUPS_PER_PASS..x.groups().min((pass + 1) * GROUPS_PER_PASS);
                let panels = share * grain..panels.min((share + 1) * grain);
                let rows = x.rows_of(groups.start).start..x.rows_of(groups.end - 1).end;
                let columns = self.column_of(panels.start)..self.column_of(panels.end);
                Share { matrix: self, panels, x, groups, y: &y, shape }.multiply(isa);
                if let Some(adding) = adding {
                    // SAFETY: items differ in rows or columns, and pieces were claimed before shares.
                    unsafe { adding.add(rows, &columns, (&y, shape.stride)) };
                }
            }
        });
    }

    /// Where the outputs of a panel begin in a row; beyond the last panel, where the row ends.
    fn column_of(&self, mut panel: usize) -> usize {
        for part in self.parts() {
            if panel < part.panels() {
                return column((part, panel));
            }
            panel -= part.panels();
        }
        self.width()
    }

    pub(crate) fn part_of(&self, mut panel: usize) -> (&Part, usize) {
        for part in self.parts() {
            if panel < part.panels() {
                return (part, panel);
            }
            panel -= part.panels();
        }
        unreachable!("panels are counted over the same parts")
    }
}

/// Rows that are computed together where registers are few ([`Simd::SUMS`]): a row has two sums, one of integers.
const FEW: usize = 4;

/// Bytes of weights that pass over a group of rows before the next group comes: a quarter of a second level cache of 512 KiB.
const PANEL_BYTES: usize = 128 << 10;

/// Panels that are claimed at once, at most.
const MOST_PANELS: usize = 64;

/// Where the outputs of panel `panel` of a part begin in a row.
#[inline(always)]
fn column((part, panel): (&Part, usize)) -> usize {
    part.at + panel * PANEL
}

/// How outputs lie in memory.
#[derive(Clone, Copy)]
struct Shape {
    stride: usize,
    /// Elements of a row that may be written.
    limit: usize,
    write: Write,
}

impl Shape {
    /// Writes what rows, at most `R`, and panel `panel` of a part give.
    ///
    /// # Safety
    /// They are rows and the panel of a [`Share`] that goes to `y`, and only this thread has it.
    #[inline(always)]
    unsafe fn write<S: Simd, const R: usize>(
        self,
        s: S,
        y: &Shared<f32>,
        rows: Range<usize>,
        panel: (&Part, usize),
        sums: &[S::F; R],
    ) {
        let Self { stride, limit, write } = self;
        let column = column(panel);
        let count = PANEL.min(limit - column);
        for (row, &sum) in rows.zip(sums) {
            // SAFETY: inside the row, and no other share has this row and panel.
            let to = unsafe { y.part(row * stride + column, count) };
            if let Ok(to) = <&mut [f32; LANES]>::try_from(&mut *to) {
                let sum = if write == Write::Add { s.add(s.load(to), sum) } else { sum };
                s.store(sum, to);
            } else {
                let mut lanes = [0.0; LANES];
                s.store(sum, &mut lanes);
                for (to, lane) in to.iter_mut().zip(lanes) {
                    *to = if write == Write::Add { *to + lane } else { lane };
                }
            }
        }
    }
}

/// Some panels times the rows of some groups, at most [`GROUPS_PER_PASS`]: what a thread claims.
pub(crate) struct Share<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) panels: Range<usize>,
    pub(crate) x: &'a Activations,
    pub(crate) groups: Range<usize>,
    y: &'a Shared<f32>,
    shape: Shape,
}

impl Share<'_> {
    fn multiply(self, isa: Isa) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if isa.has_tiles() && self.x.rows_of_a_group() >= crate::amx::LEAST_ROWS {
            // SAFETY: an `Isa` is only made for instructions that the CPU has.
            return unsafe { crate::amx::multiply(self) };
        }
        dispatch(isa, self);
    }

    /// Where a row's outputs of panel `panel` of a part go.
    ///
    /// # Safety
    /// They are in this share.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    pub(crate) unsafe fn output(&self, row: usize, panel: (&Part, usize)) -> *const f32 {
        // SAFETY: the caller's promise: inside the outputs.
        unsafe { self.y.pointer(row * self.shape.stride + column(panel)) }
    }

    /// Writes what rows, at most `R`, and panel `panel` of a part give.
    ///
    /// # Safety
    /// They are in this share.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd, const R: usize>(
        &self,
        s: S,
        rows: Range<usize>,
        panel: (&Part, usize),
        sums: &[S::F; R],
    ) {
        // SAFETY: the caller's promise; a share is one thread's.
        unsafe { self.shape.write(s, self.y, rows, panel, sums) }
    }
}

impl Op for Share<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Blocks of rows are larger than tiles of weights: a group's stay in the first cache while some panels pass over them,
        // and the panels in the second for the next group.
        let mut panels = self.panels;
        while !panels.is_empty() {
            let (part, first) = self.matrix.part_of(panels.start);
            let bytes = size_of_val(part.lines(first)).max(1);
            let count = panels.len().min(part.panels() - first).min((PANEL_BYTES / bytes).max(1));
            for group in self.groups.clone() {
                for panel in first..first + count {
                    Tile { part, panel, group: self.x.group(group), y: self.y, shape: self.shape }.run(s);
                }
            }
            panels.start += count;
        }
    }
}

/// One panel times the rows of one group.
struct Tile<'a> {
    part: &'a Part,
    panel: usize,
    group: Group<'a>,
    y: &'a Shared<f32>,
    shape: Shape,
}

impl Tile<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.part.encoding {
            Encoding::Nibbles => self.with(s, Halves::<4, false>::of(self.part, self.panel)),
            Encoding::NibblesMin => self.with(s, Halves::<4, true>::of(self.part, self.panel)),
            Encoding::NibblesWideMin => self.with(s, Wide::<4, 1, true>::of(self.part, self.panel)),
            Encoding::Bytes => self.with(s, Halves::<8, false>::of(self.part, self.panel)),
            Encoding::BytesWideMin => self.with(s, Wide::<8, 1, true>::of(self.part, self.panel)),
            Encoding::HalfBytes => self.with(s, Wide::<8, 2, false>::of(self.part, self.panel)),
            Encoding::HalfBytesMin => self.with(s, Wide::<8, 2, true>::of(self.part, self.panel)),
            Encoding::SixBits => self.with(s, SixBits::of(self.part, self.panel)),
        }
    }

    #[inline(always)]
    fn with<S: Simd, P: Panel>(&self, s: S, panel: P) {
        let rows = self.group.rows;
        // The panel is in the first cache when the second half comes to it.
        let together = if S::SUMS > TOGETHER || rows <= FEW { rows } else { rows.div_ceil(2) };
        let mut first = 0;
        while first < rows {
            self.slots(s, panel, first..rows.min(first + together));
            first += together;
        }
    }

    #[inline(always)]
    fn slots<S: Simd, P: Panel>(&self, s: S, panel: P, slots: Range<usize>) {
        match slots.len() {
            1 => self.rows::<S, P, 1>(s, panel, slots.start),
            2 => self.rows::<S, P, 2>(s, panel, slots.start),
            3 => self.rows::<S, P, 3>(s, panel, slots.start),
            4 => self.rows::<S, P, FEW>(s, panel, slots.start),
            _ if S::SUMS <= TOGETHER => unreachable!("more than {FEW} rows are halved"),
            5 => self.rows::<S, P, 5>(s, panel, slots.start),
            6 => self.rows::<S, P, 6>(s, panel, slots.start),
            7 => self.rows::<S, P, 7>(s, panel, slots.start),
            _ => self.rows::<S, P, TOGETHER>(s, panel, slots.start),
        }
    }

    /// The rows in the slots from `first` on.
    #[inline(always)]
    fn rows<S: Simd, P: Panel, const R: usize>(&self, s: S, panel: P, first: usize) {
        let mut sums = [s.splat(0.0); R];
        for (block, x) in self.group.blocks().enumerate() {
            let x = x[first..].first_chunk().expect("slots of a group");
            panel.block(s, block, x, &mut sums);
        }
        if let Some(bias) = self.part.bias(self.panel) {
            let bias = s.load(bias);
            for sum in &mut sums {
                *sum = s.add(*sum, bias);
            }
        }
        let first = self.group.first + first;
        // SAFETY: the tile is in a share of this thread's.
        unsafe { self.shape.write(s, self.y, first..first + R, (self.part, self.panel), &sums) };
    }
}
