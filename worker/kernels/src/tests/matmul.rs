//! Matmul, quantisation, norms and gates.

use half::f16;
use proptest::prelude::*;

use super::{bits, numbers, pools, rows};
use crate::{Activations, Arena, BLOCK, Encoding, Matrix, Pool, Rows, SUPER_BLOCK, Weights, Write, padded};

fn has_minima(encoding: Encoding) -> bool {
    use Encoding::{BytesWideMin, HalfBytesMin, NibblesMin, NibblesWideMin};
    matches!(encoding, NibblesMin | NibblesWideMin | BytesWideMin | HalfBytesMin)
}

/// The weights of one output: all quants that the encoding can hold occur, the extremes often.
fn weights_of(encoding: Encoding, inputs: usize, output: usize) -> Weights {
    let is_nibbles = matches!(encoding, Encoding::Nibbles | Encoding::NibblesMin | Encoding::NibblesWideMin);
    let values = numbers(output as u64 + 1, padded(inputs));
    let quant = |(input, value): (usize, &f32)| match (is_nibbles, input < inputs) {
        (_, false) => 0,
        _ if encoding == Encoding::SixBits => ((value * 64.0) as i32 & 63) as u8,
        (true, true) => ((value * 16.0) as i32 & 15) as u8,
        (false, true) if input % 5 == 0 => 128,
        (false, true) => ((value * 256.0) as i32 & 255) as u8,
    };
    let groups = padded(inputs) / encoding.group();
    let exact = |value: f32| f16::from_f32(value).to_f32();
    let scale = |value: f32| match encoding {
        Encoding::SixBits => (value * 127.0).clamp(-128.0, 127.0).round(),
        _ => exact(value * 0.01),
    };
    Weights {
        quants: values.iter().enumerate().map(quant).collect(),
        scales: numbers(output as u64 + 77, groups).into_iter().map(scale).collect(),
        supers: numbers(output as u64 + 55, padded(inputs).div_ceil(SUPER_BLOCK)).into_iter().map(exact).collect(),
        minima: numbers(output as u64 + 99, groups).into_iter().map(|value| exact(value * 0.1)).collect(),
    }
}

pub(crate) fn matrix(
    pool: &mut Pool,
    encoding: Encoding,
    inputs: usize,
    parts: &[usize],
    bias: Option<&[f32]>,
) -> Matrix {
    let mut matrix = Matrix::new(inputs, &Arena::default());
    for &outputs in parts {
        matrix.push(pool, encoding, outputs, bias.map(|bias| &bias[..outputs]), |output, to| {
            *to = weights_of(encoding, inputs, output);
        });
    }
    matrix
}

/// What the kernel's file says, written out for one row and one output.
fn written_out(encoding: Encoding, x: &[f32], weights: &Weights) -> f32 {
    let mut sum = 0.0f32;
    for block in 0..padded(x.len()) / BLOCK {
        let value = |at: usize| x.get(block * BLOCK + at).copied().unwrap_or(0.0);
        let amax = (0..BLOCK).map(|at| value(at).abs()).fold(0.0, f32::max);
        let (scale, inverse) = if amax < 2f32.powi(-100) { (0.0, 0.0) } else { (amax / 127.0, 127.0 / amax) };
        let quants: Vec<i32> = (0..BLOCK).map(|at| (value(at) * inverse).round_ties_even() as i32).collect();
        for (within, quants) in quants.chunks(encoding.group()).enumerate() {
            let group = block * BLOCK / encoding.group() + within;
            let stored = &weights.quants[group * encoding.group()..][..encoding.group()];
            let weight = |stored: u8| match encoding {
                Encoding::Nibbles => i32::from(stored) - 8,
                Encoding::NibblesMin | Encoding::NibblesWideMin => i32::from(stored),
                Encoding::SixBits => i32::from(stored) - 32,
                _ => i32::from(stored.cast_signed()),
            };
            let dot: i32 = quants.iter().zip(stored).map(|(x, stored)| x * weight(*stored)).sum();
            let common = if encoding == Encoding::SixBits { weights.supers[block * BLOCK / SUPER_BLOCK] } else { 1.0 };
            sum = (dot as f32).mul_add(common * weights.scales[group] * scale, sum);
            if has_minima(encoding) {
                let total: i32 = quants.iter().sum();
                sum = weights.minima[group].mul_add(scale * total as f32, sum);
            }
        }
    }
    sum
}

