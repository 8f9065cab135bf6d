//! What makes each family itself: its settings in both formats, its own tensors, and refusals of models that are nearly
//! of it.

use std::path::Path;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::TensorView as Stored;
use serde_json::{Value, json};

use super::builder::{Gguf, string, uint32};
use super::tokenizers::four_letter_bpe;
use super::{copy_of, open, open_gguf, read_all};
use crate::weights::{LayerPart, ModelFile, RopeScaling, RowOrder, TensorName, WeightsError};

/// A layer without a window, in `layer_types`.
const FULL: &str = "full_attention";

/// Opens a copy of a family's directory after changing its `config.json`.
fn with_config(family: &str, change: impl FnOnce(&mut Value)) -> Result<ModelFile, WeightsError> {
    let directory = copy_of(&format!("families/{family}/base"));
    let path = directory.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    ModelFile::open(directory.path())
}

/// Opens a copy of a family's directory after `change` dropped or changed some of its tensors.
fn with_tensors(
    family: &str,
    change: impl for<'a> Fn(&str, Stored<'a>) -> Option<Stored<'a>>,
) -> Result<ModelFile, WeightsError> {
    let directory = copy_of(&format!("families/{family}/base"));
    rewrite(&directory.path().join("model.safetensors"), change);
    ModelFile::open(directory.path())
}

fn rewrite(path: &Path, change: impl for<'a> Fn(&str, Stored<'a>) -> Option<Stored<'a>>) {
    let content = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&content).unwrap();
    let kept = tensors.iter().filter_map(|(name, tensor)| Some((name, change(name, tensor)?)));
    ::safetensors::serialize_to_file(kept, None, path).unwrap();
}

fn refusal<T: std::fmt::Debug>(model: Result<T, WeightsError>) -> String {
    model.unwrap_err().to_string()
}

#[test]
fn both_formats_of_a_family_hold_the_same_model() {
    for family in ["llama3", "qwen2", "qwen3"] {
        let directory = open(&format!("families/{family}/base"));
        let gguf = open(&format!("families/{family}/{family}-f32.gguf"));
        for name in directory.config.tensor_names() {
            assert_eq!(gguf.tensor_f32(name).unwrap(), directory.tensor_f32(name).unwrap(), "{family} {name}");
        }
        let (mut ours, theirs) = (gguf.config, directory.config);
        ours.architecture.clone_from(&theirs.architecture);
        if family == "llama3" {
            // The converter writes the scaling as divisors.
            assert!(matches!(ours.rope.scaling, RopeScaling::Divisors(_)));
            let close = |(a, b): (&f64, &f64)| (a / b - 1.0).abs() < 1e-6;
            assert!(ours.rope.frequencies().iter().zip(&theirs.rope.frequencies()).all(close));
            ours.rope.scaling = theirs.rope.scaling.clone();
        }
        assert_eq!(ours, theirs, "{family}");
    }
}

#[test]
fn each_family_has_the_parts_that_make_it() {
    let parts = |family: &str| {
        let shape = open(&format!("families/{family}/base")).config;
        (shape.qkv_bias, shape.qk_norm, shape.tied, shape.head_dim, shape.context)
    };
    assert_eq!(parts("llama3"), (false, false, true, 16, 512));
    assert_eq!(parts("mistral"), (false, false, false, 24, 64), "the window bounds the context");
    assert_eq!(parts("qwen2"), (true, false, false, 16, 512));
    assert_eq!(parts("qwen3"), (false, true, true, 32, 512));
}

#[test]
fn a_model_short_of_its_familys_parts_is_refused() {
    let without = |family, missing: &str| refusal(with_tensors(family, |name, it| (name != missing).then_some(it)));
    let missing = "model.layers.2.self_attn.k_norm.weight";
    assert_eq!(without("qwen3", missing), format!("the model has no tensor {missing}"));
    for layer in 0..3 {
        let missing = format!("model.layers.{layer}.self_attn.v_proj.bias");
        assert_eq!(without("qwen2", &missing), format!("the model has no tensor {missing}"));
    }
    let none = refusal(with_tensors("qwen2", |name, it| (!name.ends_with(".bias")).then_some(it)));
    assert_eq!(none, "the model has no tensor model.layers.0.self_attn.q_proj.bias");
}

