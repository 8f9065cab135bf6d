//! Quantised rows times packed weights.
//!
//! **Bits.** An output is reduced by one thread in ascending order of the blocks of 32 inputs, whatever the instruction set
//! and however many rows are computed together: `sum = fma(dot, scale_w x scale_x, sum)`, where the dot product of a block
//! is exact in integers; with minima also `sum = fma(minimum, scale_x x sum of quants, sum)`; with 16 weights to a scale the
//! two halves of a block one after the other. The bias is added last.

use std::ops::Range;

use crate::Isa;
use crate::activations::{Activations, Group, RowBlock, TOGETHER};
use crate::matrix::{Encoding, Matrix, PANEL, Part, SUPER_BLOCK};
use crate::pool::Pool;
use crate::rows::{BLOCK, Rows, Shared};
use crate::simd::{LANES, Op, Simd, dispatch};

/// Groups of rows that pass over a panel before the next panel is read: with 2,048 inputs the blocks of their 192 rows fill
/// half of a second level cache of 1 MiB.
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
        assert_eq!(y.width(), self.width(), "width of the outputs");
        assert_eq!(y.count(), x.rows(), "rows of the outputs");
        let (stride, limit) = (y.stride(), y.stride());
        self.run(pool, x, y.values_mut(), Shape { stride, limit, write });
    }

    /// `y = x W` into rows without padding, `[rows, width]`.
    pub fn multiply_into(&self, pool: &mut Pool, x: &Activations, y: &mut [f32]) {
        let width = self.width();
        assert_eq!(y.len(), x.rows() * width, "size of the outputs");
        self.run(pool, x, y, Shape { stride: width, limit: width, write: Write::Set });
    }

    fn run(&self, pool: &mut Pool, x: &Activations, y: &mut [f32], shape: Shape) {
        assert_eq!(x.width(), self.inputs(), "width of the inputs");
        let isa = pool.isa();
        let panels: usize = self.parts().iter().map(Part::panels).sum();
        let passes = x.groups().div_ceil(GROUPS_PER_PASS);
        let grain = panels.div_ceil(pool.threads() * SHARES_PER_THREAD).clamp(1, MOST_PANELS);
        let shares = panels.div_ceil(grain);
        let y = Shared::new(y);
        pool.split(passes * shares, 1, |_, items| {
            for item in items {
                let (pass, share) = (item / shares, item % shares);
                let groups = pass * GROUPS_PER_PASS..x.groups().min((pass + 1) * GROUPS_PER_PASS);
                let panels = share * grain..panels.min((share + 1) * grain);
                Share { matrix: self, panels, x, groups, y: &y, shape }.multiply(isa);
            }
        });
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

/// Bytes that weights are asked for ahead of their use: few rows are over before the next line has come from memory.
const PREFETCH: usize = 4096;

/// Rows that are computed together where registers are few ([`Simd::SUMS`]): a row has two sums, one of integers.
const FEW: usize = 4;

/// Panels that are claimed at once, at most.
const MOST_PANELS: usize = 64;

/// How outputs lie in memory.
#[derive(Clone, Copy)]
struct Shape {
    stride: usize,
    /// Elements of a row that may be written.
    limit: usize,
    write: Write,
}

impl Shape {
    /// Writes what one row and panel `panel` of a part give.
    ///
    /// # Safety
    /// They are the row and the panel of a [`Share`] that goes to `y`, and only this thread has it.
    #[inline(always)]
    unsafe fn write<S: Simd>(self, s: S, y: &Shared<f32>, row: usize, (part, panel): (&Part, usize), sum: S::F) {
        let Self { stride, limit, write } = self;
        let column = part.at + panel * PANEL;
        // SAFETY: inside the row, and no other share has this row and panel.
        let to = unsafe { y.part(row * stride + column, PANEL.min(limit - column)) };
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

    /// Writes what one row and panel `panel` of a part give.
    ///
    /// # Safety
    /// They are in this share.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    pub(crate) unsafe fn write<S: Simd>(&self, s: S, row: usize, panel: (&Part, usize), sum: S::F) {
        // SAFETY: the caller's promise; a share is one thread's.
        unsafe { self.shape.write(s, self.y, row, panel, sum) }
    }
}

impl Op for Share<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for panel in self.panels {
            let (part, panel) = self.matrix.part_of(panel);
            for group in self.groups.clone() {
                Tile { part, panel, group: self.x.group(group), y: self.y, shape: self.shape }.run(s);
            }
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
        if S::SUMS > TOGETHER || rows <= FEW {
            self.slots(s, panel, 0..rows);
        } else {
            // The panel is in the first cache when the others come to it.
            let half = rows.div_ceil(2);
            self.slots(s, panel, 0..half);
            self.slots(s, panel, half..rows);
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
        for (row, sum) in sums.into_iter().enumerate() {
            // SAFETY: the tile is in a share of this thread's.
            unsafe { self.shape.write(s, self.y, self.group.first + first + row, (self.part, self.panel), sum) };
        }
    }
}

/// The weights of one panel.
trait Panel: Copy {
    /// Adds block `block`'s part to the sums of `R` rows.
    fn block<S: Simd, const R: usize>(self, s: S, block: usize, x: &[RowBlock; R], sums: &mut [S::F; R]);
}

/// 32 weights to a half-precision scale, `L` lines to a tile.
#[derive(Clone, Copy)]
struct Halves<'a, const L: usize, const MIN: bool> {
    quants: *const u8,
    scales: &'a [[u16; PANEL]],
    minima: &'a [[u16; PANEL]],
}

