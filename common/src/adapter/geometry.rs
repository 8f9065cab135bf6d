//! The linear layers of a model of the llama family, as adapters name and fit them.

use serde::{Deserialize, Serialize};

/// Widths of a model's linear layers. A worker tells them in its card, so that a router can judge an adapter without the
/// model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    /// Layers of the whole model.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the feed-forward network.
    pub intermediate: u32,
    /// Width of all query heads.
    pub queries: u32,
    /// Width of all key heads, and of all value heads.
    pub keys: u32,
}

/// A linear layer that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Linear {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// Gate of the feed-forward network.
    Gate,
    /// What the gate is multiplied with.
    Up,
    /// Back to the residual stream.
    Down,
}

impl Linear {
    /// All of a layer, in the order of computation.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Its path within `model.layers.N`, as transformers names it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Outputs and inputs of its weights, `[outputs, inputs]`.
    pub fn shape(self, geometry: &Geometry) -> [usize; 2] {
        let Geometry { hidden, intermediate, queries, keys, .. } = *geometry;
        let (outputs, inputs) = match self {
            Self::Q => (queries, hidden),
            Self::K | Self::V => (keys, hidden),
            Self::O => (hidden, queries),
            Self::Gate | Self::Up => (intermediate, hidden),
            Self::Down => (hidden, intermediate),
        };
        [outputs as usize, inputs as usize]
    }
}
