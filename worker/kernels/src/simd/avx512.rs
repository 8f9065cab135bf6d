//! AVX-512 with VNNI: a vector is one register.

use std::arch::x86_64::*;

use super::{LANES, MOST_SUMS, Op, Simd};

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

/// Runs `op`, compiled for these instructions.
///
/// # Safety
/// The CPU has them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    op.run(Avx512(()))
}

/// In a function of its own, because registers of this kind can only be named where there are such.
#[cfg(target_os = "linux")]
#[inline]
#[target_feature(enable = "avx512f")]
fn pinned(mut x: __m512) -> __m512 {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {x} */", x = inout(zmm_reg) x, options(nomem, nostack, preserves_flags)) };
    x
}

/// The second two of four lanes, and the second of two, where the first are.
const SECOND_TWO: i32 = 0b11_10_11_10;
const SECOND: i32 = 0b01;

// Parts of vectors side by side, so that one instruction folds the lanes of several.
impl Avx512 {
    /// The lower halves of both, and the upper halves.
    #[inline(always)]
    fn halves(self, a: __m512i, b: __m512i) -> [__m512i; 2] {
        // SAFETY: the instructions are there, because `self` exists.
        unsafe { [_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b)] }
    }
    /// The first and third quarters of both, and the second and fourth.
    #[inline(always)]
    fn quarters(self, a: __m512i, b: __m512i) -> [__m512i; 2] {
        // SAFETY: as above.
        unsafe { [_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b)] }
    }
    /// The first lane of each quarter.
    #[inline(always)]
    fn firsts(self, value: __m512i) -> [i32; 4] {
        let mut firsts = [0; 4];
        // SAFETY: as above; 16 bytes are writable, and the store needs no alignment.
        unsafe {
            let lanes = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
            let value = _mm512_castsi512_si128(_mm512_permutexvar_epi32(lanes, value));
            _mm_storeu_si128(firsts.as_mut_ptr().cast(), value);
        }
        firsts
    }
    /// The fold of all lanes of each, of four at a time.
    #[inline(always)]
    fn fold_each<F: Fold, const N: usize>(self, values: [__m512i; N]) -> [i32; N] {
        let mut folded = [0; N];
        let (of_fours, _) = folded.as_chunks_mut::<4>();
        let (fours, _) = values.as_chunks::<4>();
        for (to, &[a, b, c, d]) in of_fours.iter_mut().zip(fours) {
            let [[a, b], [c, d]] = [self.halves(a, b), self.halves(c, d)];
            let [even, odd] = self.quarters(F::two(self, a, b), F::two(self, c, d));
            let four = F::two(self, even, odd);
            // SAFETY: as above.
            let two = F::two(self, four, unsafe { _mm512_shuffle_epi32::<SECOND_TWO>(four) });
            // SAFETY: as above.
            *to = self.firsts(F::two(self, two, unsafe { _mm512_shuffle_epi32::<SECOND>(two) }));
        }
        for at in N / 4 * 4..N {
            folded[at] = F::all(self, values[at]);
        }
        folded
    }
}

/// What lanes of i32 are folded with.
trait Fold {
    /// Lane by lane.
    fn two(simd: Avx512, a: __m512i, b: __m512i) -> __m512i;
    /// All lanes of one.
    fn all(simd: Avx512, value: __m512i) -> i32;
}

struct Greatest;
struct Sum;

impl Fold for Greatest {
    #[inline(always)]
    fn two(simd: Avx512, a: __m512i, b: __m512i) -> __m512i {
        simd.max_i(a, b)
    }
    #[inline(always)]
    fn all(simd: Avx512, value: __m512i) -> i32 {
        simd.greatest_i(value)
    }
}

impl Fold for Sum {
    #[inline(always)]
    fn two(simd: Avx512, a: __m512i, b: __m512i) -> __m512i {
        simd.add_i(a, b)
    }
    #[inline(always)]
    fn all(simd: Avx512, value: __m512i) -> i32 {
        simd.sum_i(value)
    }
}

// In all of these: the instructions are there, because `self` exists.
impl Simd for Avx512 {
    const SUMS: usize = MOST_SUMS;

    type F = __m512;
    type I = __m512i;
    type W = __m512i;
    type D = __m512i;

