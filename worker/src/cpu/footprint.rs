//! What a model takes of memory, known from its files before anything is packed.

use shoal_common::config::{Engine, Quant};
use shoal_kernels::{KvShape, Matrix};

use super::pack;
use crate::stage::split::Costs;
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
    matrices(file).map(|name| packed_bytes(file, quant, name)).sum()
}

/// Every matrix, the output head too where it is the embedding.
fn matrices(file: &ModelFile) -> impl Iterator<Item = TensorName> {
    let head = file.config.tied.then_some(TensorName::Output);
    file.config.tensor_names().filter(|name| !name.is_vector()).chain(head)
}

fn packed_bytes(file: &ModelFile, quant: Quant, name: TensorName) -> usize {
    let Ok(tensor) = file.tensor(name) else { return 0 };
    let [outputs, inputs] = tensor.shape;
    match name {
        TensorName::Embedding if file.config.tied => 0,
        TensorName::Embedding => tensor.bytes.len(),
        _ => Matrix::bytes_of(pack::encoding(tensor.dtype, quant), inputs, outputs),
    }
}

/// What each part of a model takes with this engine, where `tokens` of KV are kept.
pub fn costs(file: &ModelFile, engine: Engine, tokens: u64) -> Costs {
    let mut costs = Costs { layers: vec![0; file.config.layers], ends: 0, kv: 0 };
    for name in matrices(file) {
        let bytes = match engine {
            Engine::Cpu(quant) => packed_bytes(file, quant, name) as u64,
            // The output head is the embedding once more, where they are one.
            Engine::Reference if name == TensorName::Output && file.config.tied => 0,
            Engine::Reference => {
                file.tensor(name).map_or(0, |tensor| tensor.shape.iter().product::<usize>() as u64 * 4)
            }
        };
        match name {
            TensorName::Layer { layer, .. } => costs.layers[layer] += bytes,
            _ => costs.ends += bytes,
        }
    }
    let kv = Footprint::of(file, engine).kv_bytes_per_token / file.config.layers.max(1) as u64;
    Costs { kv: kv.saturating_mul(tokens), ..costs }
}

#[cfg(test)]
mod tests {
    use shoal_common::ids::LayerRange;

    use super::*;
    use crate::backend::bench::golden;

    #[test]
    fn the_parts_of_a_model_take_together_what_the_whole_takes() {
        for model in ["tiny/base", "tiny/gguf/tiny-q4_1.gguf", "tiny/gguf/tiny-q8_0.gguf"] {
            let file = ModelFile::open(&golden(model)).unwrap();
            let engine = Engine::Cpu(Quant::Q8_0);
            let (costs, whole) = (costs(&file, engine, 10), Footprint::of(&file, engine));
            let all = LayerRange { begin: 0, end: 4 };
            assert_eq!(
                (costs.weights(all), costs.kv(all)),
                (whole.weight_bytes, 10 * whole.kv_bytes_per_token),
                "{model}"
            );
            assert!(costs.ends > 0 && costs.layers.iter().all(|layer| *layer > 0), "{costs:?}");
        }
    }
}
