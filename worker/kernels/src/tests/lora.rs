//! Low-rank updates.

use half::{bf16, f16};
use proptest::prelude::*;

use super::matmul::matrix;
use super::{bits, numbers, pools, rows};
use crate::simd::LANES;
use crate::{
    Activations, Arena, Encoding, Factors, Kept, Lora, LowRank, Matrix, Pool, Precision, Rows, Unpacked, Write, padded,
};

/// How wide the numbers of an update are before it is packed.
#[derive(Clone, Copy, Debug)]
enum Width {
    Single,
    Half,
    UpperHalf,
}

const WIDTHS: [Width; 3] = [Width::Single, Width::Half, Width::UpperHalf];

/// Layers as outputs and ranks; a rank of zero is a layer without an update.
fn update(seed: u64, width: Width, inputs: usize, layers: &[(usize, usize)]) -> LowRank {
    update_in(Precision::Exact, seed, width, inputs, layers)
}

fn update_in(precision: Precision, seed: u64, width: Width, inputs: usize, layers: &[(usize, usize)]) -> LowRank {
    let narrow = |value: f32| match width {
        Width::Single => value,
        Width::Half => f16::from_f32(value).to_f32(),
        Width::UpperHalf => bf16::from_f32(value).to_f32(),
    };
    let values = |seed, count| numbers(seed, count).into_iter().map(narrow).collect::<Vec<f32>>();
    let (mut at, mut factors) = (0, Vec::new());
    for (index, &(outputs, rank)) in layers.iter().enumerate() {
        let seed = seed * 100 + 2 * index as u64;
        factors.push((at, outputs, rank, values(seed, rank * inputs), values(seed + 1, outputs * rank)));
        at += padded(outputs);
    }
    let parts: Vec<Factors<'_>> = factors
        .iter()
        .filter(|(_, _, rank, ..)| *rank > 0)
        .map(|(at, outputs, rank, a, b)| Factors {
            at: *at,
            outputs: *outputs,
            rank: *rank,
            scale: 0.37 * (*at + 1) as f32,
            a,
            b,
        })
        .collect();
    LowRank::pack(&Arena::default(), precision, inputs, &parts)
}

/// What the kernel's file says, written out for one row.
fn written_out(update: &LowRank, x: &[f32], y: &mut [f32]) {
    for Unpacked { at, rank, scale, a, b } in update.unpack() {
        let reduced: Vec<f32> = a.chunks(x.len()).map(|a| reduce(x, a)).collect();
        for (y, b) in y[at..].iter_mut().zip(b.chunks(rank)) {
            let sum = reduced.iter().zip(b).fold(0.0f32, |sum, (reduced, b)| reduced.mul_add(*b, sum));
            *y = scale.mul_add(sum, *y);
        }
    }
}

fn reduce(x: &[f32], a: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (k, (x, a)) in x.iter().zip(a).enumerate() {
        lanes[k % LANES] = x.mul_add(*a, lanes[k % LANES]);
    }
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|lane| lanes[lane] += lanes[lane + half]);
    }
    lanes[0]
}

/// The weights beside updates of `layers`.
fn weights(pool: &mut Pool, inputs: usize, layers: &[(usize, usize)]) -> Matrix {
    let outputs: Vec<usize> = layers.iter().map(|(outputs, _)| *outputs).collect();
    matrix(pool, Encoding::Bytes, inputs, &outputs, None)
}

/// The outputs of a step whose rows have these adapters.
fn add(
    pool: &mut Pool,
    matrix: &Matrix,
    updates: &[LowRank],
    of_rows: &[Option<usize>],
    (x, quants): (&Rows, &Activations),
    (y, write): (&Rows, Write),
) -> Rows {
    let (mut lora, mut y) = (Lora::default(), y.clone());
    lora.plan(of_rows.iter().map(|adapter| (1, *adapter)));
    let updates = lora.updates(|adapter| updates.get(adapter), x);
    matrix.multiply_adapted(pool, quants, &mut y, write, Some(updates));
    y
}

