//! Values and settings that come out of the golden files.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{copy_of_tiny, golden, open};
use crate::weights::{LayerPart, ModelFile, ModelShape, RopeConfig, RopeScaling, TensorName};

#[derive(Deserialize)]
struct Dequantised {
    shape: Vec<usize>,
    sha256_f32_le: String,
    first4: Vec<f32>,
}

fn sha256(values: &[f32]) -> String {
    let mut hasher = Sha256::new();
    values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tensors of `model` are those of the golden list, value for value.
fn assert_dequantises_as(model: &ModelFile, list: &str) {
    let list = std::fs::read(golden(list)).unwrap();
    let mut expected: BTreeMap<String, Dequantised> = serde_json::from_slice(&list).unwrap();
    for name in model.config.tensor_names() {
        let tensor = expected.remove(&name.to_string()).unwrap_or_else(|| panic!("no golden for {name}"));
        let values = model.tensor_f32(name).unwrap();
        assert_eq!(values.len(), tensor.shape.iter().product::<usize>(), "{name}");
        assert_eq!(values[..4], tensor.first4, "{name}");
        assert_eq!(sha256(&values), tensor.sha256_f32_le, "{name}");
    }
    assert!(expected.is_empty(), "not in the model: {:?}", expected.keys());
}

#[test]
fn gguf_tensors_dequantise_to_the_reference_values_bit_for_bit() {
    for name in ["tiny-f32", "tiny-q4_1", "tiny-q8_0"] {
        let model = open(&format!("tiny/gguf/{name}.gguf"));
        assert_dequantises_as(&model, &format!("tiny/gguf/{name}.gguf.dequant.json"));
    }
}

#[test]
fn a_hugging_face_directory_holds_the_same_values_as_its_f32_gguf() {
    assert_dequantises_as(&open("tiny/base"), "tiny/gguf/tiny-f32.gguf.dequant.json");
}

fn tiny_shape(architecture: &str) -> ModelShape {
    ModelShape {
        architecture: architecture.to_owned(),
        layers: 4,
        hidden: 64,
        intermediate: 160,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 512,
        context: 512,
        rms_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, dims: 16, scaling: RopeScaling::None },
        tied: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

#[test]
fn both_formats_tell_the_same_shape() {
    assert_eq!(open("tiny/base").config, tiny_shape("LlamaForCausalLM"));
    for name in ["tiny-f32", "tiny-q4_1", "tiny-q8_0"] {
        assert_eq!(open(&format!("tiny/gguf/{name}.gguf")).config, tiny_shape("llama"));
    }
}

#[test]
fn the_commonest_type_of_the_linear_layers_names_the_quantisation() {
    assert_eq!(open("tiny/gguf/tiny-q4_1.gguf").quantisation, "Q4_1");
    assert_eq!(open("tiny/gguf/tiny-q8_0.gguf").quantisation, "Q8_0");
    assert_eq!(open("tiny/base").quantisation, "F32");
}

#[test]
fn a_tied_output_head_is_the_embedding() {
    let model = open("tiny/gguf/tiny-q4_1.gguf");
    assert_eq!(model.tensor_f32(TensorName::Output).unwrap(), model.tensor_f32(TensorName::Embedding).unwrap());
}

#[test]
fn rows_of_a_view_are_in_the_hugging_face_order() {
    let (gguf, reference) = (open("tiny/gguf/tiny-f32.gguf"), open("tiny/base"));
    for part in [LayerPart::Q, LayerPart::K, LayerPart::V] {
        let name = TensorName::Layer { layer: 2, part };
        let (permuted, plain) = (gguf.tensor(name).unwrap(), reference.tensor(name).unwrap());
        assert_eq!(permuted.shape, plain.shape);
        for row in 0..plain.shape[0] {
            assert_eq!(permuted.row(row), plain.row(row), "{name} row {row}");
        }
    }
}

#[test]
fn a_digest_is_the_contents_and_nothing_else() {
    let copy = copy_of_tiny();
    let original = open("tiny/base").digest;
    assert_eq!(ModelFile::open(copy.path()).unwrap().digest, original);
    let weights = copy.path().join("model.safetensors");
    let mut content = std::fs::read(&weights).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, content).unwrap();
    assert_ne!(ModelFile::open(copy.path()).unwrap().digest, original);
}