pub(crate) fn multiply(pool: &mut Pool, matrix: &Matrix, x: &Rows, write: Write) -> Rows {
    let (mut quantised, mut y) = (Activations::new(x.width()), Rows::new(matrix.width()));
    quantised.quantise(pool, x);
    y.resize(x.count());
    for row in 0..x.count() {
        y.row_mut(row).fill(0.25);
    }
    matrix.multiply(pool, &quantised, &mut y, write);
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_product_is_what_is_written_out_on_every_instruction_set(
        which in 0..Encoding::ALL.len(), inputs in 1..600usize, outputs in 1..70usize, count in 1..30usize, seed: u32,
    ) {
        let encoding = Encoding::ALL[which];
        let values = numbers(u64::from(seed), count * inputs);
        let x = rows(&values, inputs);
        for pool in &mut pools() {
            let matrix = matrix(pool, encoding, inputs, &[outputs], None);
            let y = multiply(pool, &matrix, &x, Write::Set);
            for (row, x) in values.chunks(inputs).enumerate() {
                for output in 0..outputs {
                    let expected = written_out(encoding, x, &weights_of(encoding, inputs, output));
                    prop_assert_eq!(y.row(row)[output].to_bits(), expected.to_bits(), "{:?} on {:?}", encoding, pool);
                }
            }
        }
    }

    #[test]
    fn rows_that_are_computed_together_do_not_show(
        which in 0..Encoding::ALL.len(), inputs in 1..100usize, outputs in 1..40usize, count in 2..40usize, seed: u32,
    ) {
        let values = numbers(u64::from(seed), count * inputs);
        let pool = &mut pools().pop().unwrap();
        let matrix = matrix(pool, Encoding::ALL[which], inputs, &[outputs], None);
        let together = multiply(pool, &matrix, &rows(&values, inputs), Write::Set);
        for (row, x) in values.chunks(inputs).enumerate() {
            let alone = multiply(pool, &matrix, &rows(x, inputs), Write::Set);
            prop_assert_eq!(&bits(&alone)[..], &bits(&together)[row * outputs..(row + 1) * outputs]);
        }
    }

    #[test]
    fn norms_and_gates_are_the_same_on_every_instruction_set_and_close_to_exact(
        width in 1..150usize, count in 1..20usize, seed: u32,
    ) {
        let (values, eps) = (numbers(u64::from(seed), count * width), 1e-5);
        let mut weights = numbers(3, width);
        weights.resize(padded(width), 0.0);
        // gates, then ups, each padded
        let wide: Vec<f32> = values.chunks(width).flat_map(|row| {
            let mut row = row.to_vec();
            row.resize(padded(width), 0.0);
            [row.clone(), row].concat()
        }).collect();
        let unit = |pool: &mut Pool| {
            let mut unit = Matrix::new(width, &Arena::default());
            unit.push(pool, Encoding::Bytes, width, None, |output, to| {
                to.quants[output] = 1;
                to.scales.fill(1.0);
            });
            unit
        };
        let mut seen: Vec<Vec<u32>> = Vec::new();
        for pool in &mut pools() {
            let unit = unit(pool);
            let (mut quantised, mut y) = (Activations::new(width), Rows::new(width));
            y.resize(count);
            quantised.quantise_normed(pool, &rows(&values, width), (&weights, eps), None);
            unit.multiply(pool, &quantised, &mut y, Write::Set);
            let mut all = bits(&y);
            for (row, x) in values.chunks(width).enumerate() {
                let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                let exact = |at: usize| f64::from(x[at]) / (square + f64::from(eps)).sqrt() * f64::from(weights[at]);
                assert_quantised(y.row(row), exact);
            }
            quantised.quantise_gated(pool, &rows(&wide, 2 * padded(width)), None);
            unit.multiply(pool, &quantised, &mut y, Write::Set);
            all.extend(bits(&y));
            for (row, x) in values.chunks(width).enumerate() {
                assert_quantised(y.row(row), |at| f64::from(x[at]).powi(2) / (1.0 + (-f64::from(x[at])).exp()));
            }
            seen.push(all);
        }
        prop_assert!(seen.iter().all(|all| *all == seen[0]));
    }
}

/// Within half a quant of the exact values.
fn assert_quantised(row: &[f32], exact: impl Fn(usize) -> f64) {
    for (block, values) in row.chunks(BLOCK).enumerate() {
        let amax = (0..values.len()).map(|at| exact(block * BLOCK + at).abs()).fold(0.0, f64::max);
        for (at, value) in values.iter().enumerate() {
            let exact = exact(block * BLOCK + at);
            assert!((f64::from(*value) - exact).abs() <= amax * 0.51 / 127.0 + 1e-30, "{value} for {exact} of {amax}");
        }
    }
}

