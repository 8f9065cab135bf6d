//! What a model is made of: its dimensions and settings, checked once. The readers of each format fill [`ModelShape`];
//! backends believe it.

use shoal_common::adapter::Geometry;

use super::error::WeightsError;
use super::tensor::{LayerPart, TensorName};

/// Bounds of what is believed to be a model. They keep every product of two of them inside 64 bits and every table that
/// is sized by one of them small; the largest public models of these families stay far below.
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 4096;
const MAX_VOCAB: usize = 1 << 22;
const MAX_CONTEXT: usize = 1 << 24;

/// Dimensions and settings of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// The name the file gives to the architecture (`llama`, `Qwen3ForCausalLM`, ...).
    pub architecture: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Rows of the embedding and of the output head.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether each head of q and k goes through an RMS norm before it is rotated.
    pub qk_norm: bool,
}

/// Rotary position embedding over pairs `(i, i + dims / 2)` of each head.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that are rotated: all of them.
    pub dims: usize,
    /// How the frequencies are stretched for a longer context.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies are divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths above `original_context / low` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high` are high frequencies.
        high_freq_factor: f64,
        /// Context the model was first trained with.
        original_context: usize,
    },
    /// Each frequency has its own divisor, `dims / 2` of them: how GGUF files carry Llama 3's scaling.
    Divisors(Vec<f32>),
}

impl RopeConfig {
    /// Radians per position of each rotated pair, `[dims / 2]`. The power is `libm`'s: the same on every platform.
    pub fn frequencies(&self) -> Vec<f64> {
        let plain = |pair: usize| libm::pow(self.theta, -((2 * pair) as f64) / self.dims as f64);
        (0..self.dims / 2).map(|pair| self.scaling.apply(pair, plain(pair))).collect()
    }
}

impl RopeScaling {
    fn apply(&self, pair: usize, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Divisors(ref divisors) => frequency / f64::from(divisors[pair]),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context as f64 * frequency / std::f64::consts::TAU;
                if turns < low_freq_factor {
                    frequency / factor
                } else if turns > high_freq_factor {
                    frequency
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }

    fn check(&self, dims: usize) -> Result<(), WeightsError> {
        let divisor = |value: f64| {
            check("rope scaling factor", value, value.is_finite() && value >= 1e-3, "finite and at least 0.001")
        };
        match *self {
            Self::None => Ok(()),
            Self::Linear { factor } => divisor(factor),
            Self::Divisors(ref divisors) => {
                check("count of rope divisors", divisors.len(), divisors.len() == dims / 2, "half the head dimension")?;
                divisors.iter().try_for_each(|&value| divisor(f64::from(value)))
            }
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context } => {
                divisor(factor)?;
                check("low_freq_factor", low, low.is_finite() && low > 0.0, "positive")?;
                check("high_freq_factor", high, high.is_finite() && high > low, "greater than low_freq_factor")?;
                bounded("original context", original_context, MAX_CONTEXT)
            }
        }
    }
}

impl ModelShape {
    /// Refuses dimensions that contradict each other or leave the bounds above.
    pub(super) fn check(&self) -> Result<(), WeightsError> {
        bounded("layer count", self.layers, MAX_LAYERS)?;
        bounded("hidden size", self.hidden, MAX_WIDTH)?;
        bounded("intermediate size", self.intermediate, MAX_WIDTH)?;
        bounded("head count", self.heads, MAX_HEADS)?;
        bounded("key/value head count", self.kv_heads, MAX_HEADS)?;
        bounded("head dimension", self.head_dim, MAX_WIDTH)?;
        bounded("vocabulary", self.vocab, MAX_VOCAB)?;
        bounded("context", self.context, MAX_CONTEXT)?;
        check(
            "key/value head count",
            self.kv_heads,
            self.heads.is_multiple_of(self.kv_heads),
            "a divisor of the head count",
        )?;
        check("head dimension", self.head_dim, self.head_dim.is_multiple_of(2), "even")?;
        bounded("attention width", self.heads * self.head_dim, MAX_WIDTH)?;
        check("rms epsilon", self.rms_eps, self.rms_eps > 0.0 && self.rms_eps < 1.0, "between 0 and 1")?;
        check("rope theta", self.rope.theta, self.rope.theta.is_finite() && self.rope.theta >= 1.0, "at least 1")?;
        check("rope dimension", self.rope.dims, self.rope.dims == self.head_dim, "the head dimension")?;
        self.rope.scaling.check(self.rope.dims)
    }

    /// Widths of the linear layers. All are within the bounds that were checked.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            layers: self.layers as u32,
            hidden: self.hidden as u32,
            intermediate: self.intermediate as u32,
            queries: (self.heads * self.head_dim) as u32,
            keys: (self.kv_heads * self.head_dim) as u32,
        }
    }

    /// `[rows, cols]` of a tensor.
    pub fn tensor_shape(&self, name: TensorName) -> [usize; 2] {
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match name {
            TensorName::Embedding | TensorName::Output => [self.vocab, self.hidden],
            TensorName::FinalNorm => [self.hidden, 1],
            TensorName::Layer { part, .. } => match part {
                LayerPart::AttnNorm | LayerPart::FfnNorm => [self.hidden, 1],
                LayerPart::Q => [q_width, self.hidden],
                LayerPart::K | LayerPart::V => [kv_width, self.hidden],
                LayerPart::O => [self.hidden, q_width],
                LayerPart::QBias => [q_width, 1],
                LayerPart::KBias | LayerPart::VBias => [kv_width, 1],
                LayerPart::QNorm | LayerPart::KNorm => [self.head_dim, 1],
                LayerPart::Gate | LayerPart::Up => [self.intermediate, self.hidden],
                LayerPart::Down => [self.hidden, self.intermediate],
            },
        }
    }

    /// Every tensor the model must have, in the order of computation. The output head is among them only where it is not
    /// the embedding.
    pub fn tensor_names(&self) -> impl Iterator<Item = TensorName> {
        let has = |part: &LayerPart| (self.qkv_bias || !part.is_bias()) && (self.qk_norm || !part.is_head_norm());
        let parts = LayerPart::ALL.into_iter().filter(has);
        let layers =
            (0..self.layers).flat_map(move |layer| parts.clone().map(move |part| TensorName::Layer { layer, part }));
        let head = (!self.tied).then_some(TensorName::Output);
        [TensorName::Embedding].into_iter().chain(layers).chain([TensorName::FinalNorm]).chain(head)
    }
}

fn bounded(what: &'static str, value: usize, most: usize) -> Result<(), WeightsError> {
    check(what, value, (1..=most).contains(&value), "neither zero nor beyond the largest supported")
}

fn check(what: &'static str, value: impl ToString, holds: bool, rule: &'static str) -> Result<(), WeightsError> {
    if holds { Ok(()) } else { Err(WeightsError::Dimension { what, value: value.to_string(), rule }) }
}