fn quantised(pool: &mut Pool, x: &Rows) -> Activations {
    let mut quants = Activations::new(x.width());
    quants.quantise(pool, x);
    quants
}

/// Every row is the product and then what is written out for it, on every instruction set and number of threads.
fn assert_written_out(updates: &[LowRank], of_rows: &[Option<usize>], inputs: usize, layers: &[(usize, usize)]) {
    let x = numbers(7, of_rows.len() * inputs);
    let rows_of_x = rows(&x, inputs);
    for pool in &mut pools() {
        let (matrix, quants) = (weights(pool, inputs, layers), quantised(pool, &rows_of_x));
        let y = rows(&numbers(8, of_rows.len() * matrix.width()), matrix.width());
        for write in [Write::Set, Write::Add] {
            let mut expected = y.clone();
            matrix.multiply(pool, &quants, &mut expected, write);
            for (row, adapter) in of_rows.iter().enumerate() {
                if let Some(update) = adapter.and_then(|adapter| updates.get(adapter)) {
                    written_out(update, &x[row * inputs..(row + 1) * inputs], expected.row_mut(row));
                }
            }
            let ours = add(pool, &matrix, updates, of_rows, (&rows_of_x, &quants), (&y, write));
            assert_eq!(bits(&ours), bits(&expected), "{pool:?}, {of_rows:?}");
        }
    }
}

#[test]
fn every_rank_is_what_is_written_out() {
    for rank in [1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 64, 256] {
        let layers = [(75, rank)];
        let updates = WIDTHS.map(|width| update(3, width, 83, &layers));
        for which in 0..3 {
            assert_written_out(&updates, &[Some(0), None, Some(which), Some(which), Some(which)], 83, &layers);
        }
    }
}

