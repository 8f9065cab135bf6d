//! What the tensors of an adapter are: A and B of a linear layer, by name. Every name must be understood, for a tensor that is
//! left out would be an update that is silently missing.

use std::collections::BTreeMap;

use super::error::{AdapterError, Excerpt, MadeFor};
use super::geometry::{Geometry, Linear};
use super::weights::Tensor;

/// What PEFT puts before the base model's names.
const PREFIX: &str = "base_model.model.";
/// Longest name, in bytes: they have some 70.
const MAX_NAME: usize = 512;

/// A tensor and the name it has in the file.
#[derive(Clone, Debug)]
pub(super) struct Named<'a> {
    pub(super) name: String,
    pub(super) tensor: Tensor<'a>,
}

/// A and B of one linear layer.
#[derive(Clone, Debug)]
pub(super) struct Pair<'a> {
    /// `lora_A`
    pub(super) a: Named<'a>,
    /// `lora_B`
    pub(super) b: Named<'a>,
}

/// Where a tensor belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    layer: u32,
    linear: Linear,
}

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    A,
    B,
}

/// The pairs among `tensors`, by layer and linear layer.
pub(super) fn pairs<'a>(
    tensors: BTreeMap<String, Tensor<'a>>,
    geometry: &Geometry,
    made_for: &MadeFor,
) -> Result<BTreeMap<(u32, Linear), Pair<'a>>, AdapterError> {
    if tensors.is_empty() {
        return Err(AdapterError::NoTensors);
    }
    let mut found: BTreeMap<Place, [Option<Named<'a>>; 2]> = BTreeMap::new();
    for (name, tensor) in tensors {
        let (place, half) = place(&name, geometry, made_for)?;
        let slot = &mut found.entry(place).or_default()[half as usize];
        if slot.is_some() {
            return Err(AdapterError::Twice { tensor: Excerpt::of(&name) });
        }
        *slot = Some(Named { name, tensor });
    }
    found.into_iter().map(|(Place { layer, linear }, halves)| Ok(((layer, linear), pair(halves)?))).collect()
}

fn pair(halves: [Option<Named<'_>>; 2]) -> Result<Pair<'_>, AdapterError> {
    let alone = |one: &Named<'_>, missing| AdapterError::NoPair { tensor: Excerpt::of(&one.name), missing };
    match halves {
        [Some(a), Some(b)] => Ok(Pair { a, b }),
        [Some(a), None] => Err(alone(&a, "lora_B")),
        [None, Some(b)] => Err(alone(&b, "lora_A")),
        [None, None] => unreachable!("an entry is made with one of its halves"),
    }
}

/// `[base_model.model.]model.layers.N.PATH.lora_A[.default].weight`. PEFT itself writes the prefix and leaves out the adapter's
/// name; adapters injected into a model without PEFT's wrapper have no prefix, and a raw state dictionary keeps `default`.
fn place(name: &str, geometry: &Geometry, made_for: &MadeFor) -> Result<(Place, Half), AdapterError> {
    let tensor = Excerpt::of(name);
    if name.len() > MAX_NAME {
        return Err(AdapterError::UnknownTensor { tensor });
    }
    let path = name.strip_prefix(PREFIX).unwrap_or(name);
    let Some((module, half)) = half(path) else { return Err(not_a_half(path, tensor)) };
    if matches!(module.rsplit('.').next(), Some("embed_tokens" | "lm_head")) {
        return Err(AdapterError::TensorNotComputed { tensor, what: "an update of embeddings or output head" });
    }
    let Some((layer, linear)) = linear(module) else {
        return Err(AdapterError::NoSuchModule { tensor, made_for: made_for.clone() });
    };
    if layer >= geometry.layers {
        return Err(AdapterError::NoSuchLayer { tensor, layer, layers: geometry.layers, made_for: made_for.clone() });
    }
    Ok((Place { layer, linear }, half))
}

fn half(path: &str) -> Option<(&str, Half)> {
    let path = path.strip_suffix(".weight")?;
    let path = path.strip_suffix(".default").unwrap_or(path);
    let a = path.strip_suffix(".lora_A").map(|module| (module, Half::A));
    a.or_else(|| path.strip_suffix(".lora_B").map(|module| (module, Half::B)))
}

/// What a tensor is that is neither A nor B.
fn not_a_half(path: &str, tensor: Excerpt) -> AdapterError {
    let of_the_model = path.starts_with("model.") || path.starts_with("lm_head.");
    let what = if path.contains("lora_magnitude_vector") {
        "a magnitude (DoRA)"
    } else if path.contains("lora_embedding_") {
        "an update of an embedding"
    } else if path.ends_with(".bias") {
        "a bias"
    } else if path.contains("lora_") {
        "part of another kind of LoRA"
    } else if of_the_model {
        "in place of the base model's weights"
    } else {
        return AdapterError::UnknownTensor { tensor };
    };
    AdapterError::TensorNotComputed { tensor, what }
}

fn linear(module: &str) -> Option<(u32, Linear)> {
    let (layer, path) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let digits = !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit());
    // As Python writes them, so that a layer has one name.
    if !digits || (layer.len() > 1 && layer.starts_with('0')) {
        return None;
    }
    let linear = Linear::ALL.into_iter().find(|linear| linear.path() == path)?;
    Some((layer.parse().ok()?, linear))
}
