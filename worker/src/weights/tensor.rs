//! Names, element types and views of a model's tensors, the same for every file format, and their expansion to f32.
//! Views are made of ranges that the format's reader has checked; nothing here trusts a file.

use std::borrow::Cow;
use std::fmt;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::error::WeightsError;

/// A tensor of a model: those of a llama, and what the other families add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorName {
    /// Token embedding, `[vocab, hidden]`.
    Embedding,
    /// Output head, `[vocab, hidden]`; the embedding where the two are tied.
    Output,
    /// Norm before the output head, `[hidden, 1]`.
    FinalNorm,
    /// Part of a layer.
    Layer {
        /// Which layer, from 0.
        layer: usize,
        /// Which part.
        part: LayerPart,
    },
}

/// A tensor of one layer. Linear weights are `[outputs, inputs]`, vectors `[length, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerPart {
    /// Norm before attention.
    AttnNorm,
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Output projection of attention.
    O,
    /// Bias of the query projection.
    QBias,
    /// Bias of the key projection.
    KBias,
    /// Bias of the value projection.
    VBias,
    /// Norm of each head's queries before rotation, `[head_dim, 1]`.
    QNorm,
    /// Norm of each head's keys before rotation, `[head_dim, 1]`.
    KNorm,
    /// Norm before the feed-forward network.
    FfnNorm,
    /// Gate projection.
    Gate,
    /// Up projection.
    Up,
    /// Down projection.
    Down,
}

impl LayerPart {
    /// Every part.
    pub const ALL: [Self; 14] = [
        Self::AttnNorm,
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::QBias,
        Self::KBias,
        Self::VBias,
        Self::QNorm,
        Self::KNorm,
        Self::FfnNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Whether the part is a bias, which only some models have.
    pub fn is_bias(self) -> bool {
        matches!(self, Self::QBias | Self::KBias | Self::VBias)
    }

    /// Whether the part is a norm of queries or keys, which only some models have.
    pub fn is_head_norm(self) -> bool {
        matches!(self, Self::QNorm | Self::KNorm)
    }

    /// Whether the part is the weight of a linear layer.
    pub fn is_linear(self) -> bool {
        !self.is_bias() && !self.is_head_norm() && !matches!(self, Self::AttnNorm | Self::FfnNorm)
    }

    /// The name within a layer in a Hugging Face checkpoint.
    pub(super) fn hf_name(self) -> &'static str {
        match self {
            Self::AttnNorm => "input_layernorm.weight",
            Self::Q => "self_attn.q_proj.weight",
            Self::K => "self_attn.k_proj.weight",
            Self::V => "self_attn.v_proj.weight",
            Self::O => "self_attn.o_proj.weight",
            Self::QBias => "self_attn.q_proj.bias",
            Self::KBias => "self_attn.k_proj.bias",
            Self::VBias => "self_attn.v_proj.bias",
            Self::QNorm => "self_attn.q_norm.weight",
            Self::KNorm => "self_attn.k_norm.weight",
            Self::FfnNorm => "post_attention_layernorm.weight",
            Self::Gate => "mlp.gate_proj.weight",
            Self::Up => "mlp.up_proj.weight",
            Self::Down => "mlp.down_proj.weight",
        }
    }
}

impl TensorName {
    /// Whether the tensor is a vector (a norm or a bias) and not a matrix.
    pub fn is_vector(self) -> bool {
        match self {
            Self::Embedding | Self::Output => false,
            Self::FinalNorm => true,
            Self::Layer { part, .. } => !part.is_linear(),
        }
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("model.embed_tokens.weight"),
            Self::Output => f.write_str("lm_head.weight"),
            Self::FinalNorm => f.write_str("model.norm.weight"),
            Self::Layer { layer, part } => write!(f, "model.layers.{layer}.{}", part.hf_name()),
        }
    }
}

/// How the elements of a tensor are stored: the types this build computes with, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "the names of ggml")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl TensorType {
    /// The type with this number in a GGUF file.
    pub(super) fn from_gguf(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// The same type in candle's words.
    pub fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2_K => GgmlDType::Q2K,
            Self::Q3_K => GgmlDType::Q3K,
            Self::Q4_K => GgmlDType::Q4K,
            Self::Q5_K => GgmlDType::Q5K,
            Self::Q6_K => GgmlDType::Q6K,
        }
    }

    /// Elements per block; 1 for the float types.
    pub fn block_elements(self) -> usize {
        self.ggml().block_size()
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.ggml().type_size()
    }

    /// Whether this is a float type, without blocks.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// In which order a file holds the rows of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As the Hugging Face checkpoint has them.
    Plain,
    /// The rows of each head interleaved, as the llama.cpp converter writes q and k of the llama architecture: element
    /// `i` and element `i + head_dim / 2` of a head are neighbours.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Where the file holds the row that is `row`-th in the Hugging Face order.
    pub fn stored_row(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + (within % half) * 2 + within / half
            }
        }
    }
}

/// The stored bytes of a tensor.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: TensorType,
    /// `[rows, cols]`; a vector is `[length, 1]`.
    pub shape: [usize; 2],
    /// Order of the rows in `bytes`. [`TensorView::row`] hides it.
    pub order: RowOrder,
    /// All rows in the file's order, little-endian. Blocks of the quantised types are aligned to 8.
    pub bytes: &'a [u8],
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorView")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl<'a> TensorView<'a> {
    /// Bytes of row `row` of the Hugging Face order.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let row_bytes = self.bytes.len() / self.shape[0];
        let stored = self.order.stored_row(row);
        &self.bytes[stored * row_bytes..(stored + 1) * row_bytes]
    }

    /// The values as f32, row-major, rows in the Hugging Face order: exactly what ggml's dequantisers give.
    pub(super) fn to_f32(self, name: TensorName) -> Result<Vec<f32>, WeightsError> {
        let stored = self.stored_f32(name)?;
        if self.order == RowOrder::Plain {
            return Ok(stored);
        }
        let [rows, cols] = self.shape;
        let mut ordered = Vec::with_capacity(stored.len());
        for row in 0..rows {
            let from = self.order.stored_row(row) * cols;
            ordered.extend_from_slice(&stored[from..from + cols]);
        }
        Ok(ordered)
    }

    fn stored_f32(&self, name: TensorName) -> Result<Vec<f32>, WeightsError> {
        match self.dtype {
            TensorType::F32 => Ok(self.bytes.as_chunks().0.iter().map(|&le| f32::from_le_bytes(le)).collect()),
            TensorType::F16 => Ok(self.bytes.as_chunks().0.iter().map(|&le| f16::from_le_bytes(le).to_f32()).collect()),
            TensorType::BF16 => {
                Ok(self.bytes.as_chunks().0.iter().map(|&le| bf16::from_le_bytes(le).to_f32()).collect())
            }
            _ => self.expand_blocks().map_err(|source| WeightsError::Dequantise { name, source }),
        }
    }

    fn expand_blocks(&self) -> candle_core::Result<Vec<f32>> {
        let blocks = self.dtype.ggml().from_data(Cow::Borrowed(self.bytes));
        match blocks.dequantize(self.shape[0] * self.shape[1])? {
            CpuStorage::F32(values) => Ok(values),
            other => candle_core::bail!("dequantised to {other:?} instead of f32"),
        }
    }
}
