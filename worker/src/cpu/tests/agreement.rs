//! On the tiny model: close to the reference backend, which agrees with the goldens to the fourth digit.

use std::num::NonZero;

use shoal_common::config::{Engine, Quant};
use shoal_kernels::Precision;

use super::open;
use crate::backend::Backend;
use crate::backend::bench::{
    Bench, Instructions, Layers, Setup, argmax, assert_same_bits, golden, golden_adapter, lines, tokens,
};
use crate::backend::contract::TINY_GEOMETRY;
use crate::cpu::{Cpu, Footprint};
use crate::reference::Reference;
use crate::weights::ModelFile;

#[derive(serde::Deserialize)]
struct Line {
    model: Option<String>,
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

/// Every format of the tiny model, and every family in every format. Floats are quantised to 8 bits on the way.
const FILES: [&str; 13] = [
    "tiny/base",
    "tiny/gguf/tiny-f32.gguf",
    "tiny/gguf/tiny-q4_1.gguf",
    "tiny/gguf/tiny-q8_0.gguf",
    "families/llama3/base",
    "families/llama3/llama3-f32.gguf",
    "families/mistral/base",
    "families/qwen2/base",
    "families/qwen2/qwen2-f32.gguf",
    "families/qwen2/qwen2-q8_0.gguf",
    "families/qwen3/base",
    "families/qwen3/qwen3-f32.gguf",
    "families/qwen3/qwen3-q8_0.gguf",
];

#[test]
fn every_family_in_every_format_is_close_to_the_reference() {
    let prompts = lines::<Line>("tiny/goldens.jsonl");
    for format in FILES {
        let (path, threads) = (golden(format), 2);
        let mut ours = Bench::over(
            open(Setup { model: &path, threads, instructions: Instructions::Best, layers: Layers::All }).unwrap(),
        );
        let file = ModelFile::open(&path).unwrap();
        let mut reference = Bench::over(Box::new(Reference::load(&file, threads).unwrap()));
        let (mut error, mut rows, mut agree) = (0f64, 0, 0);
        for line in &prompts {
            let mut text = tokens(&[&line.prompt_ids[..], &line.greedy_ids].concat());
            text.truncate(file.config.context);
            for (ours, theirs) in ours.alone(&text, 64).iter().zip(reference.alone(&text, 64)) {
                error += relative_error(&theirs, ours);
                agree += usize::from(argmax(ours) == argmax(&theirs));
                rows += 1;
            }
        }
        // Two blocks of 32 to a row: rounding has little to average over, and random weights amplify it.
        let error = error / rows as f64;
        assert!(error < 0.15, "{format}: {error}");
        assert!(agree * 100 >= rows * 88, "{format}: {agree} of {rows} rows have the same best token");
    }
}

#[test]
fn every_adapter_is_close_to_the_reference() {
    let all = lines::<Line>("tiny/goldens.jsonl");
    for format in ["tiny/base", "tiny/gguf/tiny-q4_1.gguf"] {
        let path = golden(format);
        let mut ours = Bench::over(
            open(Setup { model: &path, threads: 2, instructions: Instructions::Best, layers: Layers::All }).unwrap(),
        );
        let mut reference = Bench::over(Box::new(Reference::load(&ModelFile::open(&path).unwrap(), 2).unwrap()));
        for name in ["tiny-qv", "tiny-all", "tiny-pattern"] {
            let adapter = golden_adapter(&format!("tiny/{name}"), TINY_GEOMETRY, Precision::Fixed16);
            let (mut error, mut rows, mut agree) = (0f64, 0, 0);
            for line in all.iter().filter(|line| line.model.as_deref() == Some(name)) {
                let text = tokens(&[&line.prompt_ids[..], &line.greedy_ids].concat());
                let [ours, exact] =
                    [&mut ours, &mut reference].map(|bench| bench.alone_with(Some(&adapter), &text, 64));
                error += exact.iter().zip(&ours).map(|(exact, ours)| relative_error(exact, ours)).sum::<f64>();
                agree += exact.iter().zip(&ours).filter(|(exact, ours)| argmax(exact) == argmax(ours)).count();
                rows += ours.len();
            }
            let error = error / rows as f64;
            assert!(error < 0.15, "{format} {name}: {error}");
            assert!(agree * 100 >= rows * 85, "{format} {name}: {agree} of {rows} rows have the same best token");
        }
    }
}

#[test]
fn biases_and_head_norms_have_the_same_bits_however_a_prompt_is_computed() {
    let prompt: Vec<u32> = (0..70).map(|i| (i * i * 11 + i * 5 + 7) % 512).collect();
    for file in ["families/qwen2/qwen2-q8_0.gguf", "families/qwen3/qwen3-q8_0.gguf"] {
        let on = |instructions, chunk| {
            let setup = Setup { model: &golden(file), threads: 2, instructions, layers: Layers::All };
            Some(Bench::over(open(setup)?).alone(&tokens(&prompt), chunk))
        };
        let whole = on(Instructions::Best, usize::MAX).unwrap();
        for chunk in [1, 7] {
            assert_same_bits(file, &on(Instructions::Best, chunk).unwrap(), &whole);
        }
        for rows in (0..).map_while(|number| on(Instructions::Number(number), 64)) {
            assert_same_bits(file, &rows, &whole);
        }
    }
}

#[test]
fn a_footprint_is_what_a_model_then_takes() {
    for format in FILES {
        let file = ModelFile::open(&golden(format)).unwrap();
        for quant in [Quant::Q8_0, Quant::Q4_0] {
            let backend = Cpu::load(&file, NonZero::<usize>::MIN, quant).unwrap();
            let Footprint { weight_bytes, kv_bytes_per_token } = Footprint::of(&file, Engine::Cpu(quant));
            assert_eq!(weight_bytes, backend.weight_bytes() as u64, "{format}");
            assert_eq!(kv_bytes_per_token, backend.kv_bytes_per_token(), "{format}");
        }
        let reference = Reference::load(&file, 1).unwrap();
        assert_eq!(Footprint::of(&file, Engine::Reference).kv_bytes_per_token, reference.kv_bytes_per_token());
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
