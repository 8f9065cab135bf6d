//! The llama and its relatives on candle tensors: weights and the walk of a step through them. Called by the backend in
//! `mod`; knows rows, their positions and where their KV is.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::rms_norm;
use rayon::prelude::*;
use shoal_common::adapter::Geometry;
use shoal_common::ids::TokenId;

use super::ReferenceError;
use super::adapters::Adapters;
use super::attention::{Attention, Row};
use super::kernel::Machine;
use super::kv::{KvPool, KvShape};
use super::linear::Linear;
use super::rope::{Angles, Rope};
use super::swiglu::SwiGlu;
use crate::adapters::Site;
use crate::backend::{BLOCK_TOKENS, BlockId};
use crate::weights::{LayerPart, ModelFile, TensorName};

/// A model with the llama's layers.
#[derive(Debug)]
pub(super) struct Llama {
    machine: Machine,
    pub(super) vocab: usize,
    pub(super) context: usize,
    heads: usize,
    kv: KvShape,
    pub(super) hidden: usize,
    geometry: Geometry,
    eps: f32,
    rope: Rope,
    /// The hosted ones.
    layers: Vec<Layer>,
    /// Of a whole model and of the first stage.
    ends: Option<Ends>,
}

/// What stands before the first layer and after the last.
#[derive(Debug)]
struct Ends {
    embedding: Embedding,
    norm: Tensor,
    head: Linear,
}

/// Where a token's first vector comes from.
#[derive(Debug)]
enum Embedding {
    /// From the head's weights.
    Tied,
    /// `[vocab, hidden]`.
    Own(Vec<f32>),
}

#[derive(Debug)]
struct Layer {
    attn_norm: Tensor,
    /// Queries, keys and values, stacked.
    qkv: Linear,
    /// Norms of each head of queries and of keys, `[head_dim]`.
    qk_norm: Option<[Tensor; 2]>,
    out: Linear,
    ffn_norm: Tensor,
    /// Gate and up, stacked.
    gate_up: Linear,
    down: Linear,
}

/// A row of a step: one token at its position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Index of the row's slice in the step.
    pub(super) slice: usize,
    /// Position within the sequence.
    pub(super) position: usize,
    /// The token there.
    pub(super) token: TokenId,
}

/// What all layers of a step need to know of its rows.
struct Step<'a> {
    places: &'a [Place],
    angles: Angles,
    adapters: &'a Adapters<'a>,
}

/// Where the KV of a step is.
#[derive(Debug)]
pub(super) struct StepKv<'a> {
    pub(super) pool: &'a mut KvPool,
    /// The block table of each slice.
    pub(super) tables: Vec<&'a [BlockId]>,
}

impl Llama {
    /// Expands and packs the weights of `layers`, and of the ends if the first is among them, on the current thread pool.
    pub(super) fn load(
        file: &ModelFile,
        layers: Range<usize>,
        machine: Machine,
    ) -> std::result::Result<Self, ReferenceError> {
        let shape = &file.config;
        let is_first = layers.start == 0;
        let layers = || layers.into_par_iter().map(|layer| Layer::load(file, machine, layer)).collect();
        let (layers, ends) = rayon::join(layers, || is_first.then(|| Ends::load(file, machine)).transpose());
        let layers: std::result::Result<Vec<Layer>, ReferenceError> = layers;
        Ok(Self {
            machine,
            vocab: shape.vocab,
            context: shape.context,
            heads: shape.heads,
            kv: KvShape { kv_heads: shape.kv_heads, head_dim: shape.head_dim },
            hidden: shape.hidden,
            geometry: shape.geometry(),
            eps: shape.rms_eps,
            rope: Rope::new(&shape.rope),
            layers: layers?,
            ends: ends?,
        })
    }

    /// Bytes of KV of one position.
    pub(super) fn kv_bytes(&self) -> u64 {
        (self.layers.len() * self.kv.bytes()) as u64
    }

    /// A pool for this model's KV, without blocks.
    pub(super) fn pool(&self) -> KvPool {
        KvPool::new(self.kv, self.layers.len())
    }

    /// The embeddings of `places`, `[places, hidden]`.
    pub(super) fn embed(&self, places: &[Place]) -> std::result::Result<Tensor, ReferenceError> {
        let ends = self.ends.as_ref().ok_or(ReferenceError::InnerStage)?;
        let mut x = Vec::with_capacity(places.len() * self.hidden);
        for Place { token, .. } in places {
            match &ends.embedding {
                Embedding::Tied => x.extend(ends.head.weights_of(token.index())),
                Embedding::Own(rows) => x.extend_from_slice(&rows[token.index() * self.hidden..][..self.hidden]),
            }
        }
        Ok(Tensor::from_vec(x, (places.len(), self.hidden), &Device::Cpu)?)
    }