impl<'a, const L: usize, const MIN: bool> Halves<'a, L, MIN> {
    #[inline(always)]
    fn of(part: &'a Part, panel: usize) -> Self {
        Self { quants: part.quants(panel), scales: part.half_scales(panel), minima: part.half_minima(panel) }
    }
}

impl<const L: usize, const MIN: bool> Panel for Halves<'_, L, MIN> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(self, s: S, block: usize, x: &[RowBlock; R], sums: &mut [S::F; R]) {
        let scale = s.load_f16(&self.scales[block]);
        // SAFETY: there are as many tiles as scales, and the block is one of them.
        let tile = unsafe { self.quants.add(block * L * 64) };
        if R <= 2 {
            for line in 0..L {
                s.prefetch(tile.wrapping_add(PREFETCH + line * 64));
            }
        }
        let dots = if L == 4 { nibbles(s, tile, x, !MIN) } else { bytes::<S, R, WHOLE>(s, tile, x) };
        add_dots(s, dots, scale, x, sums);
        if MIN {
            add_minimum::<S, R, WHOLE>(s, s.load_f16(&self.minima[block]), x, sums);
        }
    }
}

/// `G` scales to 32 weights, `L` lines to a tile.
#[derive(Clone, Copy)]
struct Wide<'a, const L: usize, const G: usize, const MIN: bool> {
    quants: *const u8,
    scales: &'a [[f32; PANEL]],
    minima: &'a [[f32; PANEL]],
}

impl<'a, const L: usize, const G: usize, const MIN: bool> Wide<'a, L, G, MIN> {
    #[inline(always)]
    fn of(part: &'a Part, panel: usize) -> Self {
        Self { quants: part.quants(panel), scales: part.scales(panel), minima: part.minima(panel) }
    }

    #[inline(always)]
    fn group<S: Simd, const R: usize, const PART: usize>(
        self,
        s: S,
        at: usize,
        dots: [S::I; R],
        x: &[RowBlock; R],
        sums: &mut [S::F; R],
    ) {
        let scale = s.load(&self.scales[at]);
        add_dots(s, dots, scale, x, sums);
        if MIN {
            add_minimum::<S, R, PART>(s, s.load(&self.minima[at]), x, sums);
        }
    }
}

impl<const L: usize, const G: usize, const MIN: bool> Panel for Wide<'_, L, G, MIN> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(self, s: S, block: usize, x: &[RowBlock; R], sums: &mut [S::F; R]) {
        assert!(block * G < self.scales.len());
        // SAFETY: there are as many tiles as scales for them, and the block is one of them.
        let tile = unsafe { self.quants.add(block * L * 64) };
        if G == 2 {
            let low = bytes::<S, R, 0>(s, tile, x);
            self.group::<S, R, 0>(s, 2 * block, low, x, sums);
            let high = bytes::<S, R, 1>(s, tile, x);
            self.group::<S, R, 1>(s, 2 * block + 1, high, x, sums);
        } else {
            let dots = if L == 4 { nibbles(s, tile, x, !MIN) } else { bytes::<S, R, WHOLE>(s, tile, x) };
            self.group::<S, R, WHOLE>(s, block, dots, x, sums);
        }
    }
}

/// 16 weights to a whole number times a common half-precision scale.
#[derive(Clone, Copy)]
struct SixBits<'a> {
    quants: *const u8,
    scales: &'a [[i8; PANEL]],
    supers: &'a [[u16; PANEL]],
}

impl<'a> SixBits<'a> {
    #[inline(always)]
    fn of(part: &'a Part, panel: usize) -> Self {
        Self { quants: part.quants(panel), scales: part.whole_scales(panel), supers: part.supers(panel) }
    }
}

