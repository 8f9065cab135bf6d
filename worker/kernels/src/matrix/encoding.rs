//! How weights are stored: the encodings, and where in a panel's tiles a quant lies.

use crate::memory::Plain;
use crate::rows::BLOCK;

/// How weights are stored. A weight is quant x scale, or quant x scale + minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Quants 0 to 15 stand for -8 to 7; 32 to a half-precision scale (Q4_0).
    Nibbles,
    /// Quants 0 to 15; 32 to a half-precision scale and minimum (Q4_1).
    NibblesMin,
    /// Quants 0 to 15; 32 to a scale and minimum (Q4_K).
    NibblesWideMin,
    /// Quants -128 to 127; 32 to a half-precision scale (Q8_0, Q5_0).
    Bytes,
    /// Quants -128 to 127; 32 to a scale and minimum (Q5_1, Q5_K).
    BytesWideMin,
    /// Quants -128 to 127; 16 to a scale (Q3_K).
    HalfBytes,
    /// Quants -128 to 127; 16 to a scale and minimum (Q2_K).
    HalfBytesMin,
    /// Quants 0 to 63 stand for -32 to 31; 16 to a scale, which is a whole number of -128 to 127 times a half-precision
    /// scale of 256 (Q6_K).
    SixBits,
}

/// Weights to a common scale of [`Encoding::SixBits`].
pub const SUPER_BLOCK: usize = 256;

impl Encoding {
    /// Every encoding.
    pub(crate) const ALL: [Self; 8] = [
        Self::Nibbles,
        Self::NibblesMin,
        Self::NibblesWideMin,
        Self::Bytes,
        Self::BytesWideMin,
        Self::HalfBytes,
        Self::HalfBytesMin,
        Self::SixBits,
    ];

    /// Lines of a tile.
    pub(crate) fn lines(self) -> usize {
        match self {
            Self::Nibbles | Self::NibblesMin | Self::NibblesWideMin => 4,
            Self::Bytes | Self::BytesWideMin | Self::HalfBytes | Self::HalfBytesMin => 8,
            Self::SixBits => 6,
        }
    }

    /// Weights to a scale.
    pub fn group(self) -> usize {
        match self {
            Self::HalfBytes | Self::HalfBytesMin | Self::SixBits => BLOCK / 2,
            _ => BLOCK,
        }
    }

    pub(crate) fn scales_are_halves(self) -> bool {
        matches!(self, Self::Nibbles | Self::NibblesMin | Self::Bytes)
    }

    pub(crate) fn has_minima(self) -> bool {
        matches!(self, Self::NibblesMin | Self::NibblesWideMin | Self::BytesWideMin | Self::HalfBytesMin)
    }
}

/// A line of a tile.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Bytes(pub(crate) [u8; 64]);

// SAFETY: numbers.
unsafe impl Plain for Bytes {}

/// Line, byte and nibble of an input of a lane within a panel's tiles.
fn place(encoding: Encoding, lane: usize, input: usize) -> (usize, usize, u32) {
    let (tile, within) = (input / BLOCK * encoding.lines(), input % BLOCK);
    let (quad, byte) = (within / 4, lane * 4 + within % 4);
    // Six bits begin like nibbles; what they have more lies in the two lines behind.
    if encoding.lines() == 8 { (tile + quad, byte, 0) } else { (tile + quad % 4, byte, (quad / 4) as u32 * 4) }
}

/// Writes the quants of the output of a lane into the tiles of its panel, whose lines are zeros there.
pub(super) fn pack_quants(encoding: Encoding, lane: usize, quants: &[u8], to: &mut [Bytes]) {
    for (input, &quant) in quants.iter().enumerate() {
        let (line, byte, shift) = place(encoding, lane, input);
        if encoding.lines() == 8 {
            // Stored plus 128, as `Simd::dot_bytes` takes them.
            to[line].0[byte] = quant ^ 128;
        } else {
            to[line].0[byte] |= (quant & 15) << shift;
        }
        if encoding == Encoding::SixBits {
            let (line, shift) = high_place(input);
            to[line].0[byte] |= quant >> 4 << shift;
        }
    }
}

/// Line and shift of the two high bits of an input of [`Encoding::SixBits`].
fn high_place(input: usize) -> (usize, u32) {
    let (tile, quad) = (input / BLOCK * Encoding::SixBits.lines(), input % BLOCK / 4);
    (tile + 4 + quad / 4, (quad % 4 * 2) as u32)
}

/// What the quant of an input of a lane stands for.
pub(super) fn quant_of(encoding: Encoding, quants: &[Bytes], lane: usize, input: usize) -> i32 {
    let (line, byte, shift) = place(encoding, lane, input);
    let stored = i32::from(quants[line].0[byte]);
    match encoding {
        Encoding::Nibbles => (stored >> shift & 15) - 8,
        Encoding::NibblesMin | Encoding::NibblesWideMin => stored >> shift & 15,
        Encoding::SixBits => {
            let (line, high) = high_place(input);
            (stored >> shift & 15 | i32::from(quants[line].0[byte] >> high & 3) << 4) - 32
        }
        _ => stored - 128,
    }
}
