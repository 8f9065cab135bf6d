//! Rows quantised to int8, the left side of every matmul.
//!
//! A block of 32 values has the scale amax / 127; a value becomes value x (127 / amax), rounded half to even. A block whose
//! amax is below 2^-100 is zero; one with a value that is not finite has the scale NaN, so that the damage shows in what is
//! computed from it and nowhere else.

use std::ops::Range;

use crate::lora::Lora;
use crate::pool::Pool;
use crate::rows::{BLOCK, Rows, Shared};
use crate::simd::{LANES, Op, Simd, dispatch};
use crate::vector;

/// Rows that a matmul computes together, and whose blocks lie side by side.
pub(crate) const TOGETHER: usize = 8;

/// Below this a block is zero: its reciprocal would leave f32.
const SMALLEST: f32 = f32::from_bits((127 - 100) << 23);

/// 32 inputs of a row, and what products with them ask for: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct RowBlock {
    pub(crate) quants: [i8; BLOCK],
    pub(crate) scale: f32,
    /// Scale times the sum of the quants; then the same of each half of the block, for weights with 16 to a scale.
    pub(crate) sum: f32,
    pub(crate) half_sums: [f32; 2],
    /// -8 and -128 times the sum of the quants; then -128 times that of each half.
    pub(crate) minus8: i32,
    pub(crate) minus128: i32,
    pub(crate) half_minus128: [i32; 2],
}

const _: () = assert!(size_of::<RowBlock>() == ROW_BLOCK);

/// Bytes from a row's block to that of the next row.
pub(crate) const ROW_BLOCK: usize = 64;

/// The same 32 inputs of up to [`TOGETHER`] rows.
pub(crate) type RowBlocks = [RowBlock; TOGETHER];

const ZERO: RowBlock = RowBlock {
    quants: [0; BLOCK],
    scale: 0.0,
    sum: 0.0,
    half_sums: [0.0; 2],
    minus8: 0,
    minus128: 0,
    half_minus128: [0; 2],
};

/// Groups whose blocks lie side by side, where there are as many: their rows are then a row's block apart all through, which is
/// how a tile takes sixteen of them.
pub(crate) const GROUPS_ABREAST: usize = 2;

/// Quantised rows, in groups of up to eight of about equal size: eight rows and one more are five and four.
#[derive(Debug)]
pub struct Activations {
    width: usize,
    rows: usize,
    /// Rows of a group; the last may have fewer.
    per_group: usize,
    /// `[groups / abreast, blocks of a row, groups abreast]`
    blocks: Vec<RowBlocks>,
}

/// Where the values that are quantised go as they are: adapters ask for them. Only the rows that have an adapter are written.
#[derive(Debug)]
pub struct Kept<'a> {
    /// Becomes as many rows as are quantised, of the same width.
    pub rows: &'a mut Rows,
    /// Knows which rows have an adapter.
    pub lora: &'a Lora,
}

/// The rows of one group.
pub(crate) struct Group<'a> {
    /// Index of its first row.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Begins with the group's first block; the others are [`Group::stride`] apart.
    blocks: &'a [RowBlocks],
    stride: usize,
}

impl<'a> Group<'a> {
    /// One for each block of a row.
    #[inline(always)]
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &'a RowBlocks> {
        self.blocks.iter().step_by(self.stride)
    }
}

impl Activations {
    /// No rows yet, of `width` values.
    pub fn new(width: usize) -> Self {
        Self { width, rows: 0, per_group: 1, blocks: Vec::new() }
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn row_blocks(&self) -> usize {
        self.width.div_ceil(BLOCK)
    }

    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(self.per_group)
    }

