//! The definition of every operation, in plain Rust.

use half::f16;

use super::{LANES, Op, Simd};

/// What every CPU can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

/// Runs `op` with these operations.
#[inline(never)]
pub(crate) fn run<O: Op>(op: O) -> O::Output {
    op.run(Portable)
}

type F = [f32; LANES];
type I = [i32; LANES];
type W = [[u8; 4]; LANES];

#[inline(always)]
fn each<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

#[inline(always)]
fn each4(a: [u8; 4], b: [u8; 4], f: impl Fn(u8, u8) -> u8) -> [u8; 4] {
    std::array::from_fn(|byte| f(a[byte], b[byte]))
}

impl Simd for Portable {
    type F = F;
    type I = I;
    type W = W;
    type D = I;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        *from
    }
    #[inline(always)]
    fn store(self, value: F, to: &mut [f32; LANES]) {
        *to = value;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        from.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        from.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> F {
        from.map(f32::from)
    }
    #[inline(always)]
    fn load_i16(self, from: &[i16; LANES]) -> F {
        from.map(f32::from)
    }
    #[inline(always)]
    fn store_f16(self, value: F, to: &mut [u16; LANES]) {
        *to = value.map(|value| f16::from_f32(value).to_bits());
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn select_lt(self, a: F, b: F, yes: F, no: F) -> F {
        std::array::from_fn(|lane| if a[lane] < b[lane] { yes[lane] } else { no[lane] })
    }
    #[inline(always)]
    fn bits(self, value: F) -> I {
        value.map(|value| value.to_bits().cast_signed())
    }
    #[inline(always)]
    fn from_bits(self, value: I) -> F {
        value.map(|value| f32::from_bits(value.cast_unsigned()))
    }
    #[inline(always)]
    fn round(self, value: F) -> I {
        value.map(|value| value.round_ties_even() as i32)
    }
    #[inline(always)]
    fn float(self, value: I) -> F {
        value.map(|value| value as f32)
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        each(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn and_i(self, a: I, b: I) -> I {
        each(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        each(a, b, i32::max)
    }
    #[inline(always)]
    fn to_exponent(self, a: I) -> I {
        a.map(|a| a << 23)
    }
    #[inline(always)]
    fn store_i8(self, value: I, to: &mut [i8; LANES]) {
        *to = value.map(|value| value as i8);
    }
    #[inline(always)]
    fn greatest_i(self, value: I) -> i32 {
        value.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    fn sum_i(self, value: I) -> i32 {
        value.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn sum(self, value: F) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|lane| value[lane] + value[lane + 8]);
        let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> W {
        // SAFETY: the caller's promise; an array of bytes has no alignment.
        unsafe { from.cast::<W>().read() }
    }
    #[inline(always)]
    unsafe fn nibbles(self, from: *const u8) -> (W, W) {
        // SAFETY: the caller's promise.
        let both = unsafe { self.bytes(from) };
        (both.map(|lane| lane.map(|byte| byte & 15)), both.map(|lane| lane.map(|byte| byte >> 4)))
    }
    #[inline(always)]
    unsafe fn quad(self, from: *const i8) -> W {
        // SAFETY: the caller's promise; an array of bytes has no alignment.
        [unsafe { from.cast::<[u8; 4]>().read() }; LANES]
    }
    #[inline(always)]
    fn six_bits(self, nibbles: W, high: W, which: usize) -> W {
        each(nibbles, high, |nibbles, high| {
            each4(nibbles, high, |nibble, high| nibble | (high >> (2 * which) & 3) << 4)
        })
    }
    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}
    #[inline(always)]
    fn prefetch_far(self, _from: *const u8) {}
    #[inline(always)]
    fn begin_dots(self, start: i32) -> I {
        [start; LANES]
    }
    #[inline(always)]
    fn dot_nibbles(self, sums: I, weights: W, values: W) -> I {
        dot(sums, weights, values, i32::from)
    }
    #[inline(always)]
    fn end_dots(self, sums: I) -> I {
        sums
    }
    #[inline(always)]
    fn begin_bytes(self, _minus128: i32) -> I {
        [0; LANES]
    }
    #[inline(always)]
    fn dot_bytes(self, sums: I, weights: W, values: W) -> I {
        dot(sums, weights, values, |weight| i32::from(weight) - 128)
    }
}

#[inline(always)]
fn dot(mut sums: I, weights: W, values: W, weight_of: impl Fn(u8) -> i32) -> I {
    for (sum, (weights, values)) in sums.iter_mut().zip(weights.iter().zip(&values)) {
        for (&weight, &value) in weights.iter().zip(values) {
            *sum += weight_of(weight) * i32::from(value.cast_signed());
        }
    }
    sums
}
