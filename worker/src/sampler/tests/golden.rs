//! `samplers.jsonl`: distributions computed with the reference rules over stored rows of logits.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::Deserialize;
use shoal_common::sampling::{BiasEffect, Penalty, RepetitionPenalty};

use super::*;

/// A survivor more or less is rounding when a threshold is nearer than this.
const BOUNDARY: f64 = 1e-6;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Vector(Vector),
    Case(Box<Case>),
}

#[derive(Deserialize)]
struct Vector {
    source: String,
    logits: Option<Vec<f32>>,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Case {
    source: String,
    params: GoldenParams,
    n_survivors: usize,
    ids: Vec<u32>,
    probs: Vec<f64>,
    boundary: BTreeMap<String, f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GoldenParams {
    logit_bias: BTreeMap<String, f64>,
    repetition_penalty: Option<f64>,
    frequency_penalty: f64,
    presence_penalty: f64,
    temperature: Option<f64>,
    min_p: f64,
    top_k: Option<NonZeroU32>,
    top_p: Option<f64>,
}

impl GoldenParams {
    fn typed(&self) -> SamplingParams {
        SamplingParams {
            logit_bias: self
                .logit_bias
                .iter()
                .map(|(id, &bias)| (TokenId(id.parse().unwrap()), Bias::new(bias).unwrap()))
                .collect(),
            repetition_penalty: RepetitionPenalty::new(self.repetition_penalty.unwrap_or(1.0)).unwrap(),
            frequency_penalty: Penalty::new(self.frequency_penalty).unwrap(),
            presence_penalty: Penalty::new(self.presence_penalty).unwrap(),
            temperature: Temperature::new(self.temperature.unwrap_or(1.0)).unwrap(),
            min_p: MinP::new(self.min_p).unwrap(),
            top_k: self.top_k,
            top_p: TopP::new(self.top_p.unwrap_or(1.0)).unwrap(),
            seed: 0,
        }
    }
}

fn golden_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/public")
}

/// A `.npy` file of version 1 with a one-dimensional little-endian f32 array.
fn read_npy(name: &str) -> Vec<f32> {
    let bytes = fs::read(golden_dir().join(name)).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{name} is not a version 1 npy file");
    let body = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..body]).unwrap();
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{name}: {header}");
    bytes[body..].chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// The golden adds -100 and 100 like any bias, which leaves a trace of e^-100; here they ban and restrict exactly.
fn restricts(params: &SamplingParams) -> bool {
    params.logit_bias.iter().any(|(_, bias)| matches!(bias.effect(), BiasEffect::Ban | BiasEffect::Only))
}

fn check(case: &Case, logits: &[f32], history: &TokenHistory) {
    let what = format!("{} {:?}", case.source, case.params);
    let params = case.params.typed();
    let drawn = Sampler::new().distribution(logits, &plain(&params, history));
    let ours: BTreeMap<u32, f64> = drawn.iter().map(|&(token, p)| (token.0, p)).collect();
    for (id, golden) in case.ids.iter().zip(&case.probs) {
        let p = ours.get(id).copied().unwrap_or(0.0);
        assert!((p - golden).abs() <= 1e-5, "{what}: token {id} has {p}, golden {golden}");
    }
    let total: f64 = ours.values().sum();
    assert!((total - 1.0).abs() <= 1e-9, "{what}: probabilities sum to {total}");
    let on_the_edge = case.boundary.iter().any(|(gap, &value)| gap.ends_with("_gap") && value < BOUNDARY);
    let min_p_of_1 = case.params.min_p == 1.0;
    if !restricts(&params) && (min_p_of_1 || !on_the_edge) {
        assert_eq!(drawn.len(), case.n_survivors, "{what}: survivors");
        if case.ids.len() == case.n_survivors {
            assert!(case.ids.iter().all(|id| ours.contains_key(id)), "{what}: another set of survivors");
        }
    }
}

#[test]
fn every_golden_distribution_is_met() {
    let text = fs::read_to_string(golden_dir().join("samplers.jsonl")).unwrap();
    let (mut vectors, mut cases) = (BTreeMap::new(), 0);
    for line in text.lines() {
        match serde_json::from_str(line).unwrap() {
            Line::Vector(vector) => {
                let mut history = TokenHistory::new(&ids(&vector.prompt_ids));
                ids(&vector.output_ids).into_iter().for_each(|token| history.push(token));
                let logits = vector.logits.unwrap_or_else(|| read_npy(&vector.source));
                vectors.insert(vector.source, (logits, history));
            }
            Line::Case(case) => {
                let (logits, history) = &vectors[&case.source];
                check(&case, logits, history);
                cases += 1;
            }
        }
    }
    assert_eq!((vectors.len(), cases), (6, 162));
}
