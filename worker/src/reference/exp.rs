//! The exponential in f32, with the same bits on every machine: IEEE additions, multiplications and bit operations in a
//! fixed order, which Rust never contracts. The platform's `expf` differs between C libraries. Called by `attention` and
//! `swiglu`; never with NaN.

/// Below this the result is 0 and not a denormal.
const SMALLEST_ARGUMENT: f32 = -87.3;
/// Above this the result stays what it is here, 1.65e38: a gate that far out is 0 in any case.
const LARGEST_ARGUMENT: f32 = 88.0;
/// ln 2 in two parts (Cephes `expf`): the first has so few bits that its product with an exponent is exact.
const LN2_HIGH: f32 = f32::from_bits(0x3f31_8000);
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 x 2^23: adding it rounds to an integer, which then stands in the low bits of the sum.
const ROUNDER: f32 = 12_582_912.0;
/// Cephes' polynomial for (e^r - 1 - r) / r^2 on |r| <= ln(2)/2, highest power first.
const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];

/// e to the power of `x`, within 2 ulp. No branches, so that loops over rows vectorise.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(SMALLEST_ARGUMENT, LARGEST_ARGUMENT);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let power = shifted - ROUNDER;
    let rest = (clamped - power * LN2_HIGH) - power * LN2_LOW;
    let tail = COEFFICIENTS.iter().fold(0.0, |value, coefficient| value * rest + coefficient);
    let series = (tail * (rest * rest) + rest) + 1.0;
    // The low bits of `shifted` hold the power; moved into the exponent field they multiply by 2^power.
    let scaled = f32::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < SMALLEST_ARGUMENT { 0.0 } else { scaled }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_exact_value() {
        let worst = (-873_000..880_000)
            .map(|i| i as f32 * 1e-4)
            .map(|x| exp(x).to_bits().abs_diff((f64::from(x).exp() as f32).to_bits()))
            .max();
        assert!(worst <= Some(2), "{worst:?} ulp");
    }

    #[test]
    fn exp_is_exact_at_its_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-87.4), 0.0);
        assert!(exp(-87.3) > 0.0);
        assert!(exp(f32::INFINITY).is_finite());
    }
}
