//! Agreement with goldens of SmolLM2-135M-Instruct Q4_1. `SHOAL_TEST_MODEL` is the path of its GGUF file.

use serde::Deserialize;
use shoal_common::adapter::Geometry;
use shoal_kernels::Precision;

use super::{MARGIN, assert_greedy};
use crate::backend::LogitsOf;
use crate::backend::bench::{
    Bench, Part, argmax, assert_same_bits, golden_adapter, lines, logprob, real_model, tokens,
};
use crate::backend::tables::Name;

/// Of the default model.
const GEOMETRY: Geometry = Geometry { layers: 30, hidden: 576, intermediate: 1536, queries: 576, keys: 192 };
/// Largest difference of a log-probability.
const LOGPROB: f64 = 1e-3;

fn bench() -> Bench {
    super::bench(&real_model(), std::thread::available_parallelism().unwrap().get())
}

#[derive(Deserialize)]
struct Greedy {
    id: String,
    prompt_ids: Vec<u32>,
    adapter: Option<String>,
    greedy_ids: Vec<u32>,
    margins: Vec<f32>,
    logprobs: Vec<f64>,
}

#[derive(Deserialize)]
struct Likelihood {
    n: usize,
    prompt_ids: Vec<u32>,
    token_logprobs: Vec<Option<f64>>,
}

/// A golden prompt on its way through the steps.
struct Running<'a> {
    sequence: Name,
    line: &'a Greedy,
    /// Logits of its next token.
    row: Vec<f32>,
}

/// Feeds every prompt its golden token of `step`, all in one batch.
fn step_together(bench: &mut Bench, running: &mut [Running<'_>], step: usize) {
    let next: Vec<_> = running.iter().map(|it| tokens(&it.line.greedy_ids[step..=step])).collect();
    let part = |(it, tokens): (&Running<'_>, _)| {
        let start = it.line.prompt_ids.len() + step;
        Part { sequence: it.sequence, start, tokens, logits: LogitsOf::Last }
    };
    let parts: Vec<Part<'_>> = running.iter().zip(next.iter().map(Vec::as_slice)).map(part).collect();
    bench.run(&parts);
    let rows = bench.rows(0..parts.len());
    running.iter_mut().zip(rows).for_each(|(it, row)| it.row = row);
}

#[test]
fn real_model_answers_a_batch_like_the_goldens() {
    let mut bench = bench();
    let all = lines::<Greedy>("public/greedy.jsonl");
    let mut running = Vec::new();
    for line in all.iter().filter(|line| line.prompt_ids.len() < 100) {
        let sequence = bench.name();
        let row = bench.extend(sequence, 0, &tokens(&line.prompt_ids), usize::MAX).pop().unwrap();
        running.push(Running { sequence, line, row });
    }
    assert_eq!(running.len(), 25);
    for step in 0..48 {
        // From a tie on, either continuation is right and only one is golden.
        running.retain(|it| it.line.margins[step] >= MARGIN);
        for Running { line, row, .. } in &running {
            let margin = line.margins[step];
            assert_eq!(argmax(row), line.greedy_ids[step] as usize, "{}: step {step}, margin {margin}", line.id);
        }
        step_together(&mut bench, &mut running, step);
    }
    assert!(running.len() >= 15, "only {} prompts are sure of every step", running.len());
}

#[test]
fn real_model_answers_a_long_prompt_like_the_goldens() {
    let mut bench = bench();
    let all = lines::<Greedy>("public/greedy.jsonl");
    let line = all.iter().max_by_key(|line| line.prompt_ids.len()).unwrap();
    assert_greedy(&mut bench, None, &line.id, &line.prompt_ids, (&line.greedy_ids[..16], &line.margins));
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
fn real_model_with_an_adapter_gives_its_golden_answers_their_logprobs() {
    let (mut bench, all) = (bench(), lines::<Greedy>("public/adapters_greedy.jsonl"));
    for name in ["upper", "pirate", "json", "french"] {
        let adapter = golden_adapter(&format!("adapters/{name}"), GEOMETRY, Precision::Exact);
        for line in all.iter().filter(|line| line.adapter.as_deref() == Some(name)).take(3) {
            let text = tokens(&[&line.prompt_ids[..], &line.greedy_ids].concat());
            let rows = bench.alone_with(Some(&adapter), &text, usize::MAX);
            for (step, &token) in line.greedy_ids.iter().enumerate() {
                let (ours, golden) = (logprob(&rows[line.prompt_ids.len() - 1 + step], token), line.logprobs[step]);
                assert!((ours - golden).abs() <= LOGPROB, "{name} {}, step {step}: {ours}, {golden}", line.id);
            }
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
    let mut slices: Vec<Part<'_>> = strangers
        .iter()
        .map(|(name, tokens)| Part { sequence: *name, start: 0, tokens, logits: LogitsOf::Last })
        .collect();
    slices.insert(3, Part { sequence, start: 0, tokens: &prompt, logits: LogitsOf::All });
    bench.run(&slices);
    assert_same_bits("in a batch", &bench.rows(3..3 + prompt.len()), &alone);
}
