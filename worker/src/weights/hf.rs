//! Hugging Face model directories: `config.json`, one `model.safetensors` or the shards that
//! `model.safetensors.index.json` lists. Files are named by the index but never outside the directory; links are followed,
//! for the hub's cache is made of them.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use shoal_common::ids::Digest;

use super::bytes::{FileBytes, read_small};
use super::check::{self, Entry, Tensors};
use super::error::WeightsError;
use super::hf_config::{HfConfig, MAX_CONFIG};
use super::shape::ModelShape;
use super::tensor::{LayerPart, TensorName};
use super::{ModelFile, hf_tokenizer, safetensors};

/// Largest index of shards in bytes; it has a line per tensor.
const MAX_INDEX: u64 = 8 << 20;
/// Most shards of a model. The largest public ones have under 200.
const MAX_SHARDS: usize = 1024;
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Kept in some old checkpoints though it follows from the settings.
const DERIVED: &str = ".rotary_emb.inv_freq";

/// `model.safetensors.index.json`
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// Opens a directory.
pub(super) fn open(directory: &Path) -> Result<ModelFile, WeightsError> {
    let unknown = || WeightsError::UnknownFormat { path: directory.to_owned() };
    let config_bytes = read_small(&directory.join(CONFIG), MAX_CONFIG)?.ok_or_else(unknown)?;
    let config: HfConfig = parse(&directory.join(CONFIG), &config_bytes)?;
    let names = weight_files(directory)?;
    let mut files = Vec::new();
    let mut found = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        let path = directory.join(name);
        let file = FileBytes::read(&path)?;
        for (tensor, entry) in safetensors::entries(&path, file.as_slice(), index)? {
            if found.insert(tensor.clone(), entry).is_some() {
                return Err(WeightsError::Unsupported(format!("has the tensor {tensor:?} in two files")));
            }
        }
        files.push(file);
    }
    let mut tensors = by_name(found)?;
    let shape = config.shape(&tensors)?;
    shape.check()?;
    drop_tied_head(&shape, &mut tensors);
    check::tensors(&shape, &tensors)?;
    let bundle = hf_tokenizer::bundle(directory, &config, shape.vocab)?;
    let digest = digest(&config_bytes, &names, &files);
    Ok(ModelFile::new(shape, bundle, digest, tensors, files))
}

/// Parses a JSON file's content.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, content: &[u8]) -> Result<T, WeightsError> {
    serde_json::from_slice(content).map_err(|source| WeightsError::Json { path: path.to_owned(), source })
}

/// Names of the files that hold the weights, sorted.
fn weight_files(directory: &Path) -> Result<Vec<String>, WeightsError> {
    let path = directory.join(INDEX);
    let Some(content) = read_small(&path, MAX_INDEX)? else { return Ok(vec![SINGLE.to_owned()]) };
    let index: Index = parse(&path, &content)?;
    let names: BTreeSet<_> = index.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|name| !is_plain_name(name)) {
        return Err(WeightsError::Unsupported(format!("has its weights in {name:?}")));
    }
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(WeightsError::Unsupported(format!("has {} weight files", names.len())));
    }
    Ok(names.into_iter().collect())
}

/// Whether a name from the index stays inside the directory: no separator of any system, no drive, nothing hidden.
fn is_plain_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.ends_with(".safetensors") && !name.starts_with('.') && name.len() <= 255 && name.bytes().all(allowed)
}

/// Finds out which tensor is which. One that this build has no use for is an error: the model would be computed
/// without it.
fn by_name(found: HashMap<String, Entry>) -> Result<Tensors, WeightsError> {
    let useful = found.into_iter().filter(|(text, _)| !text.ends_with(DERIVED));
    let named = useful.map(|(text, entry)| match tensor_name(&text) {
        Some(name) => Ok((name, entry)),
        None => Err(WeightsError::Unsupported(format!("has the tensor {text:?}"))),
    });
    named.collect()
}

fn tensor_name(text: &str) -> Option<TensorName> {
    let name = match text {
        "model.embed_tokens.weight" => TensorName::Embedding,
        "lm_head.weight" => TensorName::Output,
        "model.norm.weight" => TensorName::FinalNorm,
        _ => {
            let (layer, part) = text.strip_prefix("model.layers.")?.split_once('.')?;
            let part = LayerPart::ALL.into_iter().find(|known| known.hf_name() == part)?;
            TensorName::Layer { layer: layer.parse().ok()?, part }
        }
    };
    // A layer number with a sign or leading zeros would be a second name for one tensor.
    (name.to_string() == text).then_some(name)
}

/// Some checkpoints store the output head though the settings tie it to the embedding: the settings decide.
fn drop_tied_head(shape: &ModelShape, tensors: &mut Tensors) {
    if shape.tied {
        tensors.remove(&TensorName::Output);
    }
}

/// BLAKE3 of the settings and of each weight file, each after its name and its length.
fn digest(config: &[u8], names: &[String], files: &[FileBytes]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let weights = names.iter().map(String::as_str).zip(files.iter().map(FileBytes::as_slice));
    for (name, content) in [(CONFIG, config)].into_iter().chain(weights) {
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hasher.update(&(content.len() as u64).to_le_bytes()).update(content);
    }
    Digest(*hasher.finalize().as_bytes())
}
