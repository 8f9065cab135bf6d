//! Hugging Face directories made wrong.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::builder::{Gguf, uint32};
use super::tokenizers::four_letter_bpe;
use super::{copy_of_tiny, open, open_gguf, read_all};
use crate::weights::{ModelFile, RopeScaling, WeightsError};

/// Opens the tiny directory after changing its `config.json`.
fn with_config(change: impl FnOnce(&mut Value)) -> Result<ModelFile, WeightsError> {
    let directory = copy_of_tiny();
    edit(&directory.path().join("config.json"), change);
    ModelFile::open(directory.path())
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Writes a safetensors file with this header and so many bytes of data.
fn write_safetensors(path: &Path, header: &str, data: usize) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    std::fs::write(path, file).unwrap();
}

#[test]
fn unsound_safetensors_headers_are_refused() {
    let directory = copy_of_tiny();
    let weights = directory.path().join("model.safetensors");
    let bad = [
        (r#"{"t":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}"#, 31),
        (r#"{"t":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}"#, 33),
        (r#"{"t":{"dtype":"F32","shape":[8],"data_offsets":[4,36]}}"#, 36),
        (r#"{"t":{"dtype":"F32","shape":[9],"data_offsets":[0,32]}}"#, 32),
        (r#"{"t":{"dtype":"F32","shape":[8],"data_offsets":[32,0]}}"#, 32),
        (r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
        (r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,32]}}"#, 32),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            12,
        ),
        ("{", 0),
        ("[]", 0),
    ];
    for (header, data) in bad {
        write_safetensors(&weights, header, data);
        let refused = ModelFile::open(directory.path());
        assert!(matches!(refused, Err(WeightsError::Safetensors { .. })), "{header} gave {refused:?}");
    }
    for length in [0u64, 8 << 20, (8 << 20) + 1, 1 << 40, u64::MAX] {
        std::fs::write(&weights, length.to_le_bytes()).unwrap();
        assert!(matches!(ModelFile::open(directory.path()), Err(WeightsError::Safetensors { .. })), "{length}");
    }
}

#[test]
fn tensors_of_other_types_or_names_are_refused() {
    let directory = copy_of_tiny();
    let weights = directory.path().join("model.safetensors");
    for (name, dtype, size) in [("model.norm.weight", "I32", 32), ("model.norm.weight", "F64", 64), ("t", "F32", 32)] {
        let header = json!({ name: { "dtype": dtype, "shape": [8], "data_offsets": [0, size] } });
        write_safetensors(&weights, &header.to_string(), size);
        let refused = ModelFile::open(directory.path());
        assert!(matches!(refused, Err(WeightsError::Unsupported(_))), "{header} gave {refused:?}");
    }
}

#[test]
fn shards_are_read_as_one_model() {
    let directory = copy_of_tiny();
    let path = |name| directory.path().join(name);
    let whole = std::fs::read(path("model.safetensors")).unwrap();
    let tensors = ::safetensors::SafeTensors::deserialize(&whole).unwrap();
    let (first, second): (Vec<_>, Vec<_>) = tensors.iter().partition(|(name, _)| name.contains("layers.0."));
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)] {
        map.extend(part.iter().map(|(name, _)| ((*name).to_owned(), json!(file))));
        ::safetensors::serialize_to_file(part, None, &path(file)).unwrap();
    }
    std::fs::remove_file(path("model.safetensors")).unwrap();
    std::fs::write(path("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    let (sharded, single) = (ModelFile::open(directory.path()).unwrap(), open("tiny/base"));
    for name in single.config.tensor_names() {
        assert_eq!(sharded.tensor_f32(name).unwrap(), single.tensor_f32(name).unwrap(), "{name}");
    }
}

#[test]
fn an_index_cannot_name_a_file_outside_its_directory() {
    let directory = copy_of_tiny();
    let outside = ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "C:x.safetensors"];
    for name in outside.iter().chain(&[".x.safetensors", "x.bin", "", "x\0.safetensors"]) {
        let index = json!({ "weight_map": { "model.norm.weight": name } }).to_string();
        std::fs::write(directory.path().join("model.safetensors.index.json"), index).unwrap();
        let refused = ModelFile::open(directory.path());
        assert!(matches!(refused, Err(WeightsError::Unsupported(_))), "{name:?} gave {refused:?}");
    }
}

#[test]
fn settings_of_other_models_are_refused_by_name() {
    let foreign = [
        ("hidden_act", json!("gelu")),
        ("mlp_bias", json!(true)),
        ("quantization_config", json!({ "quant_method": "gptq" })),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_parameters", json!({ "rope_type": "yarn", "factor": 4.0 })),
        ("rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 })),
        ("rope_parameters", json!({ "full_attention": { "rope_type": "default" } })),
        ("rope_scaling", json!({ "type": "linear", "factor": 4.0 })),
        ("layer_types", json!(["chunked_attention", "full_attention", "full_attention", "full_attention"])),
        ("dual_chunk_attention_config", json!({ "chunk_size": 262144 })),
    ];
    for (key, value) in foreign {
        let refused = with_config(|config| config[key] = value).unwrap_err();
        assert!(matches!(refused, WeightsError::Unsupported(_)), "{key} gave {refused}");
    }
}

#[test]
fn dimensions_outside_the_bounds_are_refused() {
    let keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"];
    for key in keys.iter().chain(&["head_dim", "vocab_size"]) {
        for value in [0u64, 3, 1 << 31, u64::MAX] {
            assert!(with_config(|config| config[*key] = json!(value)).is_err(), "{key} = {value} was taken");
        }
        for value in [json!(-1), json!(1.5), json!("4"), json!([4])] {
            let refused = with_config(|config| config[*key] = value);
            assert!(matches!(refused, Err(WeightsError::Json { .. })), "{key}: {refused:?}");
        }
    }
    for (key, value) in [("rms_norm_eps", 0.0), ("rms_norm_eps", -1.0), ("rms_norm_eps", 1e300)] {
        assert!(with_config(|config| config[key] = json!(value)).is_err(), "{key} = {value} was taken");
    }
    assert!(with_config(|config| config["rope_parameters"] = json!({ "rope_theta": -1.0 })).is_err());
    assert!(with_config(|config| config["max_position_embeddings"] = json!(1u64 << 40)).is_err());
}

#[test]
fn the_context_ends_where_a_sliding_window_would_begin_to_slide() {
    for (window, context) in [(0, 16), (7, 7), (99, 16)] {
        let mut gguf = Gguf::model(four_letter_bpe());
        gguf.set("llama.attention.sliding_window", uint32(window));
        assert_eq!(open_gguf(&gguf.build()).unwrap().config.context, context);
    }
    assert_eq!(with_config(|config| config["sliding_window"] = json!(100)).unwrap().config.context, 100);
    assert_eq!(with_config(|config| config["sliding_window"] = json!(4096)).unwrap().config.context, 512);
}

#[test]
fn rope_scaling_is_read_from_old_and_new_settings() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192 });
    let expected =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    let new = with_config(|config| config["rope_parameters"] = llama3.clone()).unwrap();
    assert_eq!(new.config.rope.scaling, expected);
    let old = with_config(|config| {
        config.as_object_mut().unwrap().remove("rope_parameters");
        config["rope_scaling"] = llama3.clone();
        config["rope_scaling"]["type"] = json!("llama3");
    });
    assert_eq!(old.unwrap().config.rope.scaling, expected);
}

