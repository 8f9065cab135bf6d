//! `config.json` of a Hugging Face checkpoint, as far as the families here use it, turned into a [`ModelShape`]. Settings
//! that would change the arithmetic in ways this build does not know are refused by name.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::check::Tensors;
use super::error::WeightsError;
use super::family::Family;
use super::shape::{ModelShape, RopeConfig, RopeScaling};
use super::tensor::{LayerPart, TensorName};

/// Largest `config.json` in bytes; they have a few kilobytes.
pub(super) const MAX_CONFIG: u64 = 1 << 20;
/// Layers before this one keep full attention where a Qwen file does not say otherwise.
const MAX_WINDOW_LAYERS: usize = 28;
/// Kinds of layers in `layer_types`.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

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
    /// Qwen: without it there is no window, whatever `sliding_window` says.
    #[serde(default)]
    use_sliding_window: bool,
    /// Qwen: the first layers, which do not slide.
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: bool,
    quantization_config: Option<IgnoredAny>,
    dual_chunk_attention_config: Option<IgnoredAny>,
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
#[derive(Debug, PartialEq, Deserialize)]
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
    partial_rotary_factor: Option<f64>,
    /// Members of other kinds of scaling; objects where each kind of layer has settings of its own.
    #[serde(flatten)]
    others: HashMap<String, Value>,
}

impl HfConfig {
    /// The model's dimensions and settings, not yet checked against each other.
    pub(super) fn shape(&self, tensors: &Tensors) -> Result<ModelShape, WeightsError> {
        let (architecture, family) = self.architecture()?;
        self.refuse_foreign_settings(family)?;
        let head_dim = self.head_dim(family)?;
        let bias = tensors.contains_key(&TensorName::Layer { layer: 0, part: LayerPart::QBias });
        Ok(ModelShape {
            architecture: architecture.to_owned(),
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            vocab: self.vocab_size,
            // Within the window, sliding attention is full attention; beyond it we would compute another model.
            context: self.window(family)?.map_or(self.max_position_embeddings, |w| w.min(self.max_position_embeddings)),
            rms_eps: self.rms_norm_eps as f32,
            rope: self.rope(head_dim)?,
            tied: self.tie_word_embeddings,
            // Biases that the settings deny are a surplus: the model's own class would leave them out.
            qkv_bias: family.qkv_bias(bias && self.attention_bias != Some(false)),
            qk_norm: family.qk_norm(),
        })
    }

    fn architecture(&self) -> Result<(&str, Family), WeightsError> {
        let known = match &self.architectures[..] {
            [name] => Family::of_hf_class(name).map(|family| (&name[..], family)),
            _ => None,
        };
        known.ok_or_else(|| WeightsError::Unsupported(format!("has the architecture {:?}", self.architectures)))
    }

    /// Width of a head: said outright, or an equal share of the hidden size. Qwen 3's is no share, and always said.
    fn head_dim(&self, family: Family) -> Result<usize, WeightsError> {
        match (self.head_dim, family) {
            (Some(said), _) => Ok(said),
            (None, Family::Qwen3) => Err(missing("head_dim", "a whole number")),
            (None, _) => Ok(self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0)),
        }
    }

    /// The sliding window, where a layer has one.
    fn window(&self, family: Family) -> Result<Option<usize>, WeightsError> {
        let listed = self.layer_types.as_ref().map(|types| types.iter().any(|kind| kind == SLIDING));
        let first = self.max_window_layers.unwrap_or(MAX_WINDOW_LAYERS);
        let slides = match family {
            Family::Llama | Family::Mistral => self.sliding_window.is_some() || listed == Some(true),
            Family::Qwen2 | Family::Qwen3 => {
                listed.unwrap_or(self.use_sliding_window && first < self.num_hidden_layers)
            }
        };
        match self.sliding_window.filter(|_| slides) {
            None if slides => Err(missing("sliding_window", "a whole number")),
            window => Ok(window),
        }
    }

    fn refuse_foreign_settings(&self, family: Family) -> Result<(), WeightsError> {
        let refuse = |what: String| Err(WeightsError::Unsupported(format!("has the setting {what}")));
        match self.hidden_act.as_deref() {
            None | Some("silu") => {}
            Some(other) => return refuse(format!("hidden_act {other:?}")),
        }
        let set = [
            // In this class it means a bias of the output projection too.
            ("attention_bias", family == Family::Qwen3 && self.attention_bias == Some(true)),
            ("mlp_bias", self.mlp_bias),
            ("quantization_config", self.quantization_config.is_some()),
            ("dual_chunk_attention_config", self.dual_chunk_attention_config.is_some()),
        ];
        if let Some((name, _)) = set.iter().find(|(_, set)| *set) {
            return refuse((*name).to_owned());
        }
        if let Some(part) = self.partial_rotary_factor.filter(|&part| part != 1.0) {
            return refuse(format!("partial_rotary_factor {part}"));
        }
        let kinds = self.layer_types.as_deref().unwrap_or_default();
        match kinds.iter().find(|kind| ![FULL, SLIDING].contains(&&kind[..])) {
            Some(kind) => refuse(format!("layer_types {kind:?}")),
            None => Ok(()),
        }
    }

    fn rope(&self, dims: usize) -> Result<RopeConfig, WeightsError> {
        // The older name and the newer one: files that both versions of the library read have both, and each what it knows.
        let named: Vec<&HfRope> = self.rope_scaling.iter().chain(&self.rope_parameters).collect();
        let scalings = named.iter().map(|rope| rope.scaling()).collect::<Result<Vec<_>, _>>()?;
        let thetas: Vec<f64> = named.iter().filter_map(|rope| rope.rope_theta).collect();
        if scalings.windows(2).any(|both| both[0] != both[1]) || thetas.windows(2).any(|both| both[0] != both[1]) {
            return Err(WeightsError::Unsupported("has rope_scaling and other rope_parameters".to_owned()));
        }
        let theta = thetas.first().copied().or(self.rope_theta).unwrap_or(10_000.0);
        let scaling = scalings.into_iter().next().unwrap_or(RopeScaling::None);
        Ok(RopeConfig { theta, dims, scaling })
    }
}

impl HfRope {
    fn scaling(&self) -> Result<RopeScaling, WeightsError> {
        if let Some(part) = self.partial_rotary_factor.filter(|&part| part != 1.0) {
            return Err(WeightsError::Unsupported(format!("has the setting partial_rotary_factor {part}")));
        }
        if self.others.values().any(Value::is_object) {
            return Err(WeightsError::Unsupported("has other rope settings for each kind of layer".to_owned()));
        }
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
    value.ok_or_else(|| missing(&format!("rope {key}"), "a number"))
}

fn missing(key: &str, expected: &'static str) -> WeightsError {
    WeightsError::Setting { key: key.to_owned(), expected }
}
