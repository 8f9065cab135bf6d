//! NEON with dot products (ARMv8.2): a vector is four registers, lanes 0 to 3, 4 to 7, 8 to 11 and 12 to 15.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LANES, Op, Simd};

/// Proof that the CPU has NEON with FP16 conversions and dot products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

/// Runs `op`, compiled for these instructions.
///
/// # Safety
/// The CPU has them.
#[target_feature(enable = "neon,dotprod,fp16")]
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run(Neon(()))
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type W = [int8x16_t; 4];

/// Applies an instruction to all four registers.
macro_rules! all {
    ($instruction:ident, $($operand:expr),+) => {
        // SAFETY: the instructions are there, because `self` exists.
        unsafe {
            [
                $instruction($($operand[0]),+),
                $instruction($($operand[1]),+),
                $instruction($($operand[2]),+),
                $instruction($($operand[3]),+),
            ]
        }
    };
}

/// Sums of the products of four signed bytes each, added to `sums`. The intrinsic is not stable in all compilers.
///
/// # Safety
/// The CPU has dot products.
#[inline(always)]
unsafe fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Four halves from `from`, widened.
///
/// # Safety
/// Eight bytes are readable.
#[inline(always)]
unsafe fn widen(from: *const u16) -> float32x4_t {
    // SAFETY: the caller's promise; registers only in the conversion.
    unsafe {
        let halves = vld1_u16(from);
        let wide: float32x4_t;
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
        wide
    }
}

/// Four values as halves, rounded half to even.
///
/// # Safety
/// Eight bytes are writable.
#[inline(always)]
unsafe fn narrow(value: float32x4_t, to: *mut u16) {
    // SAFETY: the caller's promise; registers only in the conversion.
    unsafe {
        let halves: uint16x4_t;
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) halves, in(vreg) value, options(pure, nomem, nostack, preserves_flags));
        vst1_u16(to, halves);
    }
}