#[test]
fn layers_that_share_inputs_may_have_any_ranks_or_none() {
    for ranks in [[8, 8, 8], [3, 0, 5], [0, 0, 1], [0, 6, 0], [1, 2, 4], [70, 1, 0]] {
        let layers = [(576, ranks[0]), (192, ranks[1]), (33, ranks[2])];
        let updates = [update(5, Width::Single, 64, &layers)];
        assert_written_out(&updates, &[None, Some(0), Some(0), Some(0)], 64, &layers);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_mix_of_adapters_is_what_is_written_out(
        inputs in 1..400usize,
        first in (1..300usize, 0..20usize),
        second in (1..70usize, 1..9usize),
        of_rows in prop::collection::vec(prop::option::of(0..5usize), 1..40),
        widths in prop::array::uniform5(0..3usize),
    ) {
        let layers = |adapter: usize| [(first.0, (first.1 + adapter) % 20), (second.0, second.1)];
        let update = |adapter| update(adapter as u64, WIDTHS[widths[adapter]], inputs, &layers(adapter));
        let updates: Vec<LowRank> = (0..5).map(update).collect();
        assert_written_out(&updates, &of_rows, inputs, &layers(0));
    }
}

#[test]
fn many_rows_of_one_adapter_are_what_they_are_alone() {
    let layers = [(130, 9), (40, 2)];
    let updates = [update(1, Width::Single, 100, &layers), update(2, Width::UpperHalf, 100, &layers)];
    // Of 192 rows, some pass over the weights before the next ones do.
    let of_rows: Vec<Option<usize>> = (0..450).map(|row| [Some(0), None, Some(0), Some(1)][row % 4]).collect();
    assert_written_out(&updates, &of_rows, 100, &layers);
}

/// Updates that are worth more threads than one: into how many pieces their sums are cut depends on how many there are, on
/// their rows and on the threads.
#[test]
fn however_threads_share_updates_every_row_is_what_is_written_out() {
    let layers = [(576, 16), (192, 16)];
    let updates: Vec<LowRank> = (0..6).map(|seed| update(seed, Width::Single, 576, &layers)).collect();
    for (adapters, rows_of_each) in [(3, 1), (6, 2), (5, 2), (6, 8), (3, 9), (2, 40)] {
        let of_rows: Vec<Option<usize>> = (0..adapters * rows_of_each).map(|row| Some(row % adapters)).collect();
        assert_written_out(&updates, &of_rows, 576, &layers);
    }
}

#[test]
fn rows_without_an_adapter_are_the_product_alone_and_their_inputs_are_not_read() {
    let layers = [(50, 4)];
    let updates = [update(1, Width::Single, 40, &layers)];
    for pool in &mut pools() {
        let (matrix, quants) = (weights(pool, 40, &layers), quantised(pool, &rows(&numbers(3, 80), 40)));
        let (x, zeros) = (rows(&[[f32::NAN; 40], [1.0; 40]].concat(), 40), rows(&[0.0; 100], 50));
        let mut product = zeros.clone();
        matrix.multiply(pool, &quants, &mut product, Write::Set);
        let y = add(pool, &matrix, &updates, &[None, Some(0)], (&x, &quants), (&zeros, Write::Set));
        assert_eq!(bits(&y)[..50], bits(&product)[..50]);
        assert!(y.row(1).iter().zip(product.row(1)).all(|(y, product)| y.is_finite() && y != product));
    }
}

#[test]
fn what_is_not_finite_harms_its_own_row_only_and_nothing_beyond_the_outputs() {
    let layers = [(20, 4), (20, 4)];
    let updates = [update(1, Width::Single, 64, &layers)];
    for pool in &mut pools() {
        let mut values = numbers(1, 3 * 64);
        let (matrix, quants) = (weights(pool, 64, &layers), quantised(pool, &rows(&values, 64)));
        let zeros = (&rows(&[0.0; 3 * 52], 52), Write::Set);
        let clean = add(pool, &matrix, &updates, &[Some(0); 3], (&rows(&values, 64), &quants), zeros);
        values[64 + 7] = f32::INFINITY;
        let y = add(pool, &matrix, &updates, &[Some(0); 3], (&rows(&values, 64), &quants), zeros);
        assert_eq!((y.row(0), y.row(2)), (clean.row(0), clean.row(2)));
        assert!(y.row(1)[..20].iter().all(|value| !value.is_finite()));
        assert!(y.padded_row(1)[20..32].iter().chain(&y.padded_row(1)[52..]).all(|value| *value == 0.0));
    }
}

#[test]
fn numbers_take_sixteen_bits_where_that_loses_nothing_or_may() {
    let layers = [(576, 8), (192, 8)];
    let bytes = |precision| WIDTHS.map(|width| update_in(precision, 1, width, 576, &layers).bytes());
    let numbers = 16 * 576 + 8 * (576 + 192);
    assert_eq!(bytes(Precision::Exact), [4, 2, 2].map(|width| width * numbers));
    assert_eq!(bytes(Precision::Fixed16), [2 * numbers; 3]);
}

/// What an update of two layers is when it is read back: the second layer's part.
fn read_back(precision: Precision, a: &[f32], b: &[f32]) -> Unpacked {
    let part = Factors { at: 32, outputs: 70, rank: 6, scale: 1.5, a, b };
    let first = Factors { at: 0, outputs: 3, rank: 5, scale: 0.5, a: &a[..5 * 50], b: &b[..3 * 5] };
    LowRank::pack(&Arena::default(), precision, 50, &[first, part]).unpack().nth(1).unwrap()
}

#[test]
fn an_update_is_read_back_as_it_was_packed() {
    let (a, b) = (numbers(1, 6 * 50), numbers(2, 70 * 6));
    assert_eq!(read_back(Precision::Exact, &a, &b), Unpacked { at: 32, rank: 6, scale: 1.5, a, b });
}

#[test]
fn numbers_of_sixteen_bits_are_read_back_as_they_were_packed() {
    let of_half = |value: f32| f16::from_f32(value).to_f32();
    let of_upper_half = |value: f32| bf16::from_f32(value).to_f32();
    for narrow in [&of_half as &dyn Fn(f32) -> f32, &of_upper_half] {
        let (mut a, mut b) = (numbers(1, 6 * 50), numbers(2, 70 * 6));
        a.iter_mut().chain(&mut b).for_each(|value| *value = narrow(*value));
        // The ends of what half precision holds, and both zeros.
        a[..4].copy_from_slice(&[narrow(65_000.0), narrow(6e-8), 0.0, -0.0]);
        let unpacked = read_back(Precision::Fixed16, &a, &b);
        assert!(unpacked.a[3].is_sign_negative());
        assert_eq!(unpacked, Unpacked { at: 32, rank: 6, scale: 1.5, a, b });
    }
}

#[test]
fn what_is_kept_in_sixteen_bits_is_computed_with_as_it_is_read_back() {
    let layers = [(75, 9), (40, 3)];
    let updates = WIDTHS.map(|width| update_in(Precision::Fixed16, 3, width, 83, &layers));
    assert_written_out(&updates, &[Some(0), None, Some(1), Some(0), Some(2), Some(0)], 83, &layers);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// However large the numbers are.
    #[test]
    fn numbers_keep_fifteen_bits_of_the_largest_of_their_matrix(seed: u64, of_a in -40..50i32, of_b in -40..50i32) {
        let (mut a, mut b) = (numbers(seed, 6 * 50), numbers(seed ^ 1, 70 * 6));
        a.iter_mut().for_each(|value| *value *= 2.0f32.powi(of_a));
        b.iter_mut().for_each(|value| *value *= 2.0f32.powi(of_b));
        let unpacked = read_back(Precision::Fixed16, &a, &b);
        prop_assert_eq!(unpacked.scale, 1.5);
        for (after, before) in [(&unpacked.a, &a), (&unpacked.b, &b)] {
            let largest = before.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            for (after, before) in after.iter().zip(before) {
                prop_assert!((after - before).abs() <= largest / 32_768.0, "{} for {} beside {}", after, before, largest);
            }
        }
    }
}

#[test]
fn what_is_far_too_large_for_a_layer_keeps_all_of_its_bits() {
    let (mut a, b) = (numbers(1, 6 * 50), numbers(2, 70 * 6));
    a[7] = f32::MAX;
    assert_eq!(read_back(Precision::Fixed16, &a, &b).a, a);
}

#[test]
fn a_step_without_adapters_adds_nothing() {
    assert_written_out(&[], &[None, None], 40, &[(10, 0)]);
    let mut lora = Lora::default();
    assert!(lora.is_idle());
    lora.plan([(3, None), (2, Some(0))].into_iter());
    assert!(!lora.is_idle());
    lora.plan([(3, None)].into_iter());
    assert!(lora.is_idle());
}

#[test]
fn an_adapter_may_have_nothing_to_add_somewhere() {
    let layers = [(50, 4)];
    assert_written_out(&[], &[Some(0), None], 40, &layers);
    assert_written_out(&[update(1, Width::Single, 40, &layers)], &[Some(1), Some(0), None, Some(1)], 40, &layers);
    assert_written_out(&[update(1, Width::Single, 40, &[(50, 0)])], &[Some(0)], 40, &layers);
}

#[test]
fn an_adapter_of_a_plan_may_have_no_rows() {
    let pool = &mut pools()[0];
    let layers = [(50, 4)];
    let (update, x) = (update(1, Width::Single, 40, &layers), rows(&numbers(3, 80), 40));
    let (matrix, quants) = (weights(pool, 40, &layers), quantised(pool, &x));
    let (mut lora, mut y, mut alone) = (Lora::default(), rows(&[0.0; 100], 50), rows(&[0.0; 100], 50));
    lora.plan([(0, Some(0)), (2, None)].into_iter());
    matrix.multiply_adapted(pool, &quants, &mut y, Write::Set, Some(lora.updates(|_| Some(&update), &x)));
    matrix.multiply(pool, &quants, &mut alone, Write::Set);
    assert_eq!(bits(&y), bits(&alone));
}

#[test]
fn the_same_room_serves_one_product_after_the_other() {
    let pool = &mut pools()[0];
    let layers = [(50, 4)];
    let (few, many) = (update(1, Width::Single, 40, &layers), update(2, Width::Single, 40, &[(50, 70)]));
    let x = rows(&numbers(3, 80), 40);
    let (matrix, quants) = (weights(pool, 40, &layers), quantised(pool, &x));
    let mut lora = Lora::default();
    lora.plan([(2, Some(0))].into_iter());
    let mut outputs = |update| {
        let mut y = rows(&[0.0; 100], 50);
        matrix.multiply_adapted(pool, &quants, &mut y, Write::Set, Some(lora.updates(|_| Some(update), &x)));
        bits(&y)
    };
    let first = outputs(&few);
    assert_ne!(outputs(&many), first);
    assert_eq!(outputs(&few), first);
}

#[test]
#[should_panic = "sizes of A and B"]
fn factors_of_another_size_are_refused() {
    LowRank::pack(
        &Arena::default(),
        Precision::Exact,
        4,
        &[Factors { at: 0, outputs: 2, rank: 1, scale: 1.0, a: &[0.0; 4], b: &[0.0; 3] }],
    );
}

#[test]
#[should_panic = "rank and place"]
fn layers_whose_outputs_overlap_are_refused() {
    let part = Factors { at: 0, outputs: 20, rank: 1, scale: 1.0, a: &[0.0; 4], b: &[0.0; 20] };
    LowRank::pack(&Arena::default(), Precision::Exact, 4, &[part, Factors { at: 16, ..part }]);
}

#[test]
#[should_panic = "outputs of an update"]
fn outputs_beyond_the_row_are_refused() {
    let pool = &mut pools()[0];
    let (x, y) = (rows(&[1.0; 40], 40), rows(&[0.0; 49], 49));
    let (matrix, quants) = (weights(pool, 40, &[(49, 4)]), quantised(pool, &x));
    let updates = [update(1, Width::Single, 40, &[(50, 4)])];
    add(pool, &matrix, &updates, &[Some(0)], (&x, &quants), (&y, Write::Set));
}

#[test]
fn what_is_quantised_is_kept_as_it_is_for_rows_with_an_adapter() {
    let (count, wide) = (5, 75);
    let x = numbers(4, count * wide);
    let mut weights = numbers(3, wide);
    weights.resize(padded(wide), 0.0);
    let both: Vec<f32> = x.chunks(wide).flat_map(|row| [row, &[0.0; 21], row, &[0.0; 21]].concat()).collect();
    let mut lora = Lora::default();
    lora.plan([(1, None), (2, Some(1)), (1, Some(0)), (1, None)].into_iter());
    let mut seen = Vec::new();
    for pool in &mut pools() {
        let (mut quants, mut normed, mut gated) = (Activations::new(wide), Rows::new(wide), Rows::new(wide));
        let kept = Kept { rows: &mut normed, lora: &lora };
        quants.quantise_normed(pool, &rows(&x, wide), (&weights, 1e-5), Some(kept));
        let kept = Kept { rows: &mut gated, lora: &lora };
        quants.quantise_gated(pool, &rows(&both, 2 * padded(wide)), Some(kept));
        for (row, x) in x.chunks(wide).enumerate() {
            let has_adapter = (1..4).contains(&row);
            let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / wide as f64;
            for (at, x) in x.iter().map(|x| f64::from(*x)).enumerate() {
                let exact = [x / (square + 1e-5).sqrt() * f64::from(weights[at]), x * x / (1.0 + (-x).exp())];
                for (ours, exact) in [normed.row(row)[at], gated.row(row)[at]].into_iter().zip(exact) {
                    let exact = if has_adapter { exact } else { 0.0 };
                    assert!((f64::from(ours) - exact).abs() <= 1e-6 * exact.abs().max(1e-3), "{ours} for {exact}");
                }
            }
        }
        seen.push((bits(&normed), bits(&gated)));
    }
    assert!(seen.iter().all(|all| *all == seen[0]));
}
