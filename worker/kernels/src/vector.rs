//! Elementwise arithmetic that several kernels share: the exponential, the gate, the scale of a norm.

use crate::simd::{LANES, Simd};

/// Below this the exponential is 0 and not a denormal.
const SMALLEST_ARGUMENT: f32 = -87.3;
/// Above this the exponential stays what it is here, 1.65e38: a gate that far out is 0 in any case.
const LARGEST_ARGUMENT: f32 = 88.0;
/// ln 2 in two parts (Cephes `expf`).
const LN2_HIGH: f32 = f32::from_bits(0x3f31_8000);
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 x 2^23: adding it rounds to an integer, which then stands in the low bits of the sum.
const ROUNDER: f32 = 12_582_912.0;
/// Cephes' polynomial for (e^r - 1 - r) / r^2 on |r| <= ln(2)/2, highest power first.
const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];

/// e to the power of `x`, within 2 ulp. For NaN it is not defined.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let clamped = s.min(s.max(x, s.splat(SMALLEST_ARGUMENT)), s.splat(LARGEST_ARGUMENT));
    let shifted = s.fma(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(ROUNDER));
    let power = s.sub(shifted, s.splat(ROUNDER));
    let rest = s.fma(power, s.splat(-LN2_HIGH), clamped);
    let rest = s.fma(power, s.splat(-LN2_LOW), rest);
    let mut tail = s.splat(COEFFICIENTS[0]);
    for &coefficient in &COEFFICIENTS[1..] {
        tail = s.fma(tail, rest, s.splat(coefficient));
    }
    let series = s.add(s.fma(tail, s.mul(rest, rest), rest), s.splat(1.0));
    // The low bits of `shifted` hold the power; moved into the exponent field they multiply by 2^power.
    let scaled = s.from_bits(s.add_i(s.bits(series), s.to_exponent(s.bits(shifted))));
    s.select_lt(x, s.splat(SMALLEST_ARGUMENT), s.splat(0.0), scaled)
}

/// gate / (1 + e^-gate) x up
#[inline(always)]
pub(crate) fn swiglu<S: Simd>(s: S, gate: S::F, up: S::F) -> S::F {
    let damping = s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), gate)));
    s.mul(s.div(gate, damping), up)
}

/// 1 / sqrt(mean square + eps) of a row of `length` elements, zeros at its end included in `x` but not in the mean.
#[inline(always)]
pub(crate) fn rms_scale<S: Simd>(s: S, x: &[[f32; LANES]], length: usize, eps: f32) -> f32 {
    let mut squares = s.splat(0.0);
    for x in x {
        let x = s.load(x);
        squares = s.fma(x, x, squares);
    }
    1.0 / (s.sum(squares) / length as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{Op, dispatch};

    struct Exp([f32; LANES]);

    impl Op for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            s.store(exp(s, s.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn exp_is_within_two_ulp_of_the_exact_value() {
        let values: Vec<f32> = (-872_992..880_000).map(|i| i as f32 * 1e-4).collect();
        for x in values.as_chunks::<LANES>().0 {
            for (x, y) in x.iter().zip(dispatch(Isa::best(), Exp(*x))) {
                let ulps = y.to_bits().abs_diff((f64::from(*x).exp() as f32).to_bits());
                assert!(ulps <= 2, "e^{x} is {y}: {ulps} ulp");
            }
        }
    }

    #[test]
    fn exp_is_the_same_on_every_instruction_set() {
        let values: Vec<f32> = (0..1 << 20).map(|i| f32::from_bits(i << 12)).filter(|x| !x.is_nan()).collect();
        for x in values.as_chunks::<LANES>().0 {
            let expected = dispatch(Isa::PORTABLE, Exp(*x)).map(f32::to_bits);
            for isa in Isa::available() {
                assert_eq!(dispatch(isa, Exp(*x)).map(f32::to_bits), expected, "{isa}: {x:?}");
            }
        }
    }

    #[test]
    fn exp_is_exact_at_its_ends() {
        let mut x = [0.0; LANES];
        x[..6].copy_from_slice(&[0.0, -0.0, f32::NEG_INFINITY, -87.4, -87.3, f32::INFINITY]);
        let y = dispatch(Isa::best(), Exp(x));
        assert_eq!(y[..4], [1.0, 1.0, 0.0, 0.0]);
        assert!(y[4] > 0.0 && y[5].is_finite());
    }
}
