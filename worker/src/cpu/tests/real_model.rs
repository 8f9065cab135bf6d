//! Agreement with goldens of SmolLM2-135M-Instruct Q4_1, within what the golden data measured for int8 activations.
//! `SHOAL_TEST_MODEL` is the path of its GGUF file.

use serde::Deserialize;

use super::open;
use crate::backend::LogitsOf;
use crate::backend::bench::{
    Bench, Instructions, Layers, Part, Setup, argmax, assert_same_bits, lines, logprob, real_model, tokens,
};

fn bench(threads: usize) -> Bench {
    Bench::over(
        open(Setup { model: &real_model(), threads, instructions: Instructions::Best, layers: Layers::All }).unwrap(),
    )
}

#[derive(Deserialize)]
struct Greedy {
    id: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    runner_up_ids: Vec<u32>,
    margins: Vec<f32>,
    logprobs: Vec<f64>,
}

#[derive(Deserialize)]
struct Likelihood {
    prompt_ids: Vec<u32>,
    token_logprobs: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct Text {
    #[serde(rename = "type")]
    kind: String,
    ids: Option<Vec<u32>>,
    model: Option<String>,
    adapter: Option<String>,
    mean_nll: Option<f64>,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// Teacher-forced: every prompt is followed by its golden answer.
#[test]
fn real_model_gives_golden_answers_their_logprobs() {
    let (mut bench, mut errors, mut flips) = (bench(2), Vec::new(), Vec::new());
    for line in lines::<Greedy>("public/greedy.jsonl") {
        let text = tokens(&[&line.prompt_ids[..], &line.greedy_ids].concat());
        let rows = bench.alone(&text, 512);
        for (step, &golden) in line.greedy_ids.iter().enumerate() {
            let row = &rows[line.prompt_ids.len() - 1 + step];
            errors.push((logprob(row, golden) - line.logprobs[step]).abs());
            let (best, margin) = (argmax(row) as u32, line.margins[step]);
            if best != golden {
                let is_excused = margin < 0.3 || (margin < 1.0 && best == line.runner_up_ids[step]);
                assert!(is_excused, "{} step {step}: {best} for {golden}, margin {margin}", line.id);
                flips.push(margin);
            }
        }
    }
    let (mean, p99, worst) = (mean(&errors), quantile(&errors, 0.99), quantile(&errors, 1.0));
    assert!(mean <= 0.08 && p99 <= 0.3 && worst <= 1.0, "mean {mean}, p99 {p99}, worst {worst}");
    assert!(flips.len() * 100 <= errors.len() * 5, "{} of {} steps have another best token", flips.len(), errors.len());
    assert!(flips.iter().filter(|margin| **margin > 0.3).count() <= 2, "{flips:?}");
}

#[test]
fn real_model_scores_prompts_like_the_goldens() {
    let (mut bench, mut errors) = (bench(2), Vec::new());
    for line in lines::<Likelihood>("public/loglikelihood.jsonl") {
        let rows = bench.alone(&tokens(&line.prompt_ids), usize::MAX);
        for (row, (token, golden)) in rows.iter().zip(line.prompt_ids.iter().zip(&line.token_logprobs).skip(1)) {
            errors.push((logprob(row, *token) - golden.unwrap()).abs());
        }
    }
    let (mean, worst) = (mean(&errors), quantile(&errors, 1.0));
    assert!(mean <= 0.15 && worst <= 1.0, "mean {mean}, worst {worst}");
}

#[test]
fn real_model_has_the_golden_perplexity_within_one_percent() {
    let all = lines::<Text>("public/perplexity.jsonl");
    let ids = all.iter().find_map(|line| line.ids.clone().filter(|_| line.kind == "text")).unwrap();
    let of_base = |line: &&Text| line.model.as_deref() == Some("base") && line.adapter.is_none();
    let golden = all.iter().find(of_base).and_then(|line| line.mean_nll).unwrap();
    let rows = bench(2).alone(&tokens(&ids), 512);
    let losses: Vec<f64> = rows.iter().zip(&ids[1..]).map(|(row, token)| -logprob(row, *token)).collect();
    let ours = mean(&losses);
    assert!((ours - golden).abs() < 0.01, "mean loss {ours}, golden {golden}");
}

#[test]
fn real_model_has_the_same_bits_however_it_is_computed() {
    let all = lines::<Likelihood>("public/loglikelihood.jsonl");
    let prompt = tokens(&all[4].prompt_ids);
    let (mut bench, mut single) = (bench(2), bench(1));
    let alone = bench.alone(&prompt, 1);
    for chunk in [7, 64, usize::MAX] {
        assert_same_bits("cut", &bench.alone(&prompt, chunk), &alone);
    }
    assert_same_bits("one thread", &single.alone(&prompt, usize::MAX), &alone);
    let strangers: Vec<_> = (0..31).map(|at| (bench.name(), tokens(&all[at % all.len()].prompt_ids))).collect();
    let sequence = bench.name();
    let stranger = |(name, tokens): &'_ (_, Vec<_>)| (*name, tokens.clone());
    let strangers: Vec<_> = strangers.iter().map(stranger).collect();
    let mut parts: Vec<Part<'_>> = strangers
        .iter()
        .map(|(name, tokens)| Part { sequence: *name, start: 0, tokens, logits: LogitsOf::Last })
        .collect();
    parts.insert(3, Part { sequence, start: 0, tokens: &prompt, logits: LogitsOf::All });
    bench.run(&parts);
    assert_same_bits("among strangers", &bench.rows(3..3 + prompt.len()), &alone);
}