impl Simd for Neon {
    type F = F;
    type I = I;
    type W = W;
    type D = I;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: `self` exists.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        let at = from.as_ptr();
        // SAFETY: 64 bytes are readable.
        unsafe { [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))] }
    }
    #[inline(always)]
    fn store(self, value: F, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        // SAFETY: 64 bytes are writable.
        unsafe {
            vst1q_f32(at, value[0]);
            vst1q_f32(at.add(4), value[1]);
            vst1q_f32(at.add(8), value[2]);
            vst1q_f32(at.add(12), value[3]);
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        let at = from.as_ptr();
        // SAFETY: 32 bytes are readable.
        unsafe { [widen(at), widen(at.add(4)), widen(at.add(8)), widen(at.add(12))] }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        // SAFETY: 32 bytes are readable.
        unsafe {
            let (low, high) = (vld1q_u16(from.as_ptr()), vld1q_u16(from.as_ptr().add(8)));
            let wide = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_u16(vget_high_u16(low)),
                vmovl_u16(vget_low_u16(high)),
                vmovl_u16(vget_high_u16(high)),
            ];
            [
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide[0])),
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide[1])),
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide[2])),
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide[3])),
            ]
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> F {
        // SAFETY: 16 bytes are readable.
        unsafe {
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            let wide = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_s16(vget_high_s16(low)),
                vmovl_s16(vget_low_s16(high)),
                vmovl_s16(vget_high_s16(high)),
            ];
            self.float(wide)
        }
    }
    #[inline(always)]
    fn load_i16(self, from: &[i16; LANES]) -> F {
        let (quarters, _) = from.as_chunks::<4>();
        // SAFETY: 8 bytes are readable at each quarter.
        let wide = [0, 1, 2, 3].map(|quarter: usize| unsafe { vmovl_s16(vld1_s16(quarters[quarter].as_ptr())) });
        self.float(wide)
    }
    #[inline(always)]
    fn store_f16(self, value: F, to: &mut [u16; LANES]) {
        let at = to.as_mut_ptr();
        // SAFETY: 32 bytes are writable.
        unsafe {
            narrow(value[0], at);
            narrow(value[1], at.add(4));
            narrow(value[2], at.add(8));
            narrow(value[3], at.add(12));
        }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        all!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        all!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        all!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        all!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        all!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        let greater = all!(vcgtq_f32, a, b);
        all!(vbslq_f32, greater, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        self.select_lt(a, b, a, b)
    }
    #[inline(always)]
    fn select_lt(self, a: F, b: F, yes: F, no: F) -> F {
        let less = all!(vcltq_f32, a, b);
        all!(vbslq_f32, less, yes, no)
    }
    #[inline(always)]
    fn bits(self, value: F) -> I {
        all!(vreinterpretq_s32_f32, value)
    }
    #[inline(always)]
    fn from_bits(self, value: I) -> F {
        all!(vreinterpretq_f32_s32, value)
    }
    #[inline(always)]
    fn round(self, value: F) -> I {
        all!(vcvtnq_s32_f32, value)
    }
    #[inline(always)]
    fn float(self, value: I) -> F {
        all!(vcvtq_f32_s32, value)
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        // SAFETY: `self` exists.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        all!(vaddq_s32, a, b)
    }
    #[inline(always)]
    fn and_i(self, a: I, b: I) -> I {
        all!(vandq_s32, a, b)
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        all!(vmaxq_s32, a, b)
    }
    #[inline(always)]
    fn to_exponent(self, a: I) -> I {
        // SAFETY: `self` exists.
        unsafe { [vshlq_n_s32::<23>(a[0]), vshlq_n_s32::<23>(a[1]), vshlq_n_s32::<23>(a[2]), vshlq_n_s32::<23>(a[3])] }
    }
    #[inline(always)]
    fn store_i8(self, value: I, to: &mut [i8; LANES]) {
        // SAFETY: 16 bytes are writable.
        unsafe {
            let low = vcombine_s16(vmovn_s32(value[0]), vmovn_s32(value[1]));
            let high = vcombine_s16(vmovn_s32(value[2]), vmovn_s32(value[3]));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }
    #[inline(always)]
    fn greatest_i(self, value: I) -> i32 {
        // SAFETY: `self` exists.
        unsafe { vmaxvq_s32(vmaxq_s32(vmaxq_s32(value[0], value[1]), vmaxq_s32(value[2], value[3]))) }
    }
    #[inline(always)]
    fn sum_i(self, value: I) -> i32 {
        // SAFETY: `self` exists.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(value[0], value[1]), vaddq_s32(value[2], value[3]))) }
    }
    #[inline(always)]
    fn sum(self, value: F) -> f32 {
        // SAFETY: `self` exists.
        unsafe {
            let four = vaddq_f32(vaddq_f32(value[0], value[2]), vaddq_f32(value[1], value[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> W {
        let at: *const i8 = from.cast();
        // SAFETY: the caller's promise.
        unsafe { [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))] }
    }
    #[inline(always)]
    unsafe fn nibbles(self, from: *const u8) -> (W, W) {
        // SAFETY: the caller's promise.
        let both = unsafe { self.bytes(from) };
        // SAFETY: `self` exists.
        let low = unsafe { [vdupq_n_s8(15); 4] };
        let lows = all!(vandq_s8, both, low);
        let [a, b, c, d] = all!(vreinterpretq_u8_s8, both);
        // SAFETY: `self` exists.
        let highs = unsafe { [vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b), vshrq_n_u8::<4>(c), vshrq_n_u8::<4>(d)] };
        (lows, all!(vreinterpretq_s8_u8, highs))
    }
    #[inline(always)]
    unsafe fn quad(self, from: *const i8) -> W {
        // SAFETY: the caller's promise; the read needs no alignment.
        unsafe { [vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned())); 4] }
    }
    #[inline(always)]
    fn six_bits(self, nibbles: W, high: W, which: usize) -> W {
        // SAFETY: `self` exists.
        let (shift, mask) = unsafe { ([vdupq_n_s8(4 - 2 * which as i8); 4], [vdupq_n_u8(0x30); 4]) };
        let high = all!(vreinterpretq_u8_s8, high);
        let moved = all!(vshlq_u8, high, shift);
        let top = all!(vandq_u8, moved, mask);
        let nibbles = all!(vreinterpretq_u8_s8, nibbles);
        let joined = all!(vorrq_u8, nibbles, top);
        all!(vreinterpretq_s8_u8, joined)
    }
    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}
    #[inline(always)]
    fn prefetch_far(self, _from: *const u8) {}
    #[inline(always)]
    fn begin_dots(self, start: i32) -> I {
        self.splat_i(start)
    }
    #[inline(always)]
    fn dot_nibbles(self, sums: I, weights: W, values: W) -> I {
        all!(sdot, sums, weights, values)
    }
    #[inline(always)]
    fn end_dots(self, sums: I) -> I {
        sums
    }
    #[inline(always)]
    fn begin_bytes(self, _minus128: i32) -> I {
        self.splat_i(0)
    }
    #[inline(always)]
    fn dot_bytes(self, sums: I, weights: W, values: W) -> I {
        // SAFETY: `self` exists.
        let bias = unsafe { [vdupq_n_s8(-128); 4] };
        let signed = all!(veorq_s8, weights, bias);
        all!(sdot, sums, signed, values)
    }
}