    /// Carries `x`, `[places, hidden]`, in which the rows of a slice follow each other, through the hosted layers, with their
    /// adapters. Keys and values go to `kv`, where each slice's table says.
    pub(super) fn run(
        &self,
        mut x: Tensor,
        (places, adapters): (&[Place], &Adapters<'_>),
        kv: &mut StepKv<'_>,
    ) -> Result<Tensor> {
        let angles = self.rope.angles(places.iter().map(|place| place.position))?;
        let step = Step { places, angles, adapters };
        for index in 0..self.layers.len() {
            x = self.layer(index, &x, &step, kv)?;
        }
        Ok(x)
    }

    /// Writes the logits of the rows `wanted` of `x` to `logits`, `[wanted, vocab]`.
    pub(super) fn logits(
        &self,
        x: &Tensor,
        wanted: &[u32],
        logits: &mut [f32],
    ) -> std::result::Result<(), ReferenceError> {
        let ends = self.ends.as_ref().ok_or(ReferenceError::InnerStage)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let rows = Tensor::from_slice(wanted, wanted.len(), &Device::Cpu)?;
        let x = rms_norm(&x.index_select(&rows, 0)?, &ends.norm, self.eps)?;
        ends.head.forward(&x.flatten_all()?.to_vec1::<f32>()?, logits);
        Ok(())
    }

    fn layer(&self, index: usize, x: &Tensor, step: &Step<'_>, kv: &mut StepKv<'_>) -> Result<Tensor> {
        let layer = &self.layers[index];
        let linear = |site, weights: &Linear, x: &Tensor| {
            step.adapters.add((index, site), &self.geometry, x, x.apply_op1_no_bwd(weights)?)
        };
        let qkv = linear(Site::Qkv, &layer.qkv, &rms_norm(x, &layer.attn_norm, self.eps)?)?;
        let queries = self.store(index, &qkv, step, kv)?;
        let row = |place: &Place| Row { kv: kv.pool.layer(index, kv.tables[place.slice]), position: place.position };
        let rows: Vec<Row<'_>> = step.places.iter().map(row).collect();
        let attention = Attention { machine: self.machine, shape: self.kv, rows: &rows };
        let x = (x + linear(Site::Out, &layer.out, &queries.apply_op1_no_bwd(&attention)?)?)?;
        let gate_up = linear(Site::GateUp, &layer.gate_up, &rms_norm(&x, &layer.ffn_norm, self.eps)?)?;
        &x + linear(Site::Down, &layer.down, &gate_up.apply_op1_no_bwd(&SwiGlu)?)?
    }

    /// Rotates queries and keys, keeps keys and values, returns the queries, `[rows, heads, head_dim]`.
    fn store(&self, layer: usize, qkv: &Tensor, step: &Step<'_>, to: &mut StepKv<'_>) -> Result<Tensor> {
        let KvShape { kv_heads, head_dim } = self.kv;
        let (q, kv) = (self.heads * head_dim, kv_heads * head_dim);
        let part = |from, heads| qkv.narrow(1, from, heads * head_dim)?.contiguous()?.reshape(((), heads, head_dim));
        let (queries, keys) = self.norm_heads(layer, part(0, self.heads)?, part(q, kv_heads)?)?;
        let queries = step.angles.rotate(&queries)?;
        let keys = step.angles.rotate(&keys)?.flatten_all()?.to_vec1::<f32>()?;
        let values = part(q + kv, kv_heads)?.flatten_all()?.to_vec1::<f32>()?;
        for ((place, key), value) in step.places.iter().zip(keys.chunks_exact(kv)).zip(values.chunks_exact(kv)) {
            let block = to.tables[place.slice][place.position / BLOCK_TOKENS];
            to.pool.write(layer, block, place.position % BLOCK_TOKENS, key, value);
        }
        Ok(queries)
    }

    /// Norms queries and keys, each `[rows, heads, head_dim]`, head by head, where the model does.
    fn norm_heads(&self, layer: usize, queries: Tensor, keys: Tensor) -> Result<(Tensor, Tensor)> {
        match &self.layers[layer].qk_norm {
            Some([q, k]) => Ok((rms_norm(&queries, q, self.eps)?, rms_norm(&keys, k, self.eps)?)),
            None => Ok((queries, keys)),
        }
    }
}

impl Ends {
    fn load(file: &ModelFile, machine: Machine) -> std::result::Result<Self, ReferenceError> {
        let shape = &file.config;
        let head = file.tensor_f32(TensorName::Output)?;
        Ok(Self {
            embedding: match shape.tied {
                true => Embedding::Tied,
                false => Embedding::Own(file.tensor_f32(TensorName::Embedding)?),
            },
            norm: vector(file, TensorName::FinalNorm)?,
            head: Linear::pack(machine, shape.hidden, &[&head], None),
        })
    }
}

impl Layer {
    fn load(file: &ModelFile, machine: Machine, layer: usize) -> std::result::Result<Self, ReferenceError> {
        let shape = &file.config;
        let name = |part| TensorName::Layer { layer, part };
        let linear = |inputs, parts: &[LayerPart], biases: &[LayerPart]| {
            let read = |part: &LayerPart| file.tensor_f32(name(*part));
            let weights: Vec<Vec<f32>> = parts.iter().map(read).collect::<std::result::Result<_, _>>()?;
            let biases: Vec<Vec<f32>> = biases.iter().map(read).collect::<std::result::Result<_, _>>()?;
            let bias = (!biases.is_empty()).then(|| biases.concat());
            let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
            Ok::<_, ReferenceError>(Linear::pack(machine, inputs, &weights, bias))
        };
        use LayerPart::{AttnNorm, Down, FfnNorm, Gate, K, KBias, KNorm, O, Q, QBias, QNorm, Up, V, VBias};
        let biases: &[LayerPart] = if shape.qkv_bias { &[QBias, KBias, VBias] } else { &[] };
        Ok(Self {
            attn_norm: vector(file, name(AttnNorm))?,
            qkv: linear(shape.hidden, &[Q, K, V], biases)?,
            qk_norm: match shape.qk_norm {
                true => Some([vector(file, name(QNorm))?, vector(file, name(KNorm))?]),
                false => None,
            },
            out: linear(shape.heads * shape.head_dim, &[O], &[])?,
            ffn_norm: vector(file, name(FfnNorm))?,
            gate_up: linear(shape.hidden, &[Gate, Up], &[])?,
            down: linear(shape.intermediate, &[Down], &[])?,
        })
    }
}

fn vector(file: &ModelFile, name: TensorName) -> std::result::Result<Tensor, ReferenceError> {
    let values = file.tensor_f32(name)?;
    let length = values.len();
    Ok(Tensor::from_vec(values, length, &Device::Cpu)?)
}