#[test]
fn a_head_norm_of_another_width_is_refused() {
    let halved = with_tensors("qwen3", |name, it| match name {
        "model.layers.1.self_attn.q_norm.weight" => {
            let half = it.data().len() / 2;
            Some(Stored::new(it.dtype(), vec![16], &it.data()[..half]).unwrap())
        }
        _ => Some(it),
    });
    let expected = "the tensor model.layers.1.self_attn.q_norm.weight is [16, 1], the model's settings make it [32, 1]";
    assert_eq!(refusal(halved), expected);
}

#[test]
fn a_model_under_the_name_of_another_family_is_refused() {
    let named = |family: &str, class: &str| refusal(with_config(family, |it| it["architectures"] = json!([class])));
    let surplus = "the model has the surplus tensor model.layers.0.self_attn.q_norm.weight, which is not supported";
    assert_eq!(named("qwen3", "LlamaForCausalLM"), surplus);
    assert!(named("qwen2", "Qwen3ForCausalLM").contains("head_dim"), "without a width there are no norms to look for");
    assert_eq!(named("mistral", "Qwen3ForCausalLM"), "the model has no tensor model.layers.0.self_attn.q_norm.weight");
    for class in ["Qwen3MoeForCausalLM", "MixtralForCausalLM", "Mistral3ForConditionalGeneration", "Qwen3Model"] {
        let expected = format!("the model has the architecture [{class:?}], which is not supported");
        assert_eq!(named("qwen3", class), expected);
    }
}

#[test]
fn settings_that_change_a_familys_arithmetic_are_refused_by_name() {
    let bias = refusal(with_config("qwen3", |it| it["attention_bias"] = json!(true)));
    assert_eq!(bias, "the model has the setting attention_bias, which is not supported");
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 });
    for (family, key) in [("qwen2", "rope_parameters"), ("qwen3", "rope_parameters"), ("qwen3", "rope_scaling")] {
        let refused = refusal(with_config(family, |it| {
            it.as_object_mut().unwrap().remove("rope_parameters");
            it[key] = yarn.clone();
        }));
        assert_eq!(refused, "the model has the rope scaling \"yarn\", which is not supported");
    }
    let linear = json!({ "rope_type": "linear", "factor": 4.0 });
    let two = refusal(with_config("qwen3", |it| it["rope_scaling"] = linear.clone()));
    assert_eq!(two, "the model has rope_scaling and other rope_parameters, which is not supported");
}

#[test]
fn stored_biases_that_the_settings_deny_are_refused() {
    let llama = |said: Value| {
        with_config("qwen2", |it| {
            it["architectures"] = json!(["LlamaForCausalLM"]);
            it["attention_bias"] = said;
        })
    };
    assert!(llama(json!(null)).unwrap().config.qkv_bias);
    let expected = "the model has the surplus tensor model.layers.0.self_attn.q_proj.bias, which is not supported";
    assert_eq!(refusal(llama(json!(false))), expected);
}

#[test]
fn a_window_bounds_the_context_only_where_a_layer_slides() {
    let context = |family: &str, changes: Value| {
        let model = with_config(family, |it| {
            it.as_object_mut().unwrap().remove("layer_types");
            changes.as_object().unwrap().iter().for_each(|(key, value)| it[key] = value.clone());
        });
        model.map(|model| model.config.context)
    };
    let off = json!({ "use_sliding_window": false, "sliding_window": 100, "max_window_layers": 0 });
    let on = json!({ "use_sliding_window": true, "sliding_window": 100, "max_window_layers": 2 });
    let beyond = json!({ "use_sliding_window": true, "sliding_window": 100, "max_window_layers": 3 });
    let listed = json!({ "sliding_window": 100, "layer_types": [FULL, "sliding_attention", FULL] });
    for family in ["qwen2", "qwen3"] {
        let found = [&off, &on, &beyond, &listed].map(|changes| context(family, changes.clone()).unwrap());
        assert_eq!(found, [512, 100, 512, 100], "{family}");
        let lacking = context(family, json!({ "layer_types": ["sliding_attention", FULL, FULL] }));
        assert_eq!(refusal(lacking), "the model's setting sliding_window is missing or not a whole number");
    }
    assert_eq!(context("mistral", json!({ "sliding_window": null })).unwrap(), 512);
    assert_eq!(context("mistral", json!({ "sliding_window": 32 })).unwrap(), 32);
}

