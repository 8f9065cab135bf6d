//! Agreement with goldens of SmolLM2-135M-Instruct Q4_1. `SHOAL_TEST_MODEL` is the path of its GGUF file.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Bench, assert_same_bits, lines, tokens};
use crate::backend::{LogitsOf, Slice};

/// Margin below which two tokens are as good as each other.
const MARGIN: f32 = 1e-3;
/// Largest difference of a log-probability.
const LOGPROB: f64 = 1e-3;

fn bench() -> Bench {
    let path = std::env::var_os("SHOAL_TEST_MODEL").map(PathBuf::from);
    let path =
        path.expect("set SHOAL_TEST_MODEL to the file that scripts/fetch-model prints, or filter real_model out");
    let threads = std::thread::available_parallelism().unwrap().get();
    Bench::open(&path, threads)
}

#[derive(Deserialize)]
struct Greedy {
    id: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    margins: Vec<f32>,
}

#[derive(Deserialize)]
struct Likelihood {
    n: usize,
    prompt_ids: Vec<u32>,
    token_logprobs: Vec<Option<f64>>,
}

fn logprob(row: &[f32], token: u32) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    f64::from(row[token as usize] - largest) - sum.ln()
}

#[test]
fn real_model_answers_like_the_goldens() {
    let mut bench = bench();
    let all = lines::<Greedy>("public/greedy.jsonl");
    // All short prompts, decoded together in one batch, as far as each one's margins carry.
    let mut running: Vec<_> =
        all.iter().filter(|line| line.prompt_ids.len() < 100).map(|line| (bench.name(), line)).collect();
    assert!(running.len() >= 20);
    let mut rows = Vec::new();
    for (sequence, line) in &running {
        rows.push(bench.extend(*sequence, 0, &tokens(&line.prompt_ids), usize::MAX).pop().unwrap());
    }
    for step in 0..48 {
        let sure: Vec<bool> = running.iter().map(|(_, line)| line.margins[step] >= MARGIN).collect();
        let mut keep = sure.iter();
        rows.retain(|_| *keep.next().unwrap());
        let mut keep = sure.iter();
        running.retain(|_| *keep.next().unwrap());
        for ((_, line), row) in running.iter().zip(&rows) {
            let expected = line.greedy_ids[step] as usize;
            assert_eq!(super::argmax(row), expected, "{}: step {step}, margin {}", line.id, line.margins[step]);
        }
        let next: Vec<_> = running.iter().map(|(_, line)| tokens(&line.greedy_ids[step..=step])).collect();
        let slices: Vec<Slice<'_>> = running
            .iter()
            .zip(&next)
            .map(|((sequence, line), tokens)| Slice {
                sequence: *sequence,
                start: line.prompt_ids.len() + step,
                tokens,
                logits: LogitsOf::Last,
            })
            .collect();
        bench.run(&slices).unwrap();
        rows = bench.rows(0..slices.len());
    }
    assert!(running.len() >= 15, "only {} prompts are sure of every step", running.len());
}

#[test]
fn real_model_answers_a_long_prompt_like_the_goldens() {
    let mut bench = bench();
    let all = lines::<Greedy>("public/greedy.jsonl");
    let line = all.iter().max_by_key(|line| line.prompt_ids.len()).unwrap();
    bench.assert_greedy(&line.id, &line.prompt_ids, &line.greedy_ids[..16], &line.margins, MARGIN);
}

#[test]
fn real_model_scores_prompts_like_the_goldens() {
    let mut bench = bench();
    for line in lines::<Likelihood>("public/loglikelihood.jsonl") {
        let rows = bench.alone(&tokens(&line.prompt_ids), usize::MAX);
        for (position, row) in rows.iter().enumerate().take(line.prompt_ids.len() - 1) {
            let golden = line.token_logprobs[position + 1].unwrap();
            let ours = logprob(row, line.prompt_ids[position + 1]);
            assert!((ours - golden).abs() <= LOGPROB, "prompt {}, position {position}: {ours}, {golden}", line.n);
        }
    }
}

#[test]
fn real_model_has_the_same_bits_in_a_batch() {
    let mut bench = bench();
    let all = lines::<Likelihood>("public/loglikelihood.jsonl");
    let prompt = tokens(&all[4].prompt_ids);
    let alone = bench.alone(&prompt, 1);
    let strangers: Vec<_> = all.iter().map(|line| (bench.name(), tokens(&line.prompt_ids))).collect();
    let sequence = bench.name();
    let mut slices: Vec<Slice<'_>> = strangers
        .iter()
        .map(|(name, tokens)| Slice { sequence: *name, start: 0, tokens, logits: LogitsOf::Last })
        .collect();
    slices.insert(3, Slice { sequence, start: 0, tokens: &prompt, logits: LogitsOf::All });
    bench.run(&slices).unwrap();
    assert_same_bits("in a batch", &bench.rows(3..3 + prompt.len()), &alone);
}