#[test]
fn old_and_new_rope_settings_may_stand_side_by_side_unless_they_contradict_each_other() {
    let both = |old_theta: Value, new_theta: Value| {
        with_config(|config| {
            config["rope_scaling"] = json!({ "type": "linear", "factor": 4.0, "rope_theta": old_theta });
            config["rope_parameters"] = json!({ "rope_type": "linear", "factor": 4.0, "rope_theta": new_theta });
        })
    };
    let one = both(Value::Null, json!(5e5)).unwrap().config.rope;
    assert_eq!((one.theta, one.scaling), (5e5, RopeScaling::Linear { factor: 4.0 }));
    assert_eq!(both(json!(5e5), json!(5e5)).unwrap().config.rope.theta, 5e5);
    let other = both(json!(1e4), json!(5e5)).unwrap_err().to_string();
    assert_eq!(other, "the model has rope_scaling and other rope_parameters, which is not supported");
}

#[test]
fn files_that_should_be_small_are_not_read_when_they_are_not() {
    let directory = copy_of_tiny();
    std::fs::File::create(directory.path().join("config.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(ModelFile::open(directory.path()), Err(WeightsError::FileTooLarge { .. })));
}

#[test]
fn a_directory_without_a_model_says_so() {
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(ModelFile::open(empty.path()), Err(WeightsError::UnknownFormat { .. })));
    assert!(matches!(ModelFile::open(&empty.path().join("absent")), Err(WeightsError::Read { .. })));
    assert!(matches!(ModelFile::open(Path::new("/dev/zero")), Err(WeightsError::Read { .. })));
}

#[test]
fn a_damaged_directory_is_refused_or_can_be_read_whole() {
    let names =
        ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"];
    for name in names {
        let directory = copy_of_tiny();
        let path = directory.path().join(name);
        let sound = std::fs::read(&path).unwrap();
        for seed in 0..100 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut file = sound.clone();
            for _ in 0..random.random_range(1..=3) {
                let at = random.random_range(0..file.len().min(4096));
                file[at] = [b'0', b'9', b'-', b'"', b'[', b'}', random.random()][random.random_range(0..7)];
            }
            std::fs::write(&path, file).unwrap();
            if let Ok(model) = ModelFile::open(directory.path()) {
                read_all(&model);
            }
        }
    }
}
