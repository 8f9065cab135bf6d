//! The weights of one panel of outputs in each encoding, and what a block of 32 inputs adds to the sums of some rows. The order
//! of the additions, which is the bits, is said in [`super`].

use crate::activations::{RowBlock, TOGETHER};
use crate::matrix::{PANEL, Part, SUPER_BLOCK};
use crate::rows::BLOCK;
use crate::simd::Simd;

/// Bytes that weights are asked for ahead of their use: few rows are over before the next line has come from memory.
const PREFETCH: usize = 4096;

/// The weights of one panel.
pub(super) trait Panel: Copy {
    /// Adds block `block`'s part to the sums of `R` rows.
    fn block<S: Simd, const R: usize>(self, s: S, block: usize, x: &[RowBlock; R], sums: &mut [S::F; R]);
}

/// 32 weights to a half-precision scale, `L` lines to a tile.
#[derive(Clone, Copy)]
pub(super) struct Halves<'a, const L: usize, const MIN: bool> {
    quants: *const u8,
    scales: &'a [[u16; PANEL]],
    minima: &'a [[u16; PANEL]],
}

impl<'a, const L: usize, const MIN: bool> Halves<'a, L, MIN> {
    #[inline(always)]
    pub(super) fn of(part: &'a Part, panel: usize) -> Self {
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
pub(super) struct Wide<'a, const L: usize, const G: usize, const MIN: bool> {
    quants: *const u8,
    scales: &'a [[f32; PANEL]],
    minima: &'a [[f32; PANEL]],
}

impl<'a, const L: usize, const G: usize, const MIN: bool> Wide<'a, L, G, MIN> {
    #[inline(always)]
    pub(super) fn of(part: &'a Part, panel: usize) -> Self {
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
pub(super) struct SixBits<'a> {
    quants: *const u8,
    scales: &'a [[i8; PANEL]],
    supers: &'a [[u16; PANEL]],
}

impl<'a> SixBits<'a> {
    #[inline(always)]
    pub(super) fn of(part: &'a Part, panel: usize) -> Self {
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
