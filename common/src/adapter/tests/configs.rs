//! `adapter_config.json`, field by field.

use serde_json::{Value, json};

use super::{Adapter, judged};
use crate::adapter::{AdapterError, Fault, Linear};

#[test]
fn what_only_training_reads_changes_nothing() {
    let plain = Adapter::qv().judged().unwrap();
    assert_eq!(plain[0], (0, Linear::Q, 2, 2.0));
    for (field, value) in [
        ("lora_dropout", json!(0.3)),
        ("init_lora_weights", json!(true)),
        ("init_lora_weights", json!(false)),
        ("init_lora_weights", json!("Gaussian")),
        ("init_lora_weights", json!("eva")),
        ("eva_config", json!({"rho": 2.0, "tau": 0.99})),
        ("corda_config", json!({"corda_method": "ipm"})),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("task_type", json!("CAUSAL_LM")),
        ("inference_mode", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("revision", json!("main")),
        ("peft_version", json!("0.99.0")),
        ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM"})),
        ("base_model_name_or_path", json!("/some/where")),
        ("base_model_name_or_path", json!(7)),
        ("megatron_core", json!("megatron.core")),
        ("qalora_group_size", json!(16)),
        // What says nothing, known or not.
        ("use_dora", json!(false)),
        ("modules_to_save", json!([])),
        ("layer_replication", Value::Null),
        ("bias", Value::Null),
        ("use_tomorrow", json!(false)),
        ("tomorrow_config", json!({})),
        ("tomorrow", json!("")),
    ] {
        let judged = Adapter::qv().with(field, value.clone()).judged();
        assert_eq!(judged.as_ref(), Ok(&plain), "{field}: {value}");
    }
}

#[test]
fn what_changes_the_answer_and_is_not_computed_is_refused_by_name() {
    let mut sentences = String::new();
    for (field, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", json!("lora")),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("megatron_config", json!({"x": 1})),
        ("alora_invocation_tokens", json!([1, 2])),
        ("target_parameters", json!(["experts"])),
        ("trainable_token_indices", json!({"embed_tokens": [1]})),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("enable_lora", json!([true, false])),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("OLoRA")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("init_lora_weights", json!("tomorrow")),
        ("use_tomorrow", json!(true)),
        ("tomorrow_scale", json!(0.5)),
        ("tomorrow", json!([[]])),
        ("target_modules", json!(["q_proj", "embed_tokens"])),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!(".*")),
    ] {
        let error = Adapter::qv().with(field, value).refused();
        assert_eq!(error.kind(), Fault::Unsupported, "{error}");
        sentences.push_str(&format!("{error}\n"));
    }
    insta::assert_snapshot!(sentences);
}

#[test]
fn no_number_of_fields_that_say_nothing_hides_one_that_does() {
    let weights = Adapter::qv().weights();
    let config = String::from_utf8(Adapter::qv().config()).unwrap();
    let ignored = "\"lora_dropout\": 0.1, ".repeat(1000);
    let empty: String = (0..1000).map(|at| format!("\"field{at}\": null, ")).collect();
    let with = |last: &str| config.replacen('{', &format!("{{{ignored}{empty}{last}"), 1);
    assert_eq!(judged(with("").as_bytes(), &weights).map(|judged| judged.len()), Ok(4));
    let error = judged(with("\"use_dora\": true, ").as_bytes(), &weights).unwrap_err();
    assert!(matches!(error, AdapterError::NotComputed { field: "use_dora", .. }), "{error}");
}

#[test]
fn a_field_of_another_type_or_out_of_range_is_refused_by_name() {
    let mut sentences = String::new();
    for (field, value) in [
        ("peft_type", json!(7)),
        ("r", json!("2")),
        ("r", json!(2.0)),
        ("r", json!(0)),
        ("r", json!(-2)),
        ("r", json!(257)),
        ("r", json!(u64::MAX)),
        ("r", json!(true)),
        ("r", json!([2])),
        ("lora_alpha", json!("4")),
        ("lora_alpha", json!(1e300)),
        ("use_rslora", json!(1)),
        ("use_rslora", json!("true")),
        ("bias", json!(false)),
        ("init_lora_weights", json!(3)),
        ("target_modules", json!(3)),
        ("target_modules", json!(["q_proj", 3])),
        ("target_modules", json!([["q_proj"]])),
        ("exclude_modules", json!({"q_proj": 1})),
        ("layers_to_transform", json!("0")),
        ("layers_to_transform", json!([0, 1.0])),
        ("layers_pattern", json!([1])),
        ("rank_pattern", json!(["q_proj"])),
        ("rank_pattern", json!({"q_proj": 300})),
        ("rank_pattern", json!({"q_proj": null})),
        ("alpha_pattern", json!({"q_proj": "4"})),
        ("alpha_pattern", json!({"q_proj": {"a": {}}})),
    ] {
        let error = Adapter::qv().with(field, value).refused();
        assert_eq!(error.kind(), Fault::Malformed, "{error}");
        sentences.push_str(&format!("{error}\n"));
    }
    for field in ["peft_type", "r", "lora_alpha", "target_modules"] {
        assert_eq!(Adapter::qv().without(field).refused(), AdapterError::MissingField { field });
        assert_eq!(Adapter::qv().with(field, Value::Null).refused(), AdapterError::MissingField { field });
    }
    insta::assert_snapshot!(sentences);
}

#[test]
fn a_scale_may_be_any_finite_number() {
    for (alpha, scale) in [(json!(0.5), 0.25), (json!(-4), -2.0), (json!(0), 0.0), (json!(3), 1.5)] {
        assert_eq!(Adapter::qv().with("lora_alpha", alpha).judged().unwrap()[0].3, scale);
    }
}

#[test]
fn a_configuration_that_is_no_json_object_is_refused() {
    let weights = Adapter::qv().weights();
    let deep = format!("{{\"x\": {}{}}}", "[".repeat(500_000), "]".repeat(500_000));
    let many = format!("{{\"target_modules\": [{}\"q\"]}}", "\"q\",".repeat(5000));
    let mut sentences = String::new();
    for config in [
        "",
        " ",
        "[]",
        "null",
        "{",
        "{\"r\": 2,}",
        "{} {}",
        "{\"r\": 2, \"r\": 2}",
        "{\"lora_alpha\": NaN}",
        "{\"lora_alpha\": -Infinity}",
        "{\"lora_alpha\": 1e999}",
        "{\"rank_pattern\": {\"q\": 1, \"q\": 2}}",
        "\u{feff}{}",
        "{\"x\": \"\\ud800\"}",
        &deep,
        &many,
    ] {
        let error = judged(config.as_bytes(), &weights).unwrap_err();
        assert_eq!(error.kind(), Fault::Malformed, "{error}");
        sentences.push_str(&format!("{error}\n"));
    }
    let error = judged(b"{\"\xff\": 1}", &weights).unwrap_err();
    sentences.push_str(&format!("{error}\n"));
    insta::assert_snapshot!(sentences);
}