    #[cfg(target_os = "linux")]
    #[inline(always)]
    fn pinned(self, x: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { pinned(x) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: 64 bytes are readable; the load needs no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        // SAFETY: 64 bytes are writable; the store needs no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        // SAFETY: 32 bytes are readable; the load needs no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        // SAFETY: 32 bytes are readable; the load needs no alignment.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_i16(self, from: &[i16; LANES]) -> __m512 {
        // SAFETY: 32 bytes are readable; the load needs no alignment.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store_f16(self, value: __m512, to: &mut [u16; LANES]) {
        // SAFETY: 32 bytes are writable; the store needs no alignment.
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    fn bits(self, value: __m512) -> __m512i {
        // SAFETY: see the top.
        unsafe { _mm512_castps_si512(value) }
    }
    #[inline(always)]
    fn from_bits(self, value: __m512i) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_castsi512_ps(value) }
    }
    #[inline(always)]
    fn round(self, value: __m512) -> __m512i {
        // SAFETY: see the top. Nobody changes the rounding mode from nearest-even.
        unsafe { _mm512_cvtps_epi32(value) }
    }
    #[inline(always)]
    fn float(self, value: __m512i) -> __m512 {
        // SAFETY: see the top.
        unsafe { _mm512_cvtepi32_ps(value) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        // SAFETY: see the top.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn max_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    fn to_exponent(self, a: __m512i) -> __m512i {
        // SAFETY: see the top.
        unsafe { _mm512_slli_epi32::<23>(a) }
    }
    #[inline(always)]
    fn store_i8(self, value: __m512i, to: &mut [i8; LANES]) {
        // SAFETY: 16 bytes are writable; the store needs no alignment.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(value)) }
    }
    #[inline(always)]
    fn greatest_i(self, value: __m512i) -> i32 {
        // SAFETY: see the top.
        unsafe { _mm512_reduce_max_epi32(value) }
    }
    #[inline(always)]
    fn sum_i(self, value: __m512i) -> i32 {
        // SAFETY: see the top.
        unsafe { _mm512_reduce_add_epi32(value) }
    }
    #[inline(always)]
    fn greatest_of_each<const N: usize>(self, values: [__m512i; N]) -> [i32; N] {
        self.fold_each::<Greatest, N>(values)
    }
    #[inline(always)]
    fn sum_of_each<const N: usize>(self, values: [__m512i; N]) -> [i32; N] {
        self.fold_each::<Sum, N>(values)
    }
    #[inline(always)]
    fn sum(self, value: __m512) -> f32 {
        // SAFETY: see the top.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn sum_four(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: see the top.
        unsafe {
            let [[a, b], [c, d]] = [
                self.halves(_mm512_castps_si512(a), _mm512_castps_si512(b)),
                self.halves(_mm512_castps_si512(c), _mm512_castps_si512(d)),
            ];
            let ab = _mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
            let cd = _mm512_add_ps(_mm512_castsi512_ps(c), _mm512_castsi512_ps(d));
            let [even, odd] = self.quarters(_mm512_castps_si512(ab), _mm512_castps_si512(cd));
            let four = _mm512_add_ps(_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd));
            let two = _mm512_add_ps(four, _mm512_permute_ps::<SECOND_TWO>(four));
            let one = _mm512_add_ps(two, _mm512_permute_ps::<SECOND>(two));
            let firsts = self.firsts(_mm512_castps_si512(one));
            [0, 1, 2, 3].map(|at: usize| f32::from_bits(firsts[at].cast_unsigned()))
        }
    }
    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> __m512i {
        // SAFETY: the caller's promise; the load needs no alignment.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(self, from: *const u8) -> (__m512i, __m512i) {
        // SAFETY: the caller's promise; the load needs no alignment.
        unsafe {
            let (both, low) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
            (_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low))
        }
    }
    #[inline(always)]
    unsafe fn quad(self, from: *const i8) -> __m512i {
        // SAFETY: the caller's promise; the read needs no alignment.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn six_bits(self, nibbles: __m512i, high: __m512i, which: usize) -> __m512i {
        // SAFETY: see the top. Shifts of 16 bits: the mask takes away what crosses bytes.
        unsafe {
            let moved = match which {
                0 => _mm512_slli_epi16::<4>(high),
                1 => _mm512_slli_epi16::<2>(high),
                2 => high,
                _ => _mm512_srli_epi16::<2>(high),
            };
            _mm512_or_si512(nibbles, _mm512_and_si512(moved, _mm512_set1_epi8(0x30)))
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
    fn begin_dots(self, start: i32) -> __m512i {
        self.splat_i(start)
    }
    #[inline(always)]
    fn dot_nibbles(self, sums: __m512i, weights: __m512i, values: __m512i) -> __m512i {
        // SAFETY: see the top.
        unsafe { _mm512_dpbusd_epi32(sums, weights, values) }
    }
    #[inline(always)]
    fn end_dots(self, sums: __m512i) -> __m512i {
        sums
    }
    #[inline(always)]
    fn begin_bytes(self, minus128: i32) -> __m512i {
        self.splat_i(minus128)
    }
    #[inline(always)]
    fn dot_bytes(self, sums: __m512i, weights: __m512i, values: __m512i) -> __m512i {
        // SAFETY: see the top. The weights are unsigned here: what they are too large by was subtracted at the beginning.
        unsafe { _mm512_dpbusd_epi32(sums, weights, values) }
    }
}
