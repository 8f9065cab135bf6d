//! Agreement with logits and greedy answers that Hugging Face transformers computed for the tiny model.

use safetensors::SafeTensors;
use serde::Deserialize;
use shoal_kernels::Precision;

use super::{assert_greedy, tiny};
use crate::backend::bench::{golden, golden_adapter, lines, tokens};
use crate::backend::contract::TINY_GEOMETRY;

/// Largest difference of a logit.
const LOGIT: f32 = 2e-3;
#[derive(Deserialize)]
pub(super) struct Line {
    pub(super) model: Option<String>,
    file: Option<String>,
    pub(super) prompt_id: String,
    pub(super) prompt_ids: Vec<u32>,
    #[serde(alias = "last_position_logits_key")]
    pub(super) logits_key: Option<String>,
    pub(super) greedy_ids: Vec<u32>,
    pub(super) margins: Vec<f32>,
}

pub(super) fn tensor(file: &SafeTensors<'_>, key: &str) -> Vec<f32> {
    let bytes = file.tensor(key).unwrap().data().to_vec();
    bytes.as_chunks().0.iter().map(|&le| f32::from_le_bytes(le)).collect()
}

pub(super) fn assert_close(what: &str, ours: &[f32], golden: &[f32]) {
    assert_eq!(ours.len(), golden.len(), "{what}");
    let worst = ours.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= LOGIT, "{what}: logits differ by {worst}");
}

#[test]
fn every_position_of_the_tiny_model_agrees_with_the_golden_logits() {
    let bytes = std::fs::read(golden("tiny/goldens_logits.safetensors")).unwrap();
    let logits = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for format in ["tiny/base", "tiny/gguf/tiny-f32.gguf"] {
        let mut bench = tiny(format, 2);
        for line in lines::<Line>("tiny/goldens.jsonl").iter().filter(|line| line.model.as_deref() == Some("base")) {
            let ours = bench.alone(&tokens(&line.prompt_ids), usize::MAX).concat();
            let key = line.logits_key.as_ref().unwrap();
            assert_close(&format!("{format} {key}"), &ours, &tensor(&logits, key));
            compared += 1;
        }
    }
    assert_eq!(compared, 22);
}

#[test]
fn the_tiny_model_answers_like_the_goldens() {
    let mut bench = tiny("tiny/base", 2);
    for line in lines::<Line>("tiny/goldens.jsonl").iter().filter(|line| line.model.as_deref() == Some("base")) {
        let answer = (&line.greedy_ids[..], &line.margins[..]);
        assert_greedy(&mut bench, None, &line.prompt_id, &line.prompt_ids, answer);
    }
}

/// The adapters of the tiny model's goldens.
const ADAPTERS: [&str; 3] = ["tiny-qv", "tiny-all", "tiny-pattern"];

#[test]
fn every_position_with_every_adapter_agrees_with_the_golden_logits() {
    let bytes = std::fs::read(golden("tiny/goldens_logits.safetensors")).unwrap();
    let logits = SafeTensors::deserialize(&bytes).unwrap();
    let (mut compared, all) = (0, lines::<Line>("tiny/goldens.jsonl"));
    // The rows of queries and keys lie in another order in a GGUF file.
    for format in ["tiny/base", "tiny/gguf/tiny-f32.gguf"] {
        let mut bench = tiny(format, 2);
        for name in ADAPTERS {
            let adapter = golden_adapter(&format!("tiny/{name}"), TINY_GEOMETRY, Precision::Exact);
            for line in all.iter().filter(|line| line.model.as_deref() == Some(name)) {
                let ours = bench.alone_with(Some(&adapter), &tokens(&line.prompt_ids), usize::MAX).concat();
                let key = line.logits_key.as_ref().unwrap();
                assert_close(&format!("{format} {key}"), &ours, &tensor(&logits, key));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 66);
}

#[test]
fn the_tiny_model_with_an_adapter_answers_like_the_goldens() {
    let (mut bench, all) = (tiny("tiny/base", 2), lines::<Line>("tiny/goldens.jsonl"));
    for name in ADAPTERS {
        let adapter = golden_adapter(&format!("tiny/{name}"), TINY_GEOMETRY, Precision::Exact);
        for line in all.iter().filter(|line| line.model.as_deref() == Some(name)) {
            let (what, answer) = (format!("{name} {}", line.prompt_id), (&line.greedy_ids[..], &line.margins[..]));
            assert_greedy(&mut bench, Some(&adapter), &what, &line.prompt_ids, answer);
        }
    }
}

#[test]
fn quantised_files_agree_with_goldens_of_their_own() {
    let bytes = std::fs::read(golden("tiny/gguf/goldens_last_logits.safetensors")).unwrap();
    let logits = SafeTensors::deserialize(&bytes).unwrap();
    let (mut compared, all) = (0, lines::<Line>("tiny/gguf/goldens.jsonl"));
    for file in ["tiny-f32.gguf", "tiny-q4_1.gguf", "tiny-q8_0.gguf"] {
        let mut bench = tiny(&format!("tiny/gguf/{file}"), 2);
        for line in all.iter().filter(|line| line.file.as_deref() == Some(file)) {
            let what = format!("{file} {}", line.prompt_id);
            let answer = (&line.greedy_ids[..], &line.margins[..]);
            assert_greedy(&mut bench, None, &what, &line.prompt_ids, answer);
            if let Some(key) = &line.logits_key {
                let ours = bench.alone(&tokens(&line.prompt_ids), usize::MAX).pop().unwrap();
                assert_close(&what, &ours, &tensor(&logits, key));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 22);
}
