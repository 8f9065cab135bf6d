//! The promises of tiles, on a CPU that has them or with an emulator: the bits of the portable code for every encoding and
//! shape, on any number of threads, and nothing left behind.
//!
//! All of them need AVX-512, which nothing here stands in for: on a CPU without it they say so and stop.

use std::num::NonZero;

use super::{LEAST_ROWS, check, emulator};
use crate::tests::matmul::{matrix, multiply};
use crate::tests::{bits, numbers, rows};
use crate::{Activations, Encoding, Isa, Pool, Rows, Write};

fn pool(threads: usize, isa: Isa) -> Pool {
    Pool::new(NonZero::new(threads).unwrap(), isa).unwrap()
}

/// AMX, real or emulated.
fn amx() -> Option<Isa> {
    let available = Isa::available();
    if let Some(amx) = available.iter().find(|isa| isa.has_tiles()) {
        return Some(*amx);
    }
    if available.last().is_none_or(|isa| isa.to_string() != "avx512-vnni") {
        eprintln!("not tested: this CPU has no AVX-512");
        return None;
    }
    emulator::install();
    // SAFETY: the CPU has AVX-512, and tiles are emulated.
    Some(unsafe { Isa::amx() })
}

/// Runs `work` and sees that tiles were used.
fn with_tiles(work: impl FnOnce(Isa)) {
    let Some(amx) = amx() else { return };
    let before = emulator::emulated();
    work(amx);
    assert!(Isa::best().has_tiles() || emulator::emulated() > before, "no tile was touched");
    assert!(!emulator::is_configured(), "tiles were kept");
}

#[test]
fn products_have_the_portable_bits_for_every_encoding_and_number_of_rows() {
    with_tiles(|amx| {
        let (mut tiles, mut portable) = (pool(1, amx), pool(1, Isa::PORTABLE));
        for count in 1..=40 {
            for (which, encoding) in Encoding::ALL.into_iter().enumerate() {
                // Whole blocks and parts of one, one step and many, whole panels and parts of one.
                let (inputs, outputs) = (1 + (count * 37 + which * 61) % 330, 1 + (count * 11 + which * 5) % 37);
                let x = rows(&numbers((count * 7 + which) as u64, count * inputs), inputs);
                let matrix = matrix(&mut portable, encoding, inputs, &[outputs], None);
                for write in [Write::Set, Write::Add] {
                    let expected = multiply(&mut portable, &matrix, &x, write);
                    let product = multiply(&mut tiles, &matrix, &x, write);
                    assert_eq!(bits(&product), bits(&expected), "{encoding:?} {count} x {inputs} x {outputs}");
                }
            }
        }
    });
}

#[test]
fn parts_biases_passes_and_threads_do_not_show() {
    with_tiles(|amx| {
        let bias = numbers(5, 50);
        let mut portable = pool(1, Isa::PORTABLE);
        // More rows than pass over a panel at once, and a last group with fewer.
        let x = rows(&numbers(1, 201 * 70), 70);
        for encoding in Encoding::ALL {
            let matrix = matrix(&mut portable, encoding, 70, &[50, 17, 33], Some(&bias));
            let expected = bits(&multiply(&mut portable, &matrix, &x, Write::Set));
            for threads in [1, 3] {
                let product = multiply(&mut pool(threads, amx), &matrix, &x, Write::Set);
                assert_eq!(bits(&product), expected, "{encoding:?} on {threads} threads");
            }
        }
    });
}

#[test]
fn rows_that_were_there_before_do_not_show() {
    with_tiles(|amx| {
        let mut tiles = pool(1, amx);
        let matrix = matrix(&mut tiles, Encoding::HalfBytesMin, 96, &[16], None);
        let mut x = Activations::new(96);
        let mut y = Rows::new(16);
        // The slots of groups of eight rows are reused by groups of five.
        x.quantise(&mut tiles, &rows(&[f32::NAN; 16 * 96], 96));
        let nine = rows(&numbers(2, 9 * 96), 96);
        x.quantise(&mut tiles, &nine);
        y.resize(9);
        matrix.multiply(&mut tiles, &x, &mut y, Write::Set);
        assert_eq!(bits(&y), bits(&multiply(&mut pool(1, Isa::PORTABLE), &matrix, &nine, Write::Set)));
    });
}

#[test]
fn few_rows_are_left_to_vectors() {
    let Some(amx) = amx() else { return };
    let (mut tiles, mut portable) = (pool(1, amx), pool(1, Isa::PORTABLE));
    let matrix = matrix(&mut portable, Encoding::Nibbles, 64, &[16], None);
    let before = emulator::emulated();
    for count in 1..LEAST_ROWS {
        let x = rows(&numbers(1, count * 64), 64);
        let product = multiply(&mut tiles, &matrix, &x, Write::Set);
        assert_eq!(bits(&product), bits(&multiply(&mut portable, &matrix, &x, Write::Set)));
    }
    assert_eq!(emulator::emulated(), before);
}

#[test]
fn tiles_that_compute_wrongly_are_found_out() {
    with_tiles(|amx| {
        assert!(check::has_the_portable_bits(amx));
        let is_real = Isa::best().has_tiles();
        assert!(is_real || !emulator::broken(|| check::has_the_portable_bits(amx)));
    });
}
