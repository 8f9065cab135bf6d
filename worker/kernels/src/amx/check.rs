//! A few small products, before anybody relies on tiles: whether their bits are the portable code's.

use std::num::NonZero;

use crate::{Activations, Arena, BLOCK, Encoding, Isa, Matrix, Pool, Rows, Weights, Write};

/// Four steps that are multiplied together, and one that is left over.
const INPUTS: usize = 5 * BLOCK;
/// One panel.
const OUTPUTS: usize = 16;
/// One group, and two, of five and four, that lie side by side.
const ROWS: [usize; 2] = [5, 9];

/// Whether products on `isa` equal the portable ones. Takes less than a millisecond.
pub(super) fn has_the_portable_bits(isa: Isa) -> bool {
    let products = products(isa);
    !products.is_empty() && products == self::products(Isa::PORTABLE)
}

/// Bits of the products of all encodings on `isa`; none if something is in the way.
fn products(isa: Isa) -> Vec<u32> {
    let Ok(mut pool) = Pool::new(NonZero::<usize>::MIN, isa) else { return Vec::new() };
    let mut bits = Vec::new();
    for encoding in Encoding::ALL {
        let matrix = matrix(&mut pool, encoding);
        for rows in ROWS {
            let x = inputs(&mut pool, rows);
            let mut y = Rows::new(OUTPUTS);
            y.resize(rows);
            matrix.multiply(&mut pool, &x, &mut y, Write::Set);
            bits.extend((0..rows).flat_map(|row| y.row(row)).map(|y| y.to_bits()));
        }
    }
    bits
}

fn inputs(pool: &mut Pool, rows: usize) -> Activations {
    let mut x = Rows::new(INPUTS);
    x.resize(rows);
    let mut seed = 1;
    for row in 0..rows {
        x.row_mut(row).iter_mut().for_each(|x| *x = f32::from(noise(&mut seed).cast_signed()));
    }
    let mut quantised = Activations::new(INPUTS);
    quantised.quantise(pool, &x);
    quantised
}

/// Weights of all sizes that the encoding holds.
fn matrix(pool: &mut Pool, encoding: Encoding) -> Matrix {
    let mask = match encoding.lines() {
        4 => 15,
        6 => 63,
        _ => 255,
    };
    // Whole numbers that fit all kinds of scales.
    let number = |seed: &mut u32| f32::from(noise(seed).cast_signed());
    let mut matrix = Matrix::new(INPUTS, &Arena::default());
    matrix.push(pool, encoding, OUTPUTS, None, |output, weights| {
        let mut seed = output as u32;
        weights.quants.iter_mut().for_each(|quant| *quant = noise(&mut seed) & mask);
        let Weights { scales, supers, minima, .. } = weights;
        scales.iter_mut().chain(supers).chain(minima).for_each(|scale| *scale = number(&mut seed));
    });
    matrix
}

fn noise(seed: &mut u32) -> u8 {
    *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*seed >> 24) as u8
}
