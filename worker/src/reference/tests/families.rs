//! Agreement with what Hugging Face transformers computed for a tiny model of each family, and equal bits for the parts
//! that a llama does not have.

use safetensors::SafeTensors;

use super::goldens::{Line, assert_close, tensor};
use super::{assert_greedy, open, tiny};
use crate::backend::bench::{Bench, Instructions, Layers, Setup, assert_same_bits, golden, lines, tokens};

/// Each family's files, and which lines of its goldens they are held to.
const FILES: [(&str, &[(&str, &str)]); 4] = [
    ("llama3", &[("base", "base"), ("llama3-f32.gguf", "base")]),
    ("mistral", &[("base", "base")]),
    ("qwen2", &[("base", "base"), ("qwen2-f32.gguf", "base"), ("qwen2-q8_0.gguf", "qwen2-q8_0.gguf")]),
    ("qwen3", &[("base", "base"), ("qwen3-f32.gguf", "base"), ("qwen3-q8_0.gguf", "qwen3-q8_0.gguf")]),
];

#[test]
fn every_position_of_every_family_agrees_with_the_golden_logits() {
    let mut compared = 0;
    for (family, files) in FILES {
        let bytes = std::fs::read(golden(&format!("families/{family}/logits.safetensors"))).unwrap();
        let logits = SafeTensors::deserialize(&bytes).unwrap();
        let all = lines::<Line>(&format!("families/{family}/goldens.jsonl"));
        for (file, model) in files {
            let mut bench = tiny(&format!("families/{family}/{file}"), 2);
            for line in all.iter().filter(|line| line.model.as_deref() == Some(model)) {
                let ours = bench.alone(&tokens(&line.prompt_ids), usize::MAX).concat();
                let key = line.logits_key.as_ref().unwrap();
                assert_close(&format!("{family}/{file} {}", line.prompt_id), &ours, &tensor(&logits, key));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 9 * 5);
}

#[test]
fn every_family_answers_like_its_goldens() {
    for (family, files) in FILES {
        let all = lines::<Line>(&format!("families/{family}/goldens.jsonl"));
        for (file, model) in files {
            let mut bench = tiny(&format!("families/{family}/{file}"), 2);
            for line in all.iter().filter(|line| line.model.as_deref() == Some(model)) {
                let what = format!("{family}/{file} {}", line.prompt_id);
                let answer = (&line.greedy_ids[..], &line.margins[..]);
                assert_greedy(&mut bench, None, &what, &line.prompt_ids, answer);
            }
        }
    }
}

#[test]
fn biases_and_head_norms_have_the_same_bits_however_a_prompt_is_computed() {
    let prompt: Vec<u32> = (0..70).map(|i| (i * i * 11 + i * 5 + 7) % 512).collect();
    for file in ["qwen2/qwen2-q8_0.gguf", "qwen3/qwen3-q8_0.gguf"].map(|file| format!("families/{file}")) {
        let mut bench = tiny(&file, 2);
        let whole = bench.alone(&tokens(&prompt), usize::MAX);
        for chunk in [1, 7] {
            assert_same_bits(&format!("{file} in chunks of {chunk}"), &bench.alone(&tokens(&prompt), chunk), &whole);
        }
        let portable =
            Setup { model: &golden(&file), threads: 1, instructions: Instructions::Number(0), layers: Layers::All };
        let mut portable = Bench::over(open(portable).expect("it is always there"));
        assert_same_bits(&format!("{file} without SIMD"), &portable.alone(&tokens(&prompt), 64), &whole);
    }
}
