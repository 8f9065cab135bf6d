//! The promises of the kernels, on every instruction set this CPU has: equal bits alone and among others, on any number of
//! threads, and agreement with arithmetic written out.

mod attention;
mod lora;
pub(crate) mod matmul;

use std::num::NonZero;

use crate::{Isa, Pool, Rows};

fn pools() -> Vec<Pool> {
    let threads = |threads| NonZero::new(threads).unwrap();
    let one = Isa::available().into_iter().map(|isa| Pool::new(threads(1), isa).unwrap());
    one.chain([Pool::new(threads(3), Isa::best()).unwrap()]).collect()
}

/// Numbers of a seed, between -1 and 1, with a few outliers as activations have them.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let number = |_| {
        let (value, is_outlier) = (next(), next() > 0.96);
        if is_outlier { value * 40.0 } else { value }
    };
    (0..count).map(number).collect()
}

pub(crate) fn rows(values: &[f32], width: usize) -> Rows {
    let mut rows = Rows::new(width);
    rows.resize(values.len() / width);
    for (row, values) in values.chunks(width).enumerate() {
        rows.row_mut(row).copy_from_slice(values);
    }
    rows
}

pub(crate) fn bits(rows: &Rows) -> Vec<u32> {
    (0..rows.count()).flat_map(|row| rows.row(row).iter().map(|value| value.to_bits())).collect()
}
