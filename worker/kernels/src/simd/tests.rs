//! Every instruction set does what the portable code does, bit for bit.

use proptest::prelude::*;

use super::{LANES, Op, Simd, dispatch};
use crate::Isa;

/// Every operation on one set of operands, as bits.
struct Everything {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
    weights: [u8; 64],
    values: [i8; 4],
}

impl Op for Everything {
    type Output = Vec<i32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<i32> {
        let (a, b, c) = (s.load(&self.a), s.load(&self.b), s.load(&self.c));
        let small = s.max(s.min(a, s.splat(1e6)), s.splat(-1e6));
        let mut out = Vec::new();
        let floats = [
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.fma(a, b, c),
            s.max(a, b),
            s.min(a, b),
            s.select_lt(a, b, c, a),
            s.float(s.round(small)),
            s.from_bits(s.to_exponent(s.and_i(s.bits(a), s.splat_i(255)))),
        ];
        for value in floats {
            let mut lanes = [0.0; LANES];
            s.store(value, &mut lanes);
            out.extend(lanes.map(|lane| lane.to_bits().cast_signed()));
        }
        let mut halves = [0; LANES];
        s.store_f16(a, &mut halves);
        out.extend(halves.map(i32::from));
        out.push(s.sum(s.load_f16(&halves)).to_bits().cast_signed());
        let mut lanes = [0.0; LANES];
        s.store(s.load_bf16(&halves), &mut lanes);
        out.extend(lanes.map(|lane| lane.to_bits().cast_signed()));
        let wholes: [i16; LANES] = std::array::from_fn(|lane| (halves[lane] ^ 0x5a5a).cast_signed());
        s.store(s.load_i16(&wholes), &mut lanes);
        assert_eq!(lanes, wholes.map(f32::from));
        out.push(s.sum(small).to_bits().cast_signed());
        out.extend(s.sum_four([a, small, b, c]).map(|sum| sum.to_bits().cast_signed()));
        assert_eq!(s.sum_four([a, small, b, c])[1].to_bits(), s.sum(small).to_bits());
        out.push(s.greatest_i(s.max_i(s.bits(a), s.bits(b))));
        out.push(s.sum_i(s.add_i(s.bits(a), s.bits(b))));
        let [a_bits, b_bits, c_bits] = [s.bits(a), s.bits(b), s.bits(c)];
        out.extend(s.greatest_of_each([a_bits, b_bits, c_bits, s.max_i(a_bits, b_bits), b_bits]));
        out.extend(s.sum_of_each([a_bits, b_bits, c_bits, s.add_i(a_bits, b_bits), b_bits]));
        let mut bytes = [0; LANES];
        s.store_i8(s.round(s.max(s.min(a, s.splat(127.0)), s.splat(-127.0))), &mut bytes);
        out.extend(bytes.map(i32::from));
        out.extend(self.dots(s));
        out
    }
}

impl Everything {
    #[inline(always)]
    fn dots<S: Simd>(&self, s: S) -> Vec<i32> {
        // SAFETY: 64 bytes and 4.
        let (weights, (low, high), values) =
            unsafe { (s.bytes(self.weights.as_ptr()), s.nibbles(self.weights.as_ptr()), s.quad(self.values.as_ptr())) };
        let minus128 = self.values.iter().map(|&value| -128 * i32::from(value)).sum();
        let mut nibbles = s.begin_dots(7);
        for _ in 0..4 {
            nibbles = s.dot_nibbles(s.dot_nibbles(nibbles, low, values), high, values);
        }
        let six = s.six_bits(low, weights, 1);
        let mut sixes = s.begin_dots(-3);
        for _ in 0..3 {
            sixes = s.settle(s.dot_nibbles(s.dot_nibbles(sixes, six, values), six, values));
        }
        let dots = [s.end_dots(nibbles), s.end_dots(sixes), s.dot_bytes(s.begin_bytes(minus128), weights, values)];
        let mut out = Vec::new();
        for dot in dots {
            let mut lanes = [0.0; LANES];
            s.store(s.float(dot), &mut lanes);
            out.extend(lanes.map(|lane| lane as i32));
        }
        out
    }
}

/// Any bits, NaN apart: which NaN comes out of NaN is no promise.
fn float() -> impl Strategy<Value = f32> {
    prop_oneof![
        (-1e4f32..1e4),
        any::<u32>().prop_map(f32::from_bits).prop_filter("no nan", |value| !value.is_nan()),
        prop::sample::select(vec![0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 65504.0, 65519.9, 65520.0, 6e-8, f32::INFINITY]),
    ]
}

/// NaN results are one value.
fn same(bits: i32) -> i32 {
    if f32::from_bits(bits.cast_unsigned()).is_nan() { i32::MIN } else { bits }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_instruction_set_computes_what_the_portable_code_does(
        a in prop::array::uniform16(float()),
        b in prop::array::uniform16(float()),
        c in prop::array::uniform16(float()),
        weights in prop::collection::vec(prop_oneof![any::<u8>(), Just(255)], 64),
        values in prop::array::uniform4(prop_oneof![-127i8..=127, Just(-127), Just(127)]),
    ) {
        let weights: [u8; 64] = weights.try_into().unwrap();
        let on = |isa| -> Vec<i32> {
            dispatch(isa, Everything { a, b, c, weights, values }).into_iter().map(same).collect()
        };
        let expected = on(Isa::PORTABLE);
        for isa in Isa::available() {
            prop_assert_eq!(on(isa), expected.clone(), "{}", isa);
        }
    }
}
