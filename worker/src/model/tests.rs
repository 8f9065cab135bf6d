//! The promises of loading: a card says what the model is, and changes when an answer could.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use shoal_common::config::{Engine, ModelConfig, ModelSource, Quant, Script};
use shoal_common::ids::{Digest, LayerRange, Name, TokenId};

use super::*;
use crate::backend::{BlockId, LogitsBuffer, LogitsOf, Slice};

fn config(source: ModelSource) -> ModelConfig {
    ModelConfig { name: Name::new("tiny").unwrap(), source }
}

fn files(path: PathBuf, engine: Engine) -> ModelSource {
    ModelSource::Files { path, engine }
}

fn tiny(format: &str) -> LoadedModel {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny")).join(format);
    load(&config(files(path, Engine::default())), Some(1), Layers::All).unwrap()
}

fn script(salt: u64) -> Script {
    let (step, eos_every) = (std::time::Duration::ZERO, NonZero::new(64));
    Script { step, salt, eos_every, ..Script::default() }
}

#[test]
fn a_card_says_what_was_loaded() {
    let model = tiny("base");
    let card = &model.card;
    assert_eq!((card.vocab_size, card.layer_count, card.layers.begin, card.layers.end), (512, 4, 0, 4));
    assert_eq!(card.tokenizer, Digest::of(&model.bundle));
    assert_eq!(card.numerics_class, "int8-q8_0");
    assert!(card.context > 0);
}

#[test]
fn the_same_files_have_the_same_fingerprint_and_others_another() {
    assert_eq!(tiny("base").card, tiny("base").card);
    let formats = ["base", "gguf/tiny-q4_1.gguf", "gguf/tiny-q8_0.gguf"].map(|format| tiny(format).card.fingerprint);
    assert!(formats[0] != formats[1] && formats[0] != formats[2] && formats[1] != formats[2]);
}

#[test]
fn what_computes_and_how_floats_were_quantised_is_in_the_fingerprint() {
    let path = |format| Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny")).join(format);
    let card = |format, engine| load(&config(files(path(format), engine)), Some(1), Layers::All).unwrap().card;
    let [eight, four] = [Quant::Q8_0, Quant::Q4_0].map(Engine::Cpu);
    let floats = [eight, four, Engine::Reference].map(|engine| card("base", engine).fingerprint);
    assert!(floats[0] != floats[1] && floats[0] != floats[2] && floats[1] != floats[2]);
    // Nothing is left to quantise.
    let quantised = |engine| card("gguf/tiny-q8_0.gguf", engine);
    assert_eq!(quantised(eight).fingerprint, quantised(four).fingerprint);
    assert_eq!(quantised(eight).numerics_class, "int8");
}

#[test]
fn a_loaded_backend_computes_rows_as_wide_as_the_card_says() {
    let scripted = load(&config(ModelSource::Scripted(script(1))), None, Layers::All).unwrap();
    for mut model in [tiny("base"), scripted] {
        let mut logits = LogitsBuffer::default();
        model.backend.reserve(1).unwrap();
        let slice =
            Slice { start: 0, tokens: &[TokenId(1)], blocks: &[BlockId(0)], adapter: None, logits: LogitsOf::Last };
        model.backend.forward(&[slice], &mut logits).unwrap();
        assert_eq!(logits.row(0).len(), model.card.vocab_size as usize);
    }
}

#[test]
fn scripts_of_another_salt_are_other_models() {
    let card = |salt| load(&config(ModelSource::Scripted(script(salt))), None, Layers::All).unwrap().card;
    assert_eq!(card(1), card(1));
    assert_ne!(card(1).fingerprint, card(2).fingerprint);
}

#[test]
fn a_stage_is_the_same_model_and_has_its_own_layers_only() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny/base"));
    let config = config(files(path.to_owned(), Engine::default()));
    let part = |begin, end, of| load(&config, Some(1), Layers::Part { hosted: LayerRange { begin, end }, of });
    let (whole, stage) = (tiny("base"), part(1, 3, 4).unwrap());
    assert_eq!((stage.card.layers.begin, stage.card.layers.end, stage.card.layer_count), (1, 3, 4));
    assert_eq!((stage.card.fingerprint, stage.card.weights), (whole.card.fingerprint, whole.card.weights));
    assert_eq!(stage.backend.kv_bytes_per_token() * 2, whole.backend.kv_bytes_per_token());
    for of in [3, 5] {
        assert!(matches!(part(0, 2, of), Err(LoadError::OtherLayers { has: 4, .. })), "stages with {of} layers");
    }
    let layers = Layers::Part { hosted: LayerRange { begin: 0, end: 2 }, of: 2 };
    assert!(matches!(load(&self::config(ModelSource::Scripted(script(1))), None, layers), Err(LoadError::NotSplit)));
}

#[test]
fn a_missing_model_is_an_error_of_its_files() {
    let missing = load(&config(files(PathBuf::from("/nonexistent/model.gguf"), Engine::default())), None, Layers::All);
    assert!(matches!(missing, Err(LoadError::Weights(_))));
}

#[test]
fn kv_is_bounded_on_any_machine() {
    assert!(kv_tokens_default(0) > kv_tokens_default(u64::MAX));
    assert_eq!(kv_tokens_default(u64::MAX), 8 << 10);
}
