//! The vocabulary that kernels are written in: sixteen lanes of f32 or i32, and sixteen lanes of four bytes. A kernel is
//! written once, as an [`Op`] generic over [`Simd`], and compiled for each instruction set by [`dispatch`].
//!
//! Every function says what it computes lane by lane; implementations agree bit for bit, so a kernel's bits cannot depend
//! on the instruction set. `portable` is the definition.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use crate::Isa;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// The fewest and the most of [`Simd::SUMS`].
pub(crate) const FEWEST_SUMS: usize = 6;
pub(crate) const MOST_SUMS: usize = 24;

/// An instruction set. A value of it is proof that this CPU has it, so its functions are safe to call.
pub(crate) trait Simd: Copy {
    /// How many sums fit the registers beside what they are made of: the fewest where a vector is several registers.
    const SUMS: usize = FEWEST_SUMS;

    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// Sixteen lanes of four bytes.
    type W: Copy;
    /// Sixteen sums of [`Simd::dot_nibbles`] under way, a part of which may be kept narrow.
    type D: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Lane by lane from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Lane by lane to memory.
    fn store(self, value: Self::F, to: &mut [f32; LANES]);
    /// Half-precision values, widened.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// Upper halves of f32 (bfloat16), widened.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// Signed bytes, widened.
    fn load_i8(self, from: &[i8; LANES]) -> Self::F;
    /// Signed numbers of 16 bits, widened.
    fn load_i16(self, from: &[i16; LANES]) -> Self::F;
    /// Rounded to half precision, half to even.
    fn store_f16(self, value: Self::F, to: &mut [u16; LANES]);
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? yes : no`
    fn select_lt(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// The bits as integers.
    fn bits(self, value: Self::F) -> Self::I;
    /// Integers as bits.
    #[expect(clippy::wrong_self_convention, reason = "the instruction set is the receiver of every operation")]
    fn from_bits(self, value: Self::I) -> Self::F;
    /// To the nearest integer, half to even. For values within i32.
    fn round(self, value: Self::F) -> Self::I;
    /// To the nearest f32.
    fn float(self, value: Self::I) -> Self::F;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// `a + b`, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a & b`
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The greater, signed.
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << 23`
    fn to_exponent(self, a: Self::I) -> Self::I;
    /// The low byte of each lane.
    fn store_i8(self, value: Self::I, to: &mut [i8; LANES]);

    /// The greatest lane, signed.
    fn greatest_i(self, value: Self::I) -> i32;
    /// The wrapping sum of all lanes.
    fn sum_i(self, value: Self::I) -> i32;
    /// [`Simd::greatest_i`] of each.
    #[inline(always)]
    fn greatest_of_each<const N: usize>(self, values: [Self::I; N]) -> [i32; N] {
        let mut greatest = [0; N];
        for at in 0..N {
            greatest[at] = self.greatest_i(values[at]);
        }
        greatest
    }
    /// [`Simd::sum_i`] of each.
    #[inline(always)]
    fn sum_of_each<const N: usize>(self, values: [Self::I; N]) -> [i32; N] {
        let mut sums = [0; N];
        for at in 0..N {
            sums[at] = self.sum_i(values[at]);
        }
        sums
    }
    /// Lane i plus lane i + 8, then i + 4, i + 2, i + 1.
    fn sum(self, value: Self::F) -> f32;
    /// [`Simd::sum`] of each.
    #[inline(always)]
    fn sum_four(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }

    /// 64 bytes, lane by lane.
    ///
    /// # Safety
    /// `from` is valid for reads of 64 bytes.
    unsafe fn bytes(self, from: *const u8) -> Self::W;
    /// The low four bits of 64 bytes, and the high four.
    ///
    /// # Safety
    /// `from` is valid for reads of 64 bytes.
    unsafe fn nibbles(self, from: *const u8) -> (Self::W, Self::W);
    /// Four bytes in every lane.
    ///
    /// # Safety
    /// `from` is valid for reads of 4 bytes.
    unsafe fn quad(self, from: *const i8) -> Self::W;
    /// Bytes of 0 to 15 with two more bits on top: the lowest two of `high`, the next, the third or the fourth, by `which`.
    fn six_bits(self, nibbles: Self::W, high: Self::W, which: usize) -> Self::W;
    /// `x` as it is. Where the order of instructions matters, the compiler is kept from computing it later than here: it does not
    /// know in which order a CPU can do most at once.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    fn pinned(self, x: Self::F) -> Self::F {
        x
    }
    /// Asks for the cache line at `from` ahead of its use. Any address may be given.
    fn prefetch(self, from: *const u8);
    /// The same, as far as the second cache: of what the first one waits for there can be few at a time, so that long
    /// stretches come sooner this way.
    fn prefetch_far(self, from: *const u8);
    /// All lanes `start`.
    fn begin_dots(self, start: i32) -> Self::D;
    /// Adds to each lane the products of its four `weights`, of 0 to 63, and four signed `values` of -127 to 127. The largest
    /// weights that may be met before [`Simd::settle`] add up to no more than 128: eight of 15, or two of 63.
    fn dot_nibbles(self, sums: Self::D, weights: Self::W, values: Self::W) -> Self::D;
    /// The same sums, with room for more: nothing is to be done where they are not kept narrow.
    #[inline(always)]
    fn settle(self, sums: Self::D) -> Self::D {
        sums
    }
    /// The sums.
    fn end_dots(self, sums: Self::D) -> Self::I;
    /// What sums of [`Simd::dot_bytes`] begin with, where `minus128` is -128 times the sum of the values.
    fn begin_bytes(self, minus128: i32) -> Self::I;
    /// Adds to each lane the products of its four `weights`, each stored plus 128, and four signed `values` of -127 to
    /// 127. Exact once begun with [`Simd::begin_bytes`] and given all values.
    fn dot_bytes(self, sums: Self::I, weights: Self::W, values: Self::W) -> Self::I;
}

/// A kernel. `run` must be `#[inline(always)]`, and so must be all that it calls, or it is not compiled for the instruction
/// set; a closure cannot be.
pub(crate) trait Op {
    /// What it returns.
    type Output;

    /// The kernel on one instruction set.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `op` on `isa`, which this CPU has: an [`Isa`] cannot be made otherwise. Costs some 10 ns: an op is worth a
/// microsecond.
#[inline(always)]
pub(crate) fn dispatch<O: Op>(isa: Isa, op: O) -> O::Output {
    use crate::isa::Kind;
    match isa.kind() {
        Kind::Portable => portable::run(op),
        // SAFETY: an `Isa` is only made for instructions that the CPU has.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { avx2::run(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { avx512::run(op) },
        // SAFETY: as above. Tiles are for products; everything else is done on vectors.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Kind::Amx => unsafe { avx512::run(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => unsafe { neon::run(op) },
    }
}

/// [`Simd::SUMS`] of what `isa` runs on.
pub(crate) fn sums_of(isa: Isa) -> usize {
    struct Sums;
    impl Op for Sums {
        type Output = usize;

        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> usize {
            S::SUMS
        }
    }
    dispatch(isa, Sums)
}

#[cfg(test)]
mod tests;
