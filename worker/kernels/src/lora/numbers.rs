//! Numbers of A and B in vectors, in 16 bits each: a step reads them from memory once, and what it reads is what it costs.
//!
//! Where half precision or bfloat16 holds all numbers, of the A of layers that share their inputs or of their B, they are kept
//! as they are. Of others, whole numbers of 16 bits times a **step** keep fifteen bits of a matrix' largest number, and all as
//! near as that. The step is a power of two, so that the scale of the update takes it in without a rounding. Half precision
//! would keep eleven bits of each number.

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

/// Sixteen whole numbers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Wholes(pub(super) [i16; LANES]);

// SAFETY: numbers.
unsafe impl Plain for Halves {}
// SAFETY: numbers.
unsafe impl Plain for UpperHalves {}
// SAFETY: numbers.
unsafe impl Plain for Wholes {}

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

impl Vector for Wholes {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_i16(&self.0)
    }
}

/// Vectors of one kind.
#[derive(Debug)]
pub(super) enum Numbers {
    Single(Piece<Line>),
    Half(Piece<Halves>),
    UpperHalf(Piece<UpperHalves>),
    Whole(Piece<Wholes>),
}

/// What may be lost of an update's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Nothing: numbers that 16 bits do not hold take 32.
    Exact,
    /// What 16 bits do not hold beside the largest number of the matrix: every number takes 16, but for matrices with one
    /// beyond 10¹⁸, which take 32.
    Fixed16,
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Single,
    Half,
    UpperHalf,
    Whole,
}

/// Beyond it a step would be out of the range of f32 together with another. No layer has weights of this size.
const LARGEST: f32 = 1e18;
/// The least step, likewise: what is smaller than half of it is nothing.
const LEAST_EXPONENT: i32 = -60;

impl Format {
    /// The narrowest that holds all of `values`, as exactly as `precision` asks for.
    pub(super) fn of<'a>(precision: Precision, values: impl Iterator<Item = &'a f32> + Clone) -> Self {
        let is_kept =
            |through: fn(f32) -> f32| values.clone().all(|value| through(*value).to_bits() == value.to_bits());
        if is_kept(|value| bf16::from_f32(value).to_f32()) {
            Self::UpperHalf
        } else if is_kept(|value| f16::from_f32(value).to_f32()) {
            Self::Half
        } else if precision == Precision::Fixed16 && values.clone().all(|value| value.abs() <= LARGEST) {
            Self::Whole
        } else {
            Self::Single
        }
    }

    /// What a one that is stored stands for in a matrix of `values`.
    pub(super) fn step_of(self, values: &[f32]) -> f32 {
        if self != Self::Whole {
            return 1.0;
        }
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let exponent = (largest.to_bits() >> 23) as i32 - 127;
        let step = (exponent - (i16::BITS as i32 - 2)).max(LEAST_EXPONENT);
        f32::from_bits(((step + 127) as u32) << 23)
    }
}

impl Numbers {
    /// `count` vectors of zeros in `arena`.
    pub(super) fn zeros(arena: &Arena, format: Format, count: usize) -> Self {
        match format {
            Format::Single => Self::Single(arena.zeros(count)),
            Format::Half => Self::Half(arena.zeros(count)),
            Format::UpperHalf => Self::UpperHalf(arena.zeros(count)),
            Format::Whole => Self::Whole(arena.zeros(count)),
        }
    }

    /// Stores up to 16 numbers whose unit is `step`.
    pub(super) fn set(&mut self, vector: usize, values: &[f32], step: f32) {
        match self {
            Self::Single(lines) => narrow(&mut lines[vector].0, values, |value| value),
            Self::Half(lines) => narrow(&mut lines[vector].0, values, |value| f16::from_f32(value).to_bits()),
            Self::UpperHalf(lines) => narrow(&mut lines[vector].0, values, |value| bf16::from_f32(value).to_bits()),
            // What would be rounded up to one more than there is becomes the largest.
            Self::Whole(lines) => {
                narrow(&mut lines[vector].0, values, |value| (value / step).round_ties_even() as i16);
            }
        }
    }

    /// A number whose unit is `step`, widened.
    pub(super) fn get(&self, (vector, lane): (usize, usize), step: f32) -> f32 {
        match self {
            Self::Single(lines) => lines[vector].0[lane],
            Self::Half(lines) => f16::from_bits(lines[vector].0[lane]).to_f32(),
            Self::UpperHalf(lines) => bf16::from_bits(lines[vector].0[lane]).to_f32(),
            Self::Whole(lines) => f32::from(lines[vector].0[lane]) * step,
        }
    }

    /// What they take of memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Single(lines) => size_of_val(&lines[..]),
            Self::Half(lines) => size_of_val(&lines[..]),
            Self::UpperHalf(lines) => size_of_val(&lines[..]),
            Self::Whole(lines) => size_of_val(&lines[..]),
        }
    }
}

fn narrow<T>(to: &mut [T; LANES], values: &[f32], one: impl Fn(f32) -> T) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to = one(*value));
}
