//! Microseconds that the sampler spends on a row of the default model's vocabulary.
//!
//! `cargo bench -p shoal-worker --bench sampler`

use std::hint::black_box;
use std::time::Instant;

use shoal_common::ids::TokenId;
use shoal_common::sampling::{SamplingParams, Temperature, TopP};
use shoal_worker::sampler::{Draw, Sampler, TokenHistory};

const VOCAB: usize = 49_152;
const ROUNDS: u32 = 200;

fn main() {
    // Roughly a language model's row: a few high logits over a wide bell.
    let noise = |i: usize| ((i * 7919 + 13) % VOCAB) as f32 / VOCAB as f32;
    let row: Vec<f32> = (0..VOCAB).map(|i| 6.0 * (noise(i) + noise(i * 31) + noise(i * 977)) - 9.0).collect();
    let plain = SamplingParams { temperature: temperature(0.8), ..SamplingParams::default() };
    let cases = [
        ("greedy", SamplingParams { temperature: temperature(0.0), ..SamplingParams::default() }),
        ("temperature", plain.clone()),
        ("top_p 0.9", SamplingParams { top_p: TopP::new(0.9).expect("in range"), ..plain.clone() }),
        ("top_k 40", SamplingParams { top_k: std::num::NonZero::new(40), ..plain }),
    ];
    let history = TokenHistory::new(&[TokenId(5), TokenId(9)]);
    let mut sampler = Sampler::new();
    for (name, params) in cases {
        let mut position = 0;
        report(name, || {
            position += 1;
            let draw = Draw { params: &params, history: &history, banned: &[], choice: 0, position };
            black_box(sampler.sample(black_box(&row), &draw));
        });
    }
    for alternatives in [0, 5] {
        report(&format!("score, {alternatives} alternatives"), || {
            black_box(sampler.score(black_box(&row), TokenId(77), alternatives));
        });
    }
}

fn temperature(value: f64) -> Temperature {
    Temperature::new(value).expect("in range")
}

/// The best of a few rounds: what is left when nobody else uses the core.
fn report(name: &str, mut row: impl FnMut()) {
    let mut time = || {
        let begin = Instant::now();
        row();
        begin.elapsed()
    };
    let best = (0..ROUNDS).map(|_| time()).min().unwrap_or_default();
    println!("{name}: {:.1} µs", best.as_secs_f64() * 1e6);
}
