//! What a GGUF file's metadata says about the model, and which of its tensors is which. Only the llama architecture,
//! which the llama.cpp converter also gives to Mistral models.

use std::collections::HashMap;

use super::header::{Header, TensorInfo};
use super::value::Value;
use crate::weights::check::{Entry, Tensors};
use crate::weights::error::WeightsError;
use crate::weights::shape::{ModelShape, RopeConfig, RopeScaling};
use crate::weights::tensor::{LayerPart, RowOrder, TensorName, TensorType};

/// Divisors of the rotary frequencies, `[head_dim / 2]`: settings in the shape of a tensor.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Settings of other models that would change the arithmetic, had they an effect here.
const FOREIGN_SETTINGS: [&str; 7] = [
    "attention.causal",
    "attention.scale",
    "attention.temperature_length",
    "embedding_scale",
    "logit_scale",
    "residual_scale",
    "rope.scaling.attn_factor",
];

impl<'a> Header<'a> {
    /// A metadata value, or `None` where the file has none; an error where it has one of the wrong type.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        let wrong = || WeightsError::Setting { key: key.to_owned(), expected };
        self.metadata.get(key).map(|value| read(value).ok_or_else(wrong)).transpose()
    }

    /// A metadata value that must be there.
    pub(super) fn required<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&Value<'a>) -> Option<T>,
    ) -> Result<T, WeightsError> {
        let missing = || WeightsError::Setting { key: key.to_owned(), expected };
        self.optional(key, expected, read)?.ok_or_else(missing)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, WeightsError> {
        self.optional(key, "UTF-8 text", Value::text)
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        self.optional(key, "a boolean", Value::boolean)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, WeightsError> {
        self.optional(key, "a whole number", |value| value.unsigned().and_then(|size| usize::try_from(size).ok()))
    }

    fn size(&self, key: &str) -> Result<usize, WeightsError> {
        let missing = || WeightsError::Setting { key: key.to_owned(), expected: "a whole number" };
        self.optional_size(key)?.ok_or_else(missing)
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// The model's dimensions and settings, not yet checked against each other.
pub(super) fn shape(header: &Header<'_>, file: &[u8]) -> Result<ModelShape, WeightsError> {
    let architecture = header.required("general.architecture", "UTF-8 text", Value::text)?;
    if architecture != "llama" {
        return Err(WeightsError::Unsupported(format!("has the architecture {architecture:?}")));
    }
    refuse_foreign_settings(header)?;
    let heads = header.size("llama.attention.head_count")?;
    let hidden = header.size("llama.embedding_length")?;
    let head_dim = head_dim(header, hidden, heads)?;
    let embedding = header.tensor("token_embd.weight").ok_or(WeightsError::MissingTensor(TensorName::Embedding))?;
    Ok(ModelShape {
        architecture: architecture.to_owned(),
        layers: header.size("llama.block_count")?,
        hidden,
        intermediate: header.size("llama.feed_forward_length")?,
        heads,
        kv_heads: header.optional_size("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocab: embedding.shape().map_or(0, |[rows, _]| rows),
        context: context(header)?,
        rms_eps: header.required("llama.attention.layer_norm_rms_epsilon", "a number", Value::float)? as f32,
        rope: rope(header, file, head_dim)?,
        tied: header.tensor("output.weight").is_none(),
        qkv_bias: header.tensor("blk.0.attn_q.bias").is_some(),
    })
}

fn refuse_foreign_settings(header: &Header<'_>) -> Result<(), WeightsError> {
    let experts = header.optional_size("llama.expert_count")?.unwrap_or(0);
    if experts > 0 {
        return Err(WeightsError::Unsupported(format!("is a mixture of {experts} experts")));
    }
    match FOREIGN_SETTINGS.iter().find(|key| header.metadata.contains_key(format!("llama.{key}").as_str())) {
        Some(key) => Err(WeightsError::Unsupported(format!("has the setting llama.{key}"))),
        None => Ok(()),
    }
}

/// Longest sequence. Within a sliding window attention is full attention; beyond it we would compute another model.
fn context(header: &Header<'_>) -> Result<usize, WeightsError> {
    let context = header.size("llama.context_length")?;
    let window = header.optional_size("llama.attention.sliding_window")?.filter(|&window| window > 0);
    Ok(window.map_or(context, |window| context.min(window)))
}

/// Width of a head: said outright, or an equal share of the hidden size.
fn head_dim(header: &Header<'_>, hidden: usize, heads: usize) -> Result<usize, WeightsError> {
    let key_length = header.optional_size("llama.attention.key_length")?;
    let value_length = header.optional_size("llama.attention.value_length")?;
    let dimension =
        |value: usize, rule| WeightsError::Dimension { what: "head dimension", value: value.to_string(), rule };
    match (key_length, value_length) {
        (Some(key), Some(value)) if key != value => Err(dimension(value, "the same for keys and values")),
        (Some(same), _) | (None, Some(same)) => Ok(same),
        (None, None) => match hidden.checked_rem(heads) {
            Some(0) => Ok(hidden / heads),
            _ => Err(dimension(hidden, "the hidden size divided by the head count")),
        },
    }
}

fn rope(header: &Header<'_>, file: &[u8], head_dim: usize) -> Result<RopeConfig, WeightsError> {
    Ok(RopeConfig {
        theta: header.optional("llama.rope.freq_base", "a number", Value::float)?.unwrap_or(10_000.0),
        dims: header.optional_size("llama.rope.dimension_count")?.unwrap_or(head_dim),
        scaling: rope_scaling(header, file)?,
    })
}

fn rope_scaling(header: &Header<'_>, file: &[u8]) -> Result<RopeScaling, WeightsError> {
    let kind = header.text("llama.rope.scaling.type")?;
    let factor = header.optional("llama.rope.scaling.factor", "a number", Value::float)?;
    // Written by old converters: a linear factor under another name.
    let legacy = header.optional("llama.rope.scale_linear", "a number", Value::float)?;
    let linear = match (kind, factor.or(legacy)) {
        (None | Some("none"), None) | (Some("none"), Some(_)) => RopeScaling::None,
        (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
        (Some(other), _) => return Err(WeightsError::Unsupported(format!("has the rope scaling {other:?}"))),
    };
    let Some(divisors) = header.tensor(ROPE_DIVISORS) else { return Ok(linear) };
    if linear != RopeScaling::None || divisors.dtype != TensorType::F32 {
        return Err(WeightsError::Unsupported("has rope divisors that are not F32, or two rope scalings".to_owned()));
    }
    let values = file[divisors.range.clone()].as_chunks().0.iter().map(|&le| f32::from_le_bytes(le));
    Ok(RopeScaling::Divisors(values.collect()))
}

/// Which tensor is which. A tensor this build has no use for is an error: the model would be computed without it.
pub(super) fn tensors(header: &Header<'_>, shape: &ModelShape) -> Result<Tensors, WeightsError> {
    let mut tensors = HashMap::new();
    for info in header.tensors.iter().filter(|info| info.name != ROPE_DIVISORS) {
        let unknown = || WeightsError::Unsupported(format!("has the tensor {:?}", info.name));
        let name = tensor_name(info.name).ok_or_else(unknown)?;
        let shape_found = info.shape().ok_or_else(unknown)?;
        let order = match name {
            TensorName::Layer { part: LayerPart::Q | LayerPart::K | LayerPart::QBias | LayerPart::KBias, .. } => {
                RowOrder::Interleaved { head_dim: shape.head_dim }
            }
            _ => RowOrder::Plain,
        };
        let entry = Entry { file: 0, range: info.range.clone(), dtype: info.dtype, shape: shape_found, order };
        tensors.insert(name, entry);
    }
    Ok(tensors)
}

fn tensor_name(name: &str) -> Option<TensorName> {
    match name {
        "token_embd.weight" => return Some(TensorName::Embedding),
        "output.weight" => return Some(TensorName::Output),
        "output_norm.weight" => return Some(TensorName::FinalNorm),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let part = match part {
        "attn_norm.weight" => LayerPart::AttnNorm,
        "attn_q.weight" => LayerPart::Q,
        "attn_k.weight" => LayerPart::K,
        "attn_v.weight" => LayerPart::V,
        "attn_output.weight" => LayerPart::O,
        "attn_q.bias" => LayerPart::QBias,
        "attn_k.bias" => LayerPart::KBias,
        "attn_v.bias" => LayerPart::VBias,
        "ffn_norm.weight" => LayerPart::FfnNorm,
        "ffn_gate.weight" => LayerPart::Gate,
        "ffn_up.weight" => LayerPart::Up,
        "ffn_down.weight" => LayerPart::Down,
        _ => return None,
    };
    Some(TensorName::Layer { layer: canonical_number(layer)?, part })
}

/// A layer number without sign or leading zeros, so that no two names mean one layer.
fn canonical_number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}

impl TensorInfo<'_> {
    /// `[rows, cols]` with vectors as `[length, 1]`; `None` for tensors of more dimensions.
    fn shape(&self) -> Option<[usize; 2]> {
        let size = |dim: u64| usize::try_from(dim).ok();
        match *self.dims {
            [length] => Some([size(length)?, 1]),
            [rows, cols] => Some([size(rows)?, size(cols)?]),
            _ => None,
        }
    }
}
