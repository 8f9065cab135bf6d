//! What a model takes of memory, known from its files before anything is packed.

use shoal_common::config::{Engine, Quant};
use shoal_kernels::{KvShape, Matrix};

use super::pack;
use crate::weights::{ModelFile, TensorName};

/// Bytes of a model in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// All weights.
    pub weight_bytes: u64,
    /// Keys and values of one token.
    pub kv_bytes_per_token: u64,
}

impl Footprint {
    /// Of a model with this engine.
    pub fn of(file: &ModelFile, engine: Engine) -> Self {
        match engine {
            Engine::Cpu(quant) => Self {
                weight_bytes: packed(file, quant) as u64,
                kv_bytes_per_token: kv_shape(file).bytes_per_position() as u64,
            },
            // Four bytes for every weight, key and value.
            Engine::Reference => Self {
                weight_bytes: file.parameters() * 4,
                kv_bytes_per_token: kv_shape(file).bytes_per_position() as u64 * 2,
            },
        }
    }
}

fn kv_shape(file: &ModelFile) -> KvShape {
    let shape = &file.config;
    KvShape { layers: shape.layers, kv_heads: shape.kv_heads, head_dim: shape.head_dim }
}

/// Bytes of the packed matrices, and of an embedding that is not the head.
fn packed(file: &ModelFile, quant: Quant) -> usize {
    let bytes = |name: TensorName| {
        let Ok(tensor) = file.tensor(name) else { return 0 };
        let [outputs, inputs] = tensor.shape;
        match name {
            TensorName::Embedding if file.config.tied => 0,
            TensorName::Embedding => tensor.bytes.len(),
            _ => Matrix::bytes_of(pack::encoding(tensor.dtype, quant), inputs, outputs),
        }
    };
    let names = file.config.tensor_names().filter(|name| !name.is_vector());
    let head = if file.config.tied { bytes(TensorName::Output) } else { 0 };
    head + names.map(bytes).sum::<usize>()
}
