//! `adapter_model.safetensors`: what its tensors are called, their shapes and their numbers.

use half::{bf16, f16};
use serde_json::json;

use super::{Adapter, TINY, judged};
use crate::adapter::{AdapterError, Fault, Linear};

const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

#[test]
fn names_without_peft_s_prefix_or_with_its_default_adapter_are_the_same_names() {
    let plain = Adapter::qv().judged().unwrap();
    assert_eq!(plain.len(), 4);
    let unwrapped = |name: &str| name.strip_prefix("base_model.model.").unwrap().to_owned();
    let raw = |name: &str| name.replace(".weight", ".default.weight");
    assert_eq!(Adapter::qv().renamed(unwrapped).judged().unwrap(), plain);
    assert_eq!(Adapter::qv().renamed(raw).judged().unwrap(), plain);
    // Two names of one tensor are one too many.
    let twice = Adapter::qv().tensor(&raw(Q_A), &[2, 64]).refused();
    assert!(matches!(twice, AdapterError::Twice { .. }), "{twice}");
}

#[test]
fn a_tensor_that_is_not_understood_is_refused_by_name() {
    let layer = "base_model.model.model.layers.0";
    let mut sentences = String::new();
    for (name, kind) in [
        ("foo".to_owned(), Fault::Malformed),
        ("".to_owned(), Fault::Malformed),
        ("x".repeat(2000), Fault::Malformed),
        ("tensor\n\u{202e}\u{0}\u{1b}[31m".to_owned(), Fault::Malformed),
        (format!("{layer}.input_layernorm.weight"), Fault::Unsupported),
        ("base_model.model.lm_head.weight".to_owned(), Fault::Unsupported),
        ("base_model.model.lm_head.lora_A.weight".to_owned(), Fault::Unsupported),
        ("base_model.model.model.embed_tokens.lora_embedding_A".to_owned(), Fault::Unsupported),
        (format!("{layer}.self_attn.q_proj.lora_B.bias"), Fault::Unsupported),
        (format!("{layer}.self_attn.q_proj.bias"), Fault::Unsupported),
        (format!("{layer}.self_attn.q_proj.lora_magnitude_vector"), Fault::Unsupported),
        (format!("{layer}.self_attn.q_proj.lora_diag"), Fault::Unsupported),
        (format!("{layer}.self_attn.q_proj.lora_A.other.weight"), Fault::Unsupported),
        (format!("{layer}.self_attn.wqkv.lora_A.weight"), Fault::WrongBase),
        (format!("{layer}.mlp.q_proj.lora_A.weight"), Fault::WrongBase),
        ("base_model.model.model.layers.4.self_attn.q_proj.lora_A.weight".to_owned(), Fault::WrongBase),
        ("base_model.model.model.layers.4294967296.self_attn.q_proj.lora_A.weight".to_owned(), Fault::WrongBase),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight".to_owned(), Fault::WrongBase),
        ("base_model.model.model.layers.+1.self_attn.q_proj.lora_A.weight".to_owned(), Fault::WrongBase),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight".to_owned(), Fault::WrongBase),
    ] {
        let error = Adapter::qv().tensor(&name, &[2, 64]).refused();
        assert_eq!(error.kind(), kind, "{error}");
        sentences.push_str(&format!("{error}\n"));
    }
    insta::assert_snapshot!(sentences);
}

#[test]
fn modules_that_are_targeted_and_absent_are_fine_and_the_reverse_is_not() {
    let more = Adapter::qv().with("target_modules", json!(["q_proj", "k_proj", "v_proj", "wqkv"]));
    assert_eq!(more.judged().unwrap().len(), 4);
    let fewer = Adapter::qv().with("target_modules", json!(["q_proj"])).refused();
    assert_eq!(fewer, AdapterError::NotTargeted { module: "model.layers.0.self_attn.v_proj".to_owned() });
    let elsewhere = Adapter::qv().with("layers_to_transform", json!([0])).refused();
    assert_eq!(elsewhere, AdapterError::NotTargeted { module: "model.layers.1.self_attn.q_proj".to_owned() });
}

