//! What a GGUF file's metadata says about the model, and which of its tensors is which.

use std::collections::HashMap;

use super::header::{Header, TensorInfo};
use super::value::Value;
use crate::weights::check::{Entry, Tensors};
use crate::weights::error::WeightsError;
use crate::weights::family::Family;
use crate::weights::shape::{ModelShape, RopeConfig, RopeScaling};
use crate::weights::tensor::{LayerPart, RowOrder, TensorName, TensorType};

/// Divisors of the rotary frequencies, `[head_dim / 2]`: settings in the shape of a tensor.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Settings of other models that would change the arithmetic, had they an effect here.
const FOREIGN_SETTINGS: [&str; 15] = [
    "attention.causal",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.output_scale",
    "attention.scale",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.dimension_sections",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_log_multiplier",
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

/// The settings of a file's architecture, whose keys begin with its name.
pub(super) struct Settings<'h, 'a> {
    header: &'h Header<'a>,
    file: &'h [u8],
    architecture: &'a str,
    family: Family,
}

impl<'h, 'a> Settings<'h, 'a> {
    /// The settings of a file whose content is `file`. Refuses architectures that are not computed here.
    pub(super) fn of(header: &'h Header<'a>, file: &'h [u8]) -> Result<Self, WeightsError> {
        let architecture = header.required("general.architecture", "UTF-8 text", Value::text)?;
        let family = Family::of_gguf_architecture(architecture)
            .ok_or_else(|| WeightsError::Unsupported(format!("has the architecture {architecture:?}")))?;
        Ok(Self { header, file, architecture, family })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn size(&self, name: &str) -> Result<usize, WeightsError> {
        self.header.size(&self.key(name))
    }

    fn optional_size(&self, name: &str) -> Result<Option<usize>, WeightsError> {
        self.header.optional_size(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, WeightsError> {
        self.header.optional(&self.key(name), "a number", Value::float)
    }

    /// The model's dimensions and settings, not yet checked against each other.
    pub(super) fn shape(&self) -> Result<ModelShape, WeightsError> {
        self.refuse_foreign_settings()?;
        let tensor = |name| self.header.tensor(name);
        let heads = self.size("attention.head_count")?;
        let hidden = self.size("embedding_length")?;
        let head_dim = self.head_dim(hidden, heads)?;
        let embedding = tensor("token_embd.weight").ok_or(WeightsError::MissingTensor(TensorName::Embedding))?;
        let eps = self.key("attention.layer_norm_rms_epsilon");
        Ok(ModelShape {
            architecture: self.architecture.to_owned(),
            layers: self.size("block_count")?,
            hidden,
            intermediate: self.size("feed_forward_length")?,
            heads,
            kv_heads: self.optional_size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            vocab: embedding.shape().map_or(0, |[rows, _]| rows),
            context: self.context()?,
            rms_eps: self.header.required(&eps, "a number", Value::float)? as f32,
            rope: self.rope(head_dim)?,
            tied: tensor("output.weight").is_none(),
            qkv_bias: self.family.qkv_bias(tensor("blk.0.attn_q.bias").is_some()),
            qk_norm: self.family.qk_norm(),
        })
    }

    fn refuse_foreign_settings(&self) -> Result<(), WeightsError> {
        let experts = self.optional_size("expert_count")?.unwrap_or(0);
        if experts > 0 {
            return Err(WeightsError::Unsupported(format!("is a mixture of {experts} experts")));
        }
        let mut keys = FOREIGN_SETTINGS.iter().map(|name| self.key(name));
        match keys.find(|key| self.header.metadata.contains_key(key.as_str())) {
            Some(key) => Err(WeightsError::Unsupported(format!("has the setting {key}"))),
            None => Ok(()),
        }
    }

    /// Longest sequence. Within a sliding window attention is full attention; beyond it we would compute another model.
    fn context(&self) -> Result<usize, WeightsError> {
        let context = self.size("context_length")?;
        let window = self.optional_size("attention.sliding_window")?.filter(|&window| window > 0);
        Ok(window.map_or(context, |window| context.min(window)))
    }

    /// Width of a head: said outright, or an equal share of the hidden size.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, WeightsError> {
        let key_length = self.optional_size("attention.key_length")?;
        let value_length = self.optional_size("attention.value_length")?;
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

    fn rope(&self, head_dim: usize) -> Result<RopeConfig, WeightsError> {
        Ok(RopeConfig {
            theta: self.number("rope.freq_base")?.unwrap_or(10_000.0),
            dims: self.optional_size("rope.dimension_count")?.unwrap_or(head_dim),
            scaling: self.rope_scaling()?,
        })
    }

    fn rope_scaling(&self) -> Result<RopeScaling, WeightsError> {
        let kind = self.header.text(&self.key("rope.scaling.type"))?;
        let factor = self.number("rope.scaling.factor")?;
        // Written by old converters: a linear factor under another name.
        let legacy = self.number("rope.scale_linear")?;
        let linear = match (kind, factor.or(legacy)) {
            (None | Some("none"), None) | (Some("none"), Some(_)) => RopeScaling::None,
            (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
            (Some(other), _) => return Err(WeightsError::Unsupported(format!("has the rope scaling {other:?}"))),
        };
        let Some(divisors) = self.header.tensor(ROPE_DIVISORS) else { return Ok(linear) };
        if linear != RopeScaling::None || divisors.dtype != TensorType::F32 {
            return Err(WeightsError::Unsupported(
                "has rope divisors that are not F32, or two rope scalings".to_owned(),
            ));
        }
        let values = self.file[divisors.range.clone()].as_chunks().0.iter().map(|&le| f32::from_le_bytes(le));
        Ok(RopeScaling::Divisors(values.collect()))
    }

    /// Which tensor is which. A tensor this build has no use for is an error: the model would be computed without it.
    pub(super) fn tensors(&self, shape: &ModelShape) -> Result<Tensors, WeightsError> {
        let mut tensors = HashMap::new();
        for info in self.header.tensors.iter().filter(|info| !self.is_setting(info)) {
            let unknown = || WeightsError::Unsupported(format!("has the tensor {:?}", info.name));
            let name = tensor_name(info.name).ok_or_else(unknown)?;
            let shape_found = info.shape().ok_or_else(unknown)?;
            let order = match name {
                TensorName::Layer { part, .. } => self.family.gguf_row_order(part, shape.head_dim),
                _ => RowOrder::Plain,
            };
            let entry = Entry { file: 0, range: info.range.clone(), dtype: info.dtype, shape: shape_found, order };
            tensors.insert(name, entry);
        }
        Ok(tensors)
    }

    /// Whether a tensor is no weight. llama.cpp reads the divisors for the llama architecture only.
    fn is_setting(&self, info: &TensorInfo<'_>) -> bool {
        self.family == Family::Llama && info.name == ROPE_DIVISORS
    }
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
        "attn_q_norm.weight" => LayerPart::QNorm,
        "attn_k_norm.weight" => LayerPart::KNorm,
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
