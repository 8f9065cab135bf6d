//! What adapters cost: tokens per second with them, as parts of those without, measured in turn.

use std::error::Error;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use shoal_common::adapter::{Bundle, Geometry, Linear};
use shoal_common::ids::{LayerRange, TokenId};
use shoal_worker::adapters::{Adapter, LoadFor};
use shoal_worker::backend::{Backend, LogitsBuffer, LogitsOf, Slice};

use crate::{MOST, PREFILL, RUNS, decode, rate, table};

const RANK: usize = 8;

/// What PEFT changes in a llama unless it is told otherwise.
const DEFAULT: [Linear; 2] = [Linear::Q, Linear::V];

/// Prints the costs of adapters of rank 8 for a model of `geometry`, whose prompt the backend holds.
pub(crate) fn measure(
    backend: &mut dyn Backend,
    logits: &mut LogitsBuffer,
    geometry: &Geometry,
    prompt: &[TokenId],
) -> Result<(), Box<dyn Error>> {
    let kinds: [(&str, &[Linear], Dtype); 3] = [
        ("queries and values in f32", &DEFAULT, Dtype::F32),
        ("all layers in f32", &Linear::ALL, Dtype::F32),
        ("all layers in bf16", &Linear::ALL, Dtype::BF16),
    ];
    let layers = LayerRange { begin: 0, end: geometry.layers };
    let load_for = LoadFor { geometry: *geometry, layers, precision: backend.adapter_precision() };
    for (name, linears, dtype) in kinds {
        let load = |seed| load(&load_for, linears, dtype, seed as u32);
        let adapters: Vec<Arc<Adapter>> = (0..MOST).map(load).collect::<Result<_, _>>()?;
        println!("adapters of rank {RANK} on {name}, {:.2} MB each:", adapters[0].bytes() as f64 / 1e6);
        let blocks = table(0);
        let [base, with] = in_turn(|is_on| {
            let adapter = is_on.then_some(&*adapters[0]);
            let slice = Slice { start: 0, tokens: prompt, blocks: &blocks, adapter, logits: LogitsOf::Last };
            backend.forward(&[slice], logits)?;
            Ok(PREFILL)
        })?;
        println!("  prefill {PREFILL}: {with:.0} of {base:.0} tokens/s, {:.1} %", 100.0 * with / base);
        for (streams, distinct) in [(1, 1), (8, 4), (MOST, MOST)] {
            let [base, with] = in_turn(|is_on| {
                let adapter = |stream: usize| is_on.then_some(&*adapters[stream % distinct]);
                decode(backend, logits, streams, adapter)
            })?;
            let part = 100.0 * with / base;
            println!("  {streams} streams with {distinct} of them: {with:.1} of {base:.1} tokens/s, {part:.1} %");
        }
    }
    Ok(())
}

/// The best rates of runs without adapters and with them, taken in turn: what else the machine does meets both.
fn in_turn(mut run: impl FnMut(bool) -> Result<usize, Box<dyn Error>>) -> Result<[f64; 2], Box<dyn Error>> {
    let mut best = [0f64; 2];
    for _ in 0..RUNS {
        for (is_on, best) in [false, true].into_iter().zip(&mut best) {
            *best = best.max(rate(|| run(is_on))?);
        }
    }
    Ok(best)
}

/// An adapter of small numbers, through the same door as real ones.
fn load(load_for: &LoadFor, linears: &[Linear], dtype: Dtype, mut seed: u32) -> Result<Arc<Adapter>, Box<dyn Error>> {
    let (geometry, mut tensors) = (&load_for.geometry, Vec::new());
    for layer in 0..geometry.layers {
        for linear in linears {
            let [outputs, inputs] = linear.shape(geometry);
            for (factor, shape) in [("lora_A", [RANK, inputs]), ("lora_B", [outputs, RANK])] {
                let name = format!("base_model.model.model.layers.{layer}.{}.{factor}.weight", linear.path());
                tensors.push((name, shape, numbers(&mut seed, shape[0] * shape[1], dtype)));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.to_vec(), bytes)?)));
    let views: Vec<_> = views.collect::<Result<_, safetensors::SafeTensorError>>()?;
    let weights = safetensors::serialize(views, None)?;
    let targets: Vec<&str> = linears.iter().filter_map(|linear| linear.path().split('.').next_back()).collect();
    let config = format!(r#"{{"peft_type": "LORA", "r": {RANK}, "lora_alpha": 8, "target_modules": {targets:?}}}"#);
    let bundle = Bundle { config: config.as_bytes(), weights: &weights };
    Ok(Arc::new(Adapter::load(bundle.generation()?, &bundle.to_bytes()?, load_for)?))
}

fn numbers(seed: &mut u32, count: usize, dtype: Dtype) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let number = ((*seed >> 8) as f32 / (1 << 24) as f32 - 0.5) / 64.0;
        match dtype {
            Dtype::BF16 => bytes.extend(&number.to_le_bytes()[2..]),
            _ => bytes.extend(number.to_le_bytes()),
        }
    }
    bytes
}
