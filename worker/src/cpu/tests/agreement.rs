//! On the tiny model: close to the reference backend, which agrees with the goldens to the fourth digit.

use std::num::NonZero;

use shoal_common::config::Quant;

use super::open;
use crate::backend::bench::{Bench, Instructions, Setup, argmax, golden, lines, tokens};
use crate::cpu::Cpu;
use crate::reference::Reference;
use crate::weights::ModelFile;

#[derive(serde::Deserialize)]
struct Line {
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
}

/// Root of the mean square of `row - other`, over that of `row`'s deviation from its mean: how much of what a row says is
/// error.
fn relative_error(row: &[f32], other: &[f32]) -> f64 {
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
    let error: f64 = row.iter().zip(other).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let spread: f64 = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    (error / spread).sqrt()
}

#[test]
fn every_format_of_the_tiny_model_is_close_to_the_reference() {
    let prompts = lines::<Line>("tiny/goldens.jsonl");
    // Files of floats are quantised to 8 bits on the way.
    for format in ["tiny/base", "tiny/gguf/tiny-f32.gguf", "tiny/gguf/tiny-q4_1.gguf", "tiny/gguf/tiny-q8_0.gguf"] {
        let (path, threads) = (golden(format), 2);
        let mut ours = Bench::over(open(Setup { model: &path, threads, instructions: Instructions::Best }).unwrap());
        let file = ModelFile::open(&path).unwrap();
        let mut reference = Bench::over(Box::new(Reference::load(&file, threads).unwrap()));
        let (mut error, mut rows, mut agree) = (0f64, 0, 0);
        for line in &prompts {
            let text = tokens(&[&line.prompt_ids[..], &line.greedy_ids].concat());
            for (ours, theirs) in ours.alone(&text, 64).iter().zip(reference.alone(&text, 64)) {
                error += relative_error(&theirs, ours);
                agree += usize::from(argmax(ours) == argmax(&theirs));
                rows += 1;
            }
        }
        // Two blocks of 32 to a row: rounding has little to average over, and random weights amplify it.
        let error = error / f64::from(rows);
        assert!(error < 0.12, "{format}: {error}");
        assert!(agree * 100 >= rows * 90, "{format}: {agree} of {rows} rows have the same best token");
    }
}

#[test]
fn four_bits_at_load_are_coarser_than_eight_and_still_the_same_model() {
    let file = ModelFile::open(&golden("tiny/base")).unwrap();
    let text = tokens(&lines::<Line>("tiny/goldens.jsonl")[0].greedy_ids);
    let mut reference = Bench::over(Box::new(Reference::load(&file, 1).unwrap()));
    let exact = reference.alone(&text, 64);
    let error = |quant| {
        let backend = Cpu::load(&file, NonZero::<usize>::MIN, quant).unwrap();
        let rows = Bench::over(Box::new(backend)).alone(&text, 64);
        exact.iter().zip(rows).map(|(exact, row)| relative_error(exact, &row)).sum::<f64>() / exact.len() as f64
    };
    let (eight, four) = (error(Quant::Q8_0), error(Quant::Q4_0));
    assert!(eight < 0.12 && eight * 3.0 < four && four < 0.8, "{eight} and {four}");
}