    /// Rows of every group but the last, which may have fewer.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(crate) fn rows_of_a_group(&self) -> usize {
        self.per_group
    }

    /// Groups that lie side by side: one, if there is only one.
    #[inline(always)]
    pub(crate) fn abreast(&self) -> usize {
        GROUPS_ABREAST.min(self.groups())
    }

    /// The rows of a group; none behind the last.
    #[inline(always)]
    pub(crate) fn rows_of(&self, group: usize) -> Range<usize> {
        let first = group * self.per_group;
        first..self.rows.min(first + self.per_group)
    }

    /// The blocks of all groups from `group` on, `[groups / abreast, blocks of a row, groups abreast]`, and how many those of the
    /// groups abreast are; `group` is the first of such.
    #[inline(always)]
    pub(crate) fn blocks_from(&self, group: usize) -> (&[RowBlocks], usize) {
        let length = self.row_blocks() * self.abreast();
        (&self.blocks[group / self.abreast() * length..], length)
    }

    #[inline(always)]
    pub(crate) fn group(&self, index: usize) -> Group<'_> {
        let (rows, stride) = (self.rows_of(index), self.abreast());
        let (blocks, length) = self.blocks_from(index);
        Group { first: rows.start, rows: rows.len(), blocks: &blocks[..length][index % stride..], stride }
    }

    /// Makes it `rows` rows of any content. Memory is kept for the largest count so far.
    fn resize(&mut self, rows: usize) {
        self.rows = rows;
        self.per_group = rows.div_ceil(rows.div_ceil(TOGETHER).max(1)).max(1);
        let blocks = self.groups().next_multiple_of(self.abreast().max(1)) * self.row_blocks();
        if blocks > self.blocks.len() {
            self.blocks.resize(blocks, [ZERO; TOGETHER]);
        }
    }

    /// Quantises `x` as it is.
    pub fn quantise(&mut self, pool: &mut Pool, x: &Rows) {
        self.fill(pool, x, Source::Plain, None);
    }

    /// Quantises the RMS norms of `x`: each row times 1 / sqrt(mean square + eps), times `weights`, `[padded(width)]` with
    /// zeros at its end. The squares are summed in 16 lanes, folded in halves.
    pub fn quantise_normed(
        &mut self,
        pool: &mut Pool,
        x: &Rows,
        (weights, eps): (&[f32], f32),
        kept: Option<Kept<'_>>,
    ) {
        assert_eq!(weights.len(), x.stride(), "weights of the norm");
        self.fill(pool, x, Source::Norm { weights, length: x.width(), eps }, kept);
    }

    /// Quantises silu(gate) x up of rows that hold `[padded(width)]` gates and then as many ups.
    pub fn quantise_gated(&mut self, pool: &mut Pool, x: &Rows, kept: Option<Kept<'_>>) {
        assert_eq!(x.stride(), 2 * self.row_blocks() * BLOCK, "gates and ups");
        self.fill(pool, x, Source::Gated, kept);
    }

    fn fill(&mut self, pool: &mut Pool, x: &Rows, source: Source<'_>, kept: Option<Kept<'_>>) {
        if !matches!(source, Source::Gated) {
            assert_eq!(x.width(), self.width, "width of the rows");
        }
        self.resize(x.count());
        let (isa, row_blocks, per_group, stride) = (pool.isa(), self.row_blocks(), self.per_group, self.abreast());
        let blocks = Shared::new(&mut self.blocks);
        let kept = kept.map(|kept| {
            assert_eq!((kept.rows.width(), kept.lora.count()), (self.width, x.count()), "rows that are kept");
            kept.rows.resize(x.count());
            (kept.lora, Shared::new(kept.rows.values_mut()))
        });
        // One row of a small model takes a microsecond: not worth another thread.
        let grain = (ROW_GRAIN / x.stride()).max(1);
        pool.split(x.count(), grain, |_, rows| {
            for row in rows {
                let length = row_blocks * BLOCK;
                let kept = kept.as_ref().filter(|(lora, _)| lora.has(row)).map(|(_, kept)| {
                    // SAFETY: each row is one thread's, and there are as many as are quantised.
                    unsafe { kept.part(row * length, length) }
                });
                let (group, slot) = (row / per_group, row % per_group);
                let first = group / stride * stride * row_blocks + group % stride;
                let to = Target { blocks: &blocks, first, stride, slot, kept };
                dispatch(isa, Quantise { x: x.padded_row(row), row_blocks, source, to });
            }
        });
    }
}

/// Blocks of a row that are quantised together: the lanes of several vectors are folded in little more time than those of one.
const AT_ONCE: usize = 4;

/// Elements of rows that one thread quantises in one go, at least.
const ROW_GRAIN: usize = 2048;

/// Where the values come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Plain,
    Norm { weights: &'a [f32], length: usize, eps: f32 },
    Gated,
}

/// A row's place among the blocks.
struct Target<'a> {
    blocks: &'a Shared<RowBlocks>,
    first: usize,
    stride: usize,
    slot: usize,
    /// The row of [`Kept`], padded.
    kept: Option<&'a mut [f32]>,
}

/// One row.
struct Quantise<'a> {
    x: &'a [f32],
    row_blocks: usize,
    source: Source<'a>,
    to: Target<'a>,
}

impl Op for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (x, _) = self.x.as_chunks::<LANES>();
        match self.source {
            Source::Plain => self.with(s, &Plain(x)),
            Source::Norm { weights, length, eps } => {
                let scale = vector::rms_scale(s, x, length, eps);
                self.with(s, &Normed { x, weights: weights.as_chunks().0, scale });
            }
            Source::Gated => {
                let (gates, ups) = x.split_at(2 * self.row_blocks);
                self.with(s, &Gated { gates, ups });
            }
        }
    }
}