/// A whole GGUF model of a family from the builder.
fn gguf_of(architecture: &str) -> Gguf {
    let mut gguf = Gguf::model_of(architecture, four_letter_bpe());
    match architecture {
        "qwen2" => ["q", "k", "v"].iter().for_each(|part| gguf.add(&format!("blk.0.attn_{part}.bias"), &[8])),
        "qwen3" => ["q", "k"].iter().for_each(|part| gguf.add(&format!("blk.0.attn_{part}_norm.weight"), &[4])),
        _ => {}
    }
    gguf
}

#[test]
fn gguf_settings_are_found_under_the_architectures_name() {
    for architecture in ["llama", "qwen2", "qwen3"] {
        let mut gguf = gguf_of(architecture);
        read_all(&open_gguf(&gguf.build()).unwrap());
        gguf.set(&format!("{architecture}.attention.sliding_window"), uint32(7));
        assert_eq!(open_gguf(&gguf.build()).unwrap().config.context, 7);
        let other = if architecture == "llama" { "qwen2" } else { "llama" };
        gguf.metadata
            .iter_mut()
            .for_each(|(key, _)| *key = key.replace(&format!("{architecture}."), &format!("{other}.")));
        let refused = refusal(open_gguf(&gguf.build()));
        assert!(refused.contains(&format!("setting {architecture}.")), "{refused}");
    }
}

#[test]
fn gguf_models_that_are_nearly_of_a_family_are_refused() {
    let refused = |architecture: &str, change: &dyn Fn(&mut Gguf)| {
        let mut gguf = gguf_of(architecture);
        change(&mut gguf);
        refusal(open_gguf(&gguf.build()))
    };
    for architecture in ["mistral3", "mistral", "qwen", "qwen2moe", "qwen3moe", "qwen35", "gemma3", ""] {
        let found = refused("qwen3", &|gguf| gguf.set("general.architecture", string(architecture)));
        assert_eq!(found, format!("the model has the architecture {architecture:?}, which is not supported"));
    }
    let drop_last = |gguf: &mut Gguf| drop(gguf.tensors.pop());
    assert_eq!(refused("qwen3", &drop_last), "the model has no tensor model.layers.0.self_attn.k_norm.weight");
    assert_eq!(refused("qwen2", &drop_last), "the model has no tensor model.layers.0.self_attn.v_proj.bias");
    let wide = refused("qwen3", &|gguf| {
        gguf.tensors.pop();
        gguf.add("blk.0.attn_k_norm.weight", &[8]);
    });
    assert!(wide.contains("k_norm.weight is [8, 1], the model's settings make it [4, 1]"), "{wide}");
    let biased = refused("qwen3", &|gguf| gguf.add("blk.0.attn_q.bias", &[8]));
    assert!(biased.contains("surplus tensor model.layers.0.self_attn.q_proj.bias"), "{biased}");
    let experts = refused("qwen3", &|gguf| gguf.set("qwen3.expert_count", uint32(8)));
    assert_eq!(experts, "the model is a mixture of 8 experts, which is not supported");
    let yarn = refused("qwen2", &|gguf| gguf.set("qwen2.rope.scaling.type", string("yarn")));
    assert_eq!(yarn, "the model has the rope scaling \"yarn\", which is not supported");
    let scaled = refused("qwen3", &|gguf| gguf.set("qwen3.attention.scale", uint32(1)));
    assert_eq!(scaled, "the model has the setting qwen3.attention.scale, which is not supported");
    let divisors = refused("qwen2", &|gguf| gguf.add("rope_freqs.weight", &[2]));
    assert!(divisors.contains("rope"), "{divisors}");
}

#[test]
fn only_the_llama_architecture_interleaves_rows() {
    for (architecture, interleaved) in [("llama", true), ("qwen2", false), ("qwen3", false)] {
        let model = open_gguf(&gguf_of(architecture).build()).unwrap();
        for part in [LayerPart::Q, LayerPart::K, LayerPart::V] {
            let name = TensorName::Layer { layer: 0, part };
            let plain = model.tensor(name).unwrap().order == RowOrder::Plain;
            assert_eq!(plain, !interleaved || part == LayerPart::V, "{architecture} {name}");
        }
    }
}