impl Panel for SixBits<'_> {
    #[inline(always)]
    fn block<S: Simd, const R: usize>(self, s: S, block: usize, x: &[RowBlock; R], sums: &mut [S::F; R]) {
        let common = s.load_f16(&self.supers[block / (SUPER_BLOCK / BLOCK)]);
        assert!(2 * block + 1 < self.scales.len());
        // SAFETY: there are as many tiles of six lines as pairs of scales, and the block is one of them.
        let tile = unsafe { self.quants.add(block * 6 * 64) };
        if R <= 2 {
            for line in 0..6 {
                s.prefetch(tile.wrapping_add(PREFETCH + line * 64));
            }
        }
        for half in 0..2 {
            let scale = s.mul(common, s.load_i8(&self.scales[2 * block + half]));
            let mut dots = [s.begin_dots(0); R];
            for row in 0..R {
                // -128 times the sum, by 4: 32 is subtracted from each quant.
                dots[row] = s.begin_dots(x[row].half_minus128[half] >> 2);
            }
            for quad in 0..4 {
                // SAFETY: a tile of six bits has six lines; a block of a row has 8 x 4 quants.
                unsafe {
                    let (low, high) = s.nibbles(tile.add(64 * quad));
                    let top = s.bytes(tile.add(64 * (4 + half)));
                    let weights = s.six_bits(if half == 0 { low } else { high }, top, quad);
                    for row in 0..R {
                        let values = s.quad(x[row].quants.as_ptr().add(BLOCK / 2 * half + 4 * quad));
                        dots[row] = s.dot_nibbles(dots[row], weights, values);
                        if quad == 1 {
                            dots[row] = s.settle(dots[row]);
                        }
                    }
                }
            }
            add_dots(s, ended(s, dots), scale, x, sums);
        }
    }
}

/// All of a block, where 0 and 1 are its halves.
pub(crate) const WHOLE: usize = 2;

impl RowBlock {
    /// Scale times the sum of the quants of a part.
    #[inline(always)]
    fn sum<const PART: usize>(&self) -> f32 {
        if PART == WHOLE { self.sum } else { self.half_sums[PART] }
    }

    /// -128 times the sum of the quants of a part.
    #[inline(always)]
    fn minus128<const PART: usize>(&self) -> i32 {
        if PART == WHOLE { self.minus128 } else { self.half_minus128[PART] }
    }
}

/// Adds the dot products of `R` rows and the weights of one scale to the rows' sums.
#[inline(always)]
pub(crate) fn add_dots<S: Simd, const R: usize>(
    s: S,
    dots: [S::I; R],
    scale: S::F,
    x: &[RowBlock; R],
    sums: &mut [S::F; R],
) {
    for row in 0..R {
        let both = s.mul(scale, s.splat(x[row].scale));
        sums[row] = s.fma(s.float(dots[row]), both, sums[row]);
    }
}

/// Adds what the minimum of the same weights makes of the rows' sums of quants.
#[inline(always)]
pub(crate) fn add_minimum<S: Simd, const R: usize, const PART: usize>(
    s: S,
    minimum: S::F,
    x: &[RowBlock; R],
    sums: &mut [S::F; R],
) {
    for row in 0..R {
        sums[row] = s.fma(minimum, s.splat(x[row].sum::<PART>()), sums[row]);
    }
}

/// Dot products of a tile of nibbles with the rows; where `are_centred`, 8 is subtracted from each nibble.
#[inline(always)]
fn nibbles<S: Simd, const R: usize>(s: S, tile: *const u8, x: &[RowBlock; R], are_centred: bool) -> [S::I; R] {
    let mut dots = [s.begin_dots(0); R];
    if are_centred {
        for row in 0..R {
            dots[row] = s.begin_dots(x[row].minus8);
        }
    }
    for line in 0..turns::<S, R>(4) {
        // SAFETY: a tile of nibbles has four lines; a block of a row has 8 x 4 quants.
        unsafe {
            let (low, high) = s.nibbles(tile.add(64 * line));
            for row in 0..R {
                let quants = x[row].quants.as_ptr();
                dots[row] = s.dot_nibbles(dots[row], low, s.quad(quants.add(4 * line)));
                dots[row] = s.dot_nibbles(dots[row], high, s.quad(quants.add(BLOCK / 2 + 4 * line)));
            }
        }
    }
    ended(s, dots)
}

/// How often a loop turns: not for the compiler to know where the sums of `R` rows take all registers. It would unroll the loop
/// and do one row after the other, with all weights on the stack.
#[inline(always)]
fn turns<S: Simd, const R: usize>(count: usize) -> usize {
    if S::SUMS <= TOGETHER && R > 2 { std::hint::black_box(count) } else { count }
}

#[inline(always)]
fn ended<S: Simd, const R: usize>(s: S, dots: [S::D; R]) -> [S::I; R] {
    let mut ended = [s.splat_i(0); R];
    for row in 0..R {
        ended[row] = s.end_dots(dots[row]);
    }
    ended
}

/// Dot products of a part of a tile of bytes with the rows.
#[inline(always)]
fn bytes<S: Simd, const R: usize, const PART: usize>(s: S, tile: *const u8, x: &[RowBlock; R]) -> [S::I; R] {
    let mut dots = [s.splat_i(0); R];
    for row in 0..R {
        dots[row] = s.begin_bytes(x[row].minus128::<PART>());
    }
    let (first, lines) = if PART == WHOLE { (0, 8) } else { (4 * PART, 4) };
    for line in first..first + turns::<S, R>(lines) {
        // SAFETY: a tile of bytes has eight lines; a block of a row has 8 x 4 quants.
        unsafe {
            let weights = s.bytes(tile.add(64 * line));
            for row in 0..R {
                dots[row] = s.dot_bytes(dots[row], weights, s.quad(x[row].quants.as_ptr().add(4 * line)));
            }
        }
    }
    dots
}
