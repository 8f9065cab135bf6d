//! `config.json` of a Hugging Face checkpoint, as far as the llama family uses it, turned into a [`ModelShape`]. Settings
//! that would change the arithmetic in ways this build does not know are refused by name.

use serde::Deserialize;

use super::check::Tensors;
use super::error::WeightsError;
use super::shape::{ModelShape, RopeConfig, RopeScaling};
use super::tensor::{LayerPart, TensorName};

/// Largest `config.json` in bytes; they have a few kilobytes.
pub(super) const MAX_CONFIG: u64 = 1 << 20;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct HfConfig {
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Up to transformers 4.
    rope_scaling: Option<HfRope>,
    /// From transformers 5 on.
    rope_parameters: Option<HfRope>,
    sliding_window: Option<usize>,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    mlp_bias: bool,
    quantization_config: Option<serde::de::IgnoredAny>,
    /// Also in `generation_config.json`.
    #[serde(flatten)]
    pub(super) special: SpecialIds,
}

/// Special tokens by id, in `config.json` and `generation_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct SpecialIds {
    pub(super) bos_token_id: Option<OneOrMany>,
    pub(super) eos_token_id: Option<OneOrMany>,
}

/// A token id or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// Rotary settings.
#[derive(Debug, Deserialize)]
struct HfRope {
    rope_type: Option<String>,
    /// The older name of `rope_type`; many files have both.
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

impl HfConfig {
    /// The model's dimensions and settings, not yet checked against each other.
    pub(super) fn shape(&self, tensors: &Tensors) -> Result<ModelShape, WeightsError> {
        let architecture = self.architecture()?;
        self.refuse_foreign_settings()?;
        let head_dim = self.head_dim.or_else(|| self.hidden_size.checked_div(self.num_attention_heads)).unwrap_or(0);
        let bias = TensorName::Layer { layer: 0, part: LayerPart::QBias };
        Ok(ModelShape {
            architecture,
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            vocab: self.vocab_size,
            // Within the window, sliding attention is full attention; beyond it we would compute another model.
            context: self.sliding_window.map_or(self.max_position_embeddings, |w| w.min(self.max_position_embeddings)),
            rms_eps: self.rms_norm_eps as f32,
            rope: self.rope(head_dim)?,
            tied: self.tie_word_embeddings,
            qkv_bias: tensors.contains_key(&bias),
        })
    }

    fn architecture(&self) -> Result<String, WeightsError> {
        match &self.architectures[..] {
            [name] if matches!(&name[..], "LlamaForCausalLM" | "MistralForCausalLM") => Ok(name.clone()),
            names => Err(WeightsError::Unsupported(format!("has the architecture {names:?}"))),
        }
    }

    fn refuse_foreign_settings(&self) -> Result<(), WeightsError> {
        let refuse = |what: String| Err(WeightsError::Unsupported(format!("has the setting {what}")));
        match self.hidden_act.as_deref() {
            None | Some("silu") => {}
            Some(other) => return refuse(format!("hidden_act {other:?}")),
        }
        if self.mlp_bias {
            return refuse("mlp_bias".to_owned());
        }
        if self.quantization_config.is_some() {
            return refuse("quantization_config".to_owned());
        }
        match self.partial_rotary_factor {
            Some(part) if part != 1.0 => refuse(format!("partial_rotary_factor {part}")),
            _ => Ok(()),
        }
    }

    fn rope(&self, dims: usize) -> Result<RopeConfig, WeightsError> {
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let scaling = rope.map_or(Ok(RopeScaling::None), HfRope::scaling)?;
        Ok(RopeConfig { theta, dims, scaling })
    }
}

impl HfRope {
    fn scaling(&self) -> Result<RopeScaling, WeightsError> {
        match self.rope_type.as_deref().or(self.old_rope_type.as_deref()) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: required("factor", self.factor)? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: required("factor", self.factor)?,
                low_freq_factor: required("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: required("high_freq_factor", self.high_freq_factor)?,
                original_context: required("original_max_position_embeddings", self.original_max_position_embeddings)?,
            }),
            Some(other) => Err(WeightsError::Unsupported(format!("has the rope scaling {other:?}"))),
        }
    }
}

fn required<T>(key: &str, value: Option<T>) -> Result<T, WeightsError> {
    value.ok_or_else(|| WeightsError::Setting { key: format!("rope {key}"), expected: "a number" })
}
