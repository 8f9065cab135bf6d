//! The families of models that this build computes, and in what their layers differ. The readers of both formats ask here
//! what a model of a family must have; backends see the answers in `ModelShape` and know no families.

use super::tensor::{LayerPart, RowOrder};

/// A family: the llama's layers, with or without biases and norms on queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    /// By the class that a `config.json` names. Neither the mixtures of experts nor the multimodal models, which have
    /// classes of their own, are here.
    pub(super) fn of_hf_class(name: &str) -> Option<Self> {
        Some(match name {
            "LlamaForCausalLM" => Self::Llama,
            "MistralForCausalLM" => Self::Mistral,
            "Qwen2ForCausalLM" => Self::Qwen2,
            "Qwen3ForCausalLM" => Self::Qwen3,
            _ => return None,
        })
    }

    /// By the architecture that a GGUF file names. The llama.cpp converter gives `llama` to Mistral models too; its
    /// `mistral3` scales attention with the position, which is not computed here.
    pub(super) fn of_gguf_architecture(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            _ => return None,
        })
    }

    /// Whether q, k and v have biases; `stored` is whether the first layer has one. Where the family settles it, a bias
    /// too many or too few is an error of the model.
    pub(super) fn qkv_bias(self, stored: bool) -> bool {
        match self {
            Self::Llama | Self::Mistral => stored,
            Self::Qwen2 => true,
            Self::Qwen3 => false,
        }
    }

    /// Whether each head of q and k is normed before it is rotated.
    pub(super) fn qk_norm(self) -> bool {
        self == Self::Qwen3
    }

    /// In which order a GGUF file of the family holds the rows of a layer's tensor.
    pub(super) fn gguf_row_order(self, part: LayerPart, head_dim: usize) -> RowOrder {
        use LayerPart::{K, KBias, Q, QBias};
        match (self, part) {
            (Self::Llama | Self::Mistral, Q | K | QBias | KBias) => RowOrder::Interleaved { head_dim },
            _ => RowOrder::Plain,
        }
    }
}
