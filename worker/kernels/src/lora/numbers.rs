//! Numbers of A and B in vectors, in 16 bits where that loses nothing: a step reads them from memory once, and what it
//! reads is what it costs.

use half::{bf16, f16};

use crate::memory::{Arena, Piece, Plain};
use crate::rows::Line;
use crate::simd::{LANES, Simd};

/// Sixteen numbers of half precision.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Halves(pub(super) [u16; LANES]);

/// Sixteen upper halves of f32 (bfloat16).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct UpperHalves(pub(super) [u16; LANES]);

// SAFETY: numbers.
unsafe impl Plain for Halves {}
// SAFETY: numbers.
unsafe impl Plain for UpperHalves {}

/// Sixteen numbers, however wide.
pub(super) trait Vector: Copy {
    /// Widened, which is exact.
    fn load<S: Simd>(&self, s: S) -> S::F;
}

impl Vector for Line {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load(&self.0)
    }
}

impl Vector for Halves {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_f16(&self.0)
    }
}

impl Vector for UpperHalves {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_bf16(&self.0)
    }
}

/// Vectors of one width.
#[derive(Debug)]
pub(super) enum Numbers {
    Single(Piece<Line>),
    Half(Piece<Halves>),
    UpperHalf(Piece<UpperHalves>),
}

/// How wide numbers can be stored without a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Single,
    Half,
    UpperHalf,
}

impl Width {
    /// The narrowest that holds all of `values` exactly.
    pub(super) fn of<'a>(values: impl Iterator<Item = &'a f32> + Clone) -> Self {
        if values.clone().all(|value| bf16::from_f32(*value).to_f32().to_bits() == value.to_bits()) {
            Self::UpperHalf
        } else if values.clone().all(|value| f16::from_f32(*value).to_f32().to_bits() == value.to_bits()) {
            Self::Half
        } else {
            Self::Single
        }
    }
}

impl Numbers {
    /// `count` vectors of zeros in `arena`.
    pub(super) fn zeros(arena: &Arena, width: Width, count: usize) -> Self {
        match width {
            Width::Single => Self::Single(arena.zeros(count)),
            Width::Half => Self::Half(arena.zeros(count)),
            Width::UpperHalf => Self::UpperHalf(arena.zeros(count)),
        }
    }

    /// Stores up to 16 numbers that this width holds.
    pub(super) fn set(&mut self, vector: usize, values: &[f32]) {
        match self {
            Self::Single(lines) => lines[vector].0[..values.len()].copy_from_slice(values),
            Self::Half(lines) => narrow(&mut lines[vector].0, values, |value| f16::from_f32(value).to_bits()),
            Self::UpperHalf(lines) => narrow(&mut lines[vector].0, values, |value| bf16::from_f32(value).to_bits()),
        }
    }

    /// A number, widened.
    pub(super) fn get(&self, vector: usize, lane: usize) -> f32 {
        match self {
            Self::Single(lines) => lines[vector].0[lane],
            Self::Half(lines) => f16::from_bits(lines[vector].0[lane]).to_f32(),
            Self::UpperHalf(lines) => bf16::from_bits(lines[vector].0[lane]).to_f32(),
        }
    }

    /// What they take of memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Single(lines) => size_of_val(&lines[..]),
            Self::Half(lines) => size_of_val(&lines[..]),
            Self::UpperHalf(lines) => size_of_val(&lines[..]),
        }
    }
}

fn narrow(to: &mut [u16; LANES], values: &[f32], bits: impl Fn(f32) -> u16) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to = bits(*value));
}