#[test]
fn updates_come_by_layer_and_in_the_order_of_computation() {
    let config = Adapter::qv().with("target_modules", json!("all-linear"));
    let reversed =
        (0..TINY.layers).rev().flat_map(|layer| Linear::ALL.into_iter().rev().map(move |linear| (layer, linear)));
    let empty = Adapter { tensors: Vec::new(), ..config };
    let adapter = reversed.fold(empty, |adapter, (layer, linear)| adapter.update(layer, linear, 2));
    let places: Vec<_> = adapter.judged().unwrap().iter().map(|&(layer, linear, ..)| (layer, linear)).collect();
    assert_eq!(places.len(), 28);
    assert!(places.is_sorted());
}

#[test]
fn a_rank_that_is_not_the_configurations_is_no_other_base_model() {
    let adapter = Adapter::qv().update(2, Linear::Q, 3);
    let error = adapter.refused();
    assert!(matches!(error, AdapterError::WrongRank { expected: 2, got: 3, .. }), "{error}");
    let pattern = json!({r"layers\.2\..*": 3});
    let judged = adapter.with("rank_pattern", pattern).judged().unwrap();
    assert_eq!(judged.last(), Some(&(2, Linear::Q, 3, (4.0f64 / 3.0) as f32)));
    // Rank 256 is the largest.
    let largest = Adapter { tensors: Vec::new(), ..Adapter::qv() }.update(0, Linear::Q, 256).with("r", json!(256));
    assert_eq!(largest.judged().unwrap()[0].2, 256);
}

#[test]
fn a_shape_with_more_or_fewer_dimensions_is_refused() {
    for shape in [&[][..], &[128], &[2, 64, 1], &[1, 2, 64]] {
        let mut adapter = Adapter::qv();
        let tensor = &mut adapter.tensors[0];
        tensor.shape = shape.to_vec();
        tensor.bytes = vec![0; 4 * shape.iter().product::<usize>()];
        let error = adapter.refused();
        assert!(matches!(error, AdapterError::NotMatrix { .. }), "{error}");
    }
}

#[test]
fn one_number_that_is_not_finite_is_found_in_every_storage() {
    use safetensors::Dtype;
    type Encode = fn(f32) -> Vec<u8>;
    let storages: [(Dtype, Encode); 3] = [
        (Dtype::F32, |number| number.to_le_bytes().to_vec()),
        (Dtype::F16, |number| f16::from_f32(number).to_le_bytes().to_vec()),
        (Dtype::BF16, |number| bf16::from_f32(number).to_le_bytes().to_vec()),
    ];
    for (dtype, encode) in storages {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut adapter = Adapter::qv();
            let tensor = &mut adapter.tensors[0];
            tensor.dtype = dtype;
            let numbers = |last: f32| (0..128).flat_map(|at| encode(if at == 127 { last } else { 60_000.0 })).collect();
            tensor.bytes = numbers(-60_000.0);
            assert_eq!(adapter.judged().map(|judged| judged.len()), Ok(4), "{dtype}");
            adapter.tensors[0].bytes = numbers(bad);
            let error = adapter.refused();
            assert!(matches!(error, AdapterError::NotFinite { row: 1, column: 63, .. }), "{dtype} {bad}: {error}");
        }
    }
}

#[test]
fn what_is_not_a_safetensors_file_is_told_apart() {
    let config = Adapter::qv().config();
    let refused = |weights: &[u8]| judged(&config, weights).unwrap_err();
    assert_eq!(refused(b"PK\x03\x04\x00\x00\x08\x08 and the rest of a zip archive"), AdapterError::Pickle);
    assert_eq!(refused(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), AdapterError::Pickle);
    assert_eq!(refused(b"PK\x03\x04"), AdapterError::Pickle);
    assert_eq!(refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), AdapterError::LfsPointer);
    // The length of this header begins as a pickle does; the file ends too soon all the same.
    let error = refused(&[&640u64.to_le_bytes()[..], b"{}"].concat());
    assert!(matches!(error, AdapterError::NotSafetensors { .. }), "{error}");
}

#[test]
fn a_header_whose_length_begins_as_a_pickle_does_is_read() {
    let weights = Adapter::qv().weights();
    let (length, rest) = weights.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    // 0x0480: the bytes of pickle's protocol 4.
    let padded = [header, &vec![b' '; 0x0480 - header.len()]].concat();
    let weights = [&0x0480u64.to_le_bytes()[..], &padded, data].concat();
    assert_eq!(&weights[..2], b"\x80\x04");
    assert_eq!(judged(&Adapter::qv().config(), &weights).map(|judged| judged.len()), Ok(4));
}
