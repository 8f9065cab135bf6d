//! AVX2 with FMA and F16C: a vector is two registers, lanes 0 to 7 and 8 to 15.

use std::arch::x86_64::*;

use super::{LANES, Op, Simd};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// Runs `op`, compiled for these instructions.
///
/// # Safety
/// The CPU has them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run(Avx2(()))
}

type F = [__m256; 2];
type I = [__m256i; 2];

/// Sums under way: two of 16 bits to a lane, which take one instruction less to add to, beside those of 32.
#[derive(Clone, Copy)]
pub(crate) struct Dots {
    narrow: I,
    wide: I,
}

/// Applies an instruction to both registers.
macro_rules! both {
    ($instruction:ident, $($operand:expr),+) => {
        // SAFETY: the instructions are there, because `self` exists.
        unsafe { [$instruction($($operand[0]),+), $instruction($($operand[1]),+)] }
    };
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    type W = I;
    type D = Dots;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: `self` exists.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        // SAFETY: 64 bytes are readable; the loads need no alignment.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, value: F, to: &mut [f32; LANES]) {
        // SAFETY: 64 bytes are writable; the stores need no alignment.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F {
        // SAFETY: 32 bytes are readable; the loads need no alignment.
        unsafe {
            let (low, high) = (from.as_ptr().cast(), from.as_ptr().add(8).cast());
            [_mm256_cvtph_ps(_mm_loadu_si128(low)), _mm256_cvtph_ps(_mm_loadu_si128(high))]
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F {
        // SAFETY: 32 bytes are readable; the loads need no alignment.
        unsafe {
            let (low, high) = (from.as_ptr().cast(), from.as_ptr().add(8).cast());
            let wide = [_mm256_cvtepu16_epi32(_mm_loadu_si128(low)), _mm256_cvtepu16_epi32(_mm_loadu_si128(high))];
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide[0])),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide[1])),
            ]
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> F {
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let wide = [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))];
            self.float(wide)
        }
    }
    #[inline(always)]
    fn load_i16(self, from: &[i16; LANES]) -> F {
        let (halves, _) = from.as_chunks::<8>();
        // SAFETY: 16 bytes are readable at each half; the loads need no alignment.
        let wide =
            [0, 1].map(|half: usize| unsafe { _mm256_cvtepi16_epi32(_mm_loadu_si128(halves[half].as_ptr().cast())) });
        self.float(wide)
    }
    #[inline(always)]
    fn store_f16(self, value: F, to: &mut [u16; LANES]) {
        // SAFETY: 32 bytes are writable; the stores need no alignment.
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[1]);
            _mm_storeu_si128(to.as_mut_ptr().cast(), low);
            _mm_storeu_si128(to.as_mut_ptr().add(8).cast(), high);
        }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn select_lt(self, a: F, b: F, yes: F, no: F) -> F {
        let less = both!(_mm256_cmp_lt_ps, a, b);
        both!(_mm256_blendv_ps, no, yes, less)
    }
    #[inline(always)]
    fn bits(self, value: F) -> I {
        both!(_mm256_castps_si256, value)
    }
    #[inline(always)]
    fn from_bits(self, value: I) -> F {
        both!(_mm256_castsi256_ps, value)
    }
    #[inline(always)]
    fn round(self, value: F) -> I {
        both!(_mm256_cvtps_epi32, value)
    }
    #[inline(always)]
    fn float(self, value: I) -> F {
        both!(_mm256_cvtepi32_ps, value)
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        // SAFETY: `self` exists.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        both!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    fn and_i(self, a: I, b: I) -> I {
        both!(_mm256_and_si256, a, b)
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        both!(_mm256_max_epi32, a, b)
    }
    #[inline(always)]
    fn to_exponent(self, a: I) -> I {
        // SAFETY: `self` exists.
        unsafe { [_mm256_slli_epi32::<23>(a[0]), _mm256_slli_epi32::<23>(a[1])] }
    }
    #[inline(always)]
    fn store_i8(self, value: I, to: &mut [i8; LANES]) {
        let mut wide = [0i32; LANES];
        // SAFETY: 64 bytes are writable; the stores need no alignment.
        unsafe {
            _mm256_storeu_si256(wide.as_mut_ptr().cast(), value[0]);
            _mm256_storeu_si256(wide.as_mut_ptr().add(8).cast(), value[1]);
        }
        *to = wide.map(|lane| lane as i8);
    }
    #[inline(always)]
    fn greatest_i(self, value: I) -> i32 {
        // SAFETY: `self` exists.
        unsafe {
            let eight = _mm256_max_epi32(value[0], value[1]);
            let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
    #[inline(always)]
    fn sum_i(self, value: I) -> i32 {
        // SAFETY: `self` exists.
        unsafe {
            let eight = _mm256_add_epi32(value[0], value[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
    #[inline(always)]
    fn sum(self, value: F) -> f32 {
        // SAFETY: `self` exists.
        unsafe {
            let eight = _mm256_add_ps(value[0], value[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> I {
        // SAFETY: the caller's promise; the loads need no alignment.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn nibbles(self, from: *const u8) -> (I, I) {
        // SAFETY: the caller's promise, and `self` exists.
        unsafe {
            let ([a, b], low) = (self.bytes(from), _mm256_set1_epi8(15));
            let (high_a, high_b) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
            let lows = [_mm256_and_si256(a, low), _mm256_and_si256(b, low)];
            (lows, [_mm256_and_si256(high_a, low), _mm256_and_si256(high_b, low)])
        }
    }
    #[inline(always)]
    unsafe fn quad(self, from: *const i8) -> I {
        // SAFETY: the caller's promise; the read needs no alignment.
        unsafe { [_mm256_set1_epi32(from.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    fn six_bits(self, nibbles: I, high: I, which: usize) -> I {
        // SAFETY: `self` exists. Shifts of 16 bits: the mask takes away what crosses bytes.
        unsafe {
            let [a, b] = high;
            let moved = match which {
                0 => [_mm256_slli_epi16::<4>(a), _mm256_slli_epi16::<4>(b)],
                1 => [_mm256_slli_epi16::<2>(a), _mm256_slli_epi16::<2>(b)],
                2 => high,
                _ => [_mm256_srli_epi16::<2>(a), _mm256_srli_epi16::<2>(b)],
            };
            let mask = _mm256_set1_epi8(0x30);
            let top = [_mm256_and_si256(moved[0], mask), _mm256_and_si256(moved[1], mask)];
            [_mm256_or_si256(nibbles[0], top[0]), _mm256_or_si256(nibbles[1], top[1])]
        }
    }
    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: a hint; it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, from: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    fn begin_dots(self, start: i32) -> Dots {
        Dots { narrow: self.splat_i(0), wide: self.splat_i(start) }
    }
    #[inline(always)]
    fn dot_nibbles(self, sums: Dots, weights: I, values: I) -> Dots {
        // Of each weight there are two in a lane of 16 bits: 2 x 128 x 127 is within it.
        let products = both!(_mm256_maddubs_epi16, weights, values);
        Dots { narrow: both!(_mm256_add_epi16, sums.narrow, products), ..sums }
    }
    #[inline(always)]
    fn settle(self, sums: Dots) -> Dots {
        Dots { narrow: self.splat_i(0), wide: self.end_dots(sums) }
    }
    #[inline(always)]
    fn end_dots(self, sums: Dots) -> I {
        self.add_i(sums.wide, self.add_pairs(sums.narrow))
    }
    #[inline(always)]
    fn begin_bytes(self, _minus128: i32) -> I {
        self.splat_i(0)
    }
    #[inline(always)]
    fn dot_bytes(self, sums: I, weights: I, values: I) -> I {
        // Signs move from the weights to the values, which can be negated: none is -128. Two products of at most
        // 128 x 127 never saturate 16 bits.
        // SAFETY: `self` exists.
        let bias = unsafe { [_mm256_set1_epi8(-128); 2] };
        let signed = both!(_mm256_xor_si256, weights, bias);
        let values = both!(_mm256_sign_epi8, values, signed);
        let sizes = both!(_mm256_abs_epi8, signed);
        let products = both!(_mm256_maddubs_epi16, sizes, values);
        self.add_i(sums, self.add_pairs(products))
    }
}

impl Avx2 {
    /// The sums of neighbours of 16 bits.
    #[inline(always)]
    fn add_pairs(self, products: I) -> I {
        // SAFETY: `self` exists.
        let ones = unsafe { [_mm256_set1_epi16(1); 2] };
        both!(_mm256_madd_epi16, products, ones)
    }
}

/// `a < b`, all bits of a lane.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn _mm256_cmp_lt_ps(a: __m256, b: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
}