#[test]
fn parts_lie_side_by_side_and_biases_are_added_once() {
    let bias = numbers(5, 50);
    for pool in &mut pools() {
        let x = rows(&numbers(1, 3 * 70), 70);
        let fused = matrix(pool, Encoding::NibblesMin, 70, &[50, 17, 33], Some(&bias));
        assert_eq!(fused.width(), 64 + 32 + 33);
        let y = multiply(pool, &fused, &x, Write::Set);
        for (at, outputs) in [(0, 50), (64, 17), (96, 33)] {
            let apart = matrix(pool, Encoding::NibblesMin, 70, &[outputs], None);
            let without = multiply(pool, &apart, &x, Write::Set);
            for row in 0..3 {
                for output in 0..outputs {
                    assert_eq!(y.row(row)[at + output], without.row(row)[output] + bias[output]);
                }
            }
        }
    }
}

#[test]
fn adding_adds_the_whole_product() {
    for pool in &mut pools() {
        let x = rows(&numbers(1, 5 * 64), 64);
        let matrix = matrix(pool, Encoding::Bytes, 64, &[37], None);
        let (product, sum) = (multiply(pool, &matrix, &x, Write::Set), multiply(pool, &matrix, &x, Write::Add));
        for row in 0..5 {
            let expected: Vec<f32> = product.row(row).iter().map(|value| 0.25 + value).collect();
            assert_eq!(sum.row(row), expected);
        }
    }
}

#[test]
fn an_output_without_padding_is_the_same() {
    for pool in &mut pools() {
        let x = rows(&numbers(1, 9 * 64), 64);
        let matrix = matrix(pool, Encoding::Bytes, 64, &[37], None);
        let padded = multiply(pool, &matrix, &x, Write::Set);
        let (mut quantised, mut dense) = (Activations::new(64), vec![f32::NAN; 9 * 37]);
        quantised.quantise(pool, &x);
        matrix.multiply_into(pool, &quantised, &mut dense);
        assert_eq!(dense.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), bits(&padded));
    }
}

#[test]
fn weights_are_read_back_as_they_were_packed() {
    let pool = &mut pools().pop().unwrap();
    for encoding in Encoding::ALL {
        let matrix = matrix(pool, encoding, 75, &[21], None);
        for output in [0, 15, 16, 20] {
            let (weights, mut read) = (weights_of(encoding, 75, output), vec![0.0; 75]);
            matrix.weights_of(output, &mut read);
            for (input, value) in read.iter().enumerate() {
                let (stored, group) = (weights.quants[input], input / encoding.group());
                let quant = match encoding {
                    Encoding::Nibbles => f32::from(stored) - 8.0,
                    Encoding::NibblesMin | Encoding::NibblesWideMin => f32::from(stored),
                    Encoding::SixBits => f32::from(stored) - 32.0,
                    _ => f32::from(stored.cast_signed()),
                };
                let minimum = if has_minima(encoding) { weights.minima[group] } else { 0.0 };
                let common = if encoding == Encoding::SixBits { weights.supers[input / SUPER_BLOCK] } else { 1.0 };
                let expected = quant * (common * weights.scales[group]) + minimum;
                assert_eq!(*value, expected, "{encoding:?} {output} {input}");
            }
        }
    }
}

#[test]
fn bytes_are_known_before_anything_is_packed() {
    let pool = &mut pools().pop().unwrap();
    for encoding in Encoding::ALL {
        for (inputs, outputs) in [(32, 16), (75, 21), (576, 960)] {
            let matrix = matrix(pool, encoding, inputs, &[outputs], None);
            assert_eq!(Matrix::bytes_of(encoding, inputs, outputs), matrix.bytes(), "{encoding:?}");
        }
    }
}

#[test]
fn what_is_not_finite_harms_its_own_row_only() {
    for pool in &mut pools() {
        let matrix = matrix(pool, Encoding::Nibbles, 64, &[20], None);
        let clean = multiply(pool, &matrix, &rows(&numbers(1, 3 * 64), 64), Write::Set);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = numbers(1, 3 * 64);
            values[64 + 7] = bad;
            let y = multiply(pool, &matrix, &rows(&values, 64), Write::Set);
            assert!(y.row(1).iter().all(|value| value.is_nan()), "{bad}");
            assert_eq!((y.row(0), y.row(2)), (clean.row(0), clean.row(2)));
        }
    }
}