impl Quantise<'_> {
    #[inline(always)]
    fn with<S: Simd, V: Values>(&mut self, s: S, values: &V) {
        let mut block = 0;
        while block + AT_ONCE <= self.row_blocks {
            let mut of_blocks = [[s.splat(0.0); 2]; AT_ONCE];
            for within in 0..AT_ONCE {
                of_blocks[within] = values.block(s, block + within);
            }
            self.to.write(s, block, of_blocks);
            block += AT_ONCE;
        }
        while block < self.row_blocks {
            self.to.write(s, block, [values.block(s, block)]);
            block += 1;
        }
    }
}

/// The values of a row.
trait Values {
    /// Those of a block.
    fn block<S: Simd>(&self, s: S, block: usize) -> [S::F; 2];
}

struct Plain<'a>(&'a [[f32; LANES]]);

impl Values for Plain<'_> {
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: usize) -> [S::F; 2] {
        [s.load(&self.0[2 * block]), s.load(&self.0[2 * block + 1])]
    }
}

struct Normed<'a> {
    x: &'a [[f32; LANES]],
    weights: &'a [[f32; LANES]],
    scale: f32,
}

impl Normed<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&self, s: S, at: usize) -> S::F {
        s.mul(s.mul(s.load(&self.x[at]), s.splat(self.scale)), s.load(&self.weights[at]))
    }
}

impl Values for Normed<'_> {
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: usize) -> [S::F; 2] {
        [self.vector(s, 2 * block), self.vector(s, 2 * block + 1)]
    }
}

struct Gated<'a> {
    gates: &'a [[f32; LANES]],
    ups: &'a [[f32; LANES]],
}

impl Gated<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&self, s: S, at: usize) -> S::F {
        vector::swiglu(s, s.load(&self.gates[at]), s.load(&self.ups[at]))
    }
}

impl Values for Gated<'_> {
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, block: usize) -> [S::F; 2] {
        [self.vector(s, 2 * block), self.vector(s, 2 * block + 1)]
    }
}

/// What a block of `amax` as its largest value is scaled with: its scale, and what its values are multiplied by.
#[inline(always)]
fn scale_of(amax: f32) -> (f32, f32) {
    if !amax.is_finite() {
        (f32::NAN, 0.0)
    } else if amax < SMALLEST {
        (0.0, 0.0)
    } else {
        (amax / 127.0, 127.0 / amax)
    }
}

impl Target<'_> {
    /// Quantises `N` blocks of the row, from block `first` on.
    #[inline(always)]
    fn write<S: Simd, const N: usize>(&mut self, s: S, first: usize, values: [[S::F; 2]; N]) {
        if let Some(kept) = &mut self.kept {
            let (kept, _) = kept.as_chunks_mut::<LANES>();
            for within in 0..N {
                s.store(values[within][0], &mut kept[2 * (first + within)]);
                s.store(values[within][1], &mut kept[2 * (first + within) + 1]);
            }
        }
        let size = s.splat_i(0x7fff_ffff);
        let mut sizes = [s.splat_i(0); N];
        for within in 0..N {
            let [low, high] = values[within];
            sizes[within] = s.max_i(s.and_i(s.bits(low), size), s.and_i(s.bits(high), size));
        }
        let largest = s.greatest_of_each(sizes);
        let (mut scales, mut quants, mut halves) = ([0.0; N], [[0; BLOCK]; N], [[s.splat_i(0); N]; 2]);
        for within in 0..N {
            let amax = f32::from_bits(largest[within].cast_unsigned());
            let (scale, inverse) = scale_of(amax);
            scales[within] = scale;
            let (to, _) = quants[within].as_chunks_mut::<LANES>();
            for half in 0..2 {
                let mut rounded = s.round(s.mul(values[within][half], s.splat(inverse)));
                if !amax.is_finite() {
                    rounded = s.splat_i(0);
                }
                halves[half][within] = rounded;
                s.store_i8(rounded, &mut to[half]);
            }
        }
        let sums = [s.sum_of_each(halves[0]), s.sum_of_each(halves[1])];
        for within in 0..N {
            let (scale, sums) = (scales[within], [sums[0][within], sums[1][within]]);
            let sum = sums[0] + sums[1];
            let made = RowBlock {
                quants: quants[within],
                scale,
                sum: scale * sum as f32,
                half_sums: [scale * sums[0] as f32, scale * sums[1] as f32],
                minus8: -8 * sum,
                minus128: -128 * sum,
                half_minus128: [-128 * sums[0], -128 * sums[1]],
            };
            let block = first + within;
            // SAFETY: a block of the row's group. The pointer is narrowed to the row's slot before anything is written, because
            // other threads write to other slots of the same block, and nobody else writes to this one.
            unsafe {
                self.blocks.pointer(self.first + block * self.stride).cast::<RowBlock>().add(self.slot).write(made);
            }
        }
    }
}
