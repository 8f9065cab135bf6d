//! `exp`, `ln` and a sum whose bits are the same on every machine. The standard library's `exp` and `ln` call the
//! platform's libm, which differs between systems; these use only IEEE additions, multiplications and bit operations in a
//! fixed order (Rust never contracts them into fused ones). Called by the sampler; never with NaN.

/// Below this the result is 0 (and not a denormal): a probability under 1e-307 cannot be drawn with 53 bits anyway.
const SMALLEST_ARGUMENT: f64 = -708.0;
/// ln 2 in two parts (fdlibm `e_exp.c`): the low 32 bits of the first are 0, so its product with an exponent is exact.
const LN2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
/// 1.5 x 2^52: adding it rounds to an integer, which then stands in the low bits of the sum.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
/// Taylor coefficients 1/n! for n = 13 down to 0. On |r| <= ln(2)/2 the remainder is under 5e-18.
const COEFFICIENTS: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    1.0 / 2.0,
    1.0,
    1.0,
];
/// Independent partial sums of [`sum`]: enough to fill two vector registers of any instruction set.
const LANES: usize = 8;

/// e to the power of `x`, for `x <= 0`, within 1 ulp. `exp(0)` is exactly 1. No branches, so that loops over rows vectorise.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let clamped = x.max(SMALLEST_ARGUMENT);
    let shifted = clamped * std::f64::consts::LOG2_E + ROUNDER;
    let power = shifted - ROUNDER;
    let rest = (clamped - power * LN2_HIGH) - power * LN2_LOW;
    let series = COEFFICIENTS.iter().fold(0.0, |value, coefficient| value * rest + coefficient);
    // The low bits of `shifted` hold the power; moved into the exponent field they multiply by 2^power.
    let scaled = f64::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x < SMALLEST_ARGUMENT { 0.0 } else { scaled }
}

/// Natural logarithm (the pure Rust port of musl's).
pub(super) fn ln(x: f64) -> f64 {
    libm::log(x)
}

/// Sum of a row: 8 partial sums, over the indices equal modulo 8, folded as a tree. The order is part of the numerics.
#[inline(always)]
pub(super) fn sum(row: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(ours: f64, theirs: f64) -> u64 {
        ours.to_bits().abs_diff(theirs.to_bits())
    }

    #[test]
    fn exp_is_within_one_ulp_of_the_platforms() {
        let steps = 2_000_000;
        let worst = (0..=steps).map(|i| -707.9 * f64::from(i) / f64::from(steps)).map(|x| ulps(exp(x), x.exp())).max();
        assert!(worst <= Some(1), "{worst:?} ulp");
        let near_zero = (1..1_000_000).map(|i| -1e-6 * f64::from(i)).map(|x| ulps(exp(x), x.exp())).max();
        assert!(near_zero <= Some(1), "{near_zero:?} ulp");
    }

    #[test]
    fn exp_is_exact_at_its_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-5e-324), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::MIN), 0.0);
        assert_eq!(exp(-708.5), 0.0);
        assert!(exp(-708.0) > 0.0);
    }

    #[test]
    fn ln_is_within_one_ulp_of_the_platforms() {
        let worst = (1..1_000_000).map(|i| 0.37 * f64::from(i)).map(|x| ulps(ln(x), x.ln())).max();
        assert!(worst <= Some(1), "{worst:?} ulp");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn a_sum_takes_every_value_once() {
        for length in 0..40_u32 {
            let row: Vec<f64> = (0..length).map(f64::from).collect();
            assert_eq!(sum(&row), f64::from(length * length.saturating_sub(1) / 2));
        }
    }
}
