//! The weights of a panel as tiles take them: all encodings become signed bytes, scales and minima in f32.

use super::tiles::{LINE, STEPS};
use crate::matrix::{Bytes, Encoding, PANEL, Part, SUPER_BLOCK};
use crate::rows::{BLOCK, Line};
use crate::simd::{LANES, Simd};

/// Lines of a tile of bytes, and of half of one.
const LINES: usize = BLOCK / 4;
const HALF: usize = LINES / 2;

/// Bytes that weights are asked for ahead of their use: with few rows they come from memory as fast as they are used.
const PREFETCH: usize = 8192;

/// The weights of up to four steps as signed bytes, each step from a place of its own on.
#[derive(Clone, Copy)]
pub(super) struct Unpacked([[Bytes; LINES]; STEPS]);

impl Unpacked {
    pub(super) const ZERO: Self = Self([[Bytes([0; LINE]); LINES]; STEPS]);
}

/// The scales and minima of up to four steps.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) scales: [Line; STEPS],
    pub(super) minima: [Line; STEPS],
}

impl Scales {
    const NONE: Line = Line([0.0; LANES]);
    pub(super) const ZERO: Self = Self { scales: [Self::NONE; STEPS], minima: [Self::NONE; STEPS] };
}

/// The packed weights of one panel.
pub(super) struct Panel<'a> {
    encoding: Encoding,
    tiles: &'a [Bytes],
    numbers: Numbers<'a>,
}

/// What quants are multiplied by, for each step; minima may be empty.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    Halves { scales: &'a [[u16; PANEL]], minima: &'a [[u16; PANEL]] },
    Wide { scales: &'a [[f32; PANEL]], minima: &'a [[f32; PANEL]] },
    Whole { scales: &'a [[i8; PANEL]], supers: &'a [[u16; PANEL]] },
}

impl<'a> Panel<'a> {
    #[inline(always)]
    pub(super) fn of(part: &'a Part, panel: usize) -> Self {
        let numbers = if part.encoding == Encoding::SixBits {
            Numbers::Whole { scales: part.whole_scales(panel), supers: part.supers(panel) }
        } else if part.encoding.scales_are_halves() {
            Numbers::Halves { scales: part.half_scales(panel), minima: part.half_minima(panel) }
        } else {
            Numbers::Wide { scales: part.scales(panel), minima: part.minima(panel) }
        };
        Self { encoding: part.encoding, tiles: part.lines(panel), numbers }
    }

    /// How many steps there are: each has one scale.
    #[inline(always)]
    pub(super) fn steps(&self) -> usize {
        match self.numbers {
            Numbers::Halves { scales, .. } => scales.len(),
            Numbers::Wide { scales, .. } => scales.len(),
            Numbers::Whole { scales, .. } => scales.len(),
        }
    }

    /// Unpacks `count` steps of `D` inputs from step `first` on.
    #[inline(always)]
    pub(super) fn unpack<S: Simd, const D: usize>(&self, s: S, first: usize, count: usize, to: &mut Unpacked) {
        let lines = self.encoding.lines();
        for (step, to) in (first..first + count).zip(&mut to.0) {
            let (tile, half) = (&self.tiles[step * D / BLOCK * lines..][..lines], step % (BLOCK / D));
            if half == 0 {
                for line in tile {
                    s.prefetch_far(line.0.as_ptr().wrapping_add(PREFETCH));
                }
            }
            match self.encoding {
                Encoding::Nibbles => nibbles(tile, 8, to),
                Encoding::NibblesMin | Encoding::NibblesWideMin => nibbles(tile, 0, to),
                Encoding::Bytes | Encoding::BytesWideMin => bytes(tile, to),
                Encoding::HalfBytes | Encoding::HalfBytesMin => bytes(&tile[half * HALF..][..HALF], to),
                Encoding::SixBits => six_bits(tile, half, to),
            }
        }
    }

    /// Reads the scales and minima of `count` steps from step `first` on.
    #[inline(always)]
    pub(super) fn read<S: Simd>(&self, s: S, first: usize, count: usize, to: &mut Scales) {
        for (at, step) in (first..first + count).enumerate() {
            let (scale, minimum) = match self.numbers {
                Numbers::Halves { scales, minima } => {
                    (s.load_f16(&scales[step]), minima.get(step).map(|minimum| s.load_f16(minimum)))
                }
                Numbers::Wide { scales, minima } => {
                    (s.load(&scales[step]), minima.get(step).map(|minimum| s.load(minimum)))
                }
                Numbers::Whole { scales, supers } => {
                    let common = s.load_f16(&supers[step / (2 * SUPER_BLOCK / BLOCK)]);
                    (s.mul(common, s.load_i8(&scales[step])), None)
                }
            };
            s.store(scale, &mut to.scales[at].0);
            if let Some(minimum) = minimum {
                s.store(minimum, &mut to.minima[at].0);
            }
        }
    }
}

// In the following, lines are copied before anything is written: so the compiler need not ask whether they overlap.

/// Nibbles less `centre`.
#[inline(always)]
fn nibbles(tile: &[Bytes], centre: u8, to: &mut [Bytes; LINES]) {
    let (low, high) = to.split_at_mut(HALF);
    for (line, (low, high)) in tile.iter().zip(low.iter_mut().zip(high)) {
        let [mut lows, mut highs] = [line.0; 2];
        for (low, high) in lows.iter_mut().zip(&mut highs) {
            *low = (*low & 15).wrapping_sub(centre);
            *high = (*high >> 4).wrapping_sub(centre);
        }
        (low.0, high.0) = (lows, highs);
    }
}

/// Bytes, which are stored plus 128.
#[inline(always)]
fn bytes(tile: &[Bytes], to: &mut [Bytes; LINES]) {
    for (line, to) in tile.iter().zip(to) {
        let mut signed = line.0;
        for byte in &mut signed {
            *byte ^= 128;
        }
        to.0 = signed;
    }
}

/// Six bits less 32: nibbles of the first or second half, and the two bits above them from a line of that half.
#[inline(always)]
fn six_bits(tile: &[Bytes], half: usize, to: &mut [Bytes; LINES]) {
    let tops = tile[HALF + half].0;
    for (quad, (line, to)) in tile[..HALF].iter().zip(to).enumerate() {
        let mut signed = line.0;
        for (byte, top) in signed.iter_mut().zip(&tops) {
            *byte = ((*byte >> (4 * half) & 15) | (top >> (2 * quad) & 3) << 4).wrapping_sub(32);
        }
        to.0 = signed;
    }
}
