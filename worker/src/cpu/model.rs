//! The llama family on the kernels: packed weights, and the walk of a step through them. Called by the backend in `mod`.
//!
//! The walk holds no operator of its own: rows are flat, every line is one kernel over all rows of the step.

use std::ops::Range;

use shoal_common::config::Quant;
use shoal_common::ids::TokenId;
use shoal_kernels::{
    Activations, Arena, Attention, HeadNorms, Heads, KvPool, KvShape, Matrix, Pool, Rope, Rows, Spans, Weights, Write,
    padded,
};

use super::adapters::Adapters;
use super::pack;
use crate::adapters::Site;
use crate::backend::Slice;
use crate::weights::{LayerPart, ModelFile, ModelShape, RowOrder, TensorName, TensorType, TensorView, WeightsError};

/// A model of the llama family, or a stage of one.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) shape: ModelShape,
    heads: Heads,
    rope: Rope,
    /// The hosted ones.
    layers: Vec<Layer>,
    /// Of a whole model and of the first stage.
    pub(super) ends: Option<Ends>,
}

/// What stands before the first layer and after the last.
#[derive(Debug)]
pub(super) struct Ends {
    embedding: Embedding,
    /// `[padded(hidden)]`
    norm: Vec<f32>,
    eps: f32,
    head: Matrix,
}

/// Where a token's first vector comes from.
#[derive(Debug)]
enum Embedding {
    /// From the head's weights.
    Tied,
    /// From the file's own rows.
    Own { dtype: TensorType, shape: [usize; 2], bytes: Vec<u8> },
}

#[derive(Debug)]
struct Layer {
    attn_norm: Vec<f32>,
    /// Queries, keys and values.
    qkv: Matrix,
    head_norms: Option<HeadNorms>,
    out: Matrix,
    ffn_norm: Vec<f32>,
    /// Gates and ups.
    gate_up: Matrix,
    down: Matrix,
}

/// The rows of a step on their way through the layers, reused from step to step.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) spans: Spans,
    pub(super) adapters: Adapters,
    /// The residual stream, `[rows, hidden]`.
    pub(super) x: Rows,
    /// Its norms, as they are for rows with an adapter, and quantised.
    normed: Rows,
    hidden: Activations,
    projections: Rows,
    attention: Attention,
    mixed: Rows,
    mixed_quants: Activations,
    gate_up: Rows,
    /// What the gates leave, as it is for rows with an adapter, and quantised.
    gated_rows: Rows,
    gated: Activations,
    /// An embedding's blocks, taken apart.
    embedding: Weights,
    /// The rows whose logits are wanted.
    last: Rows,
    last_quants: Activations,
}

impl Model {
    /// Packs the weights of `layers`, and of the ends if the first is among them.
    pub(super) fn load(
        file: &ModelFile,
        layers: Range<usize>,
        pool: &mut Pool,
        quant: Quant,
    ) -> Result<Self, WeightsError> {
        let shape = file.config.clone();
        let mut packer = Packer { file, pool, quant, arena: Arena::default() };
        let ends = (layers.start == 0).then(|| Ends::load(&mut packer)).transpose()?;
        Ok(Self {
            heads: Heads { queries: shape.heads, kv: shape.kv_heads, dim: shape.head_dim },
            rope: Rope::new(shape.rope.frequencies()),
            layers: layers.map(|layer| Layer::load(&mut packer, layer)).collect::<Result<_, _>>()?,
            ends,
            shape,
        })
    }

    /// Bytes of all packed weights.
    pub(super) fn bytes(&self) -> usize {
        self.ends.as_ref().map_or(0, Ends::bytes) + self.layers.iter().map(Layer::bytes).sum::<usize>()
    }

    /// What is kept of a position.
    pub(super) fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.layers.len(), kv_heads: self.shape.kv_heads, head_dim: self.shape.head_dim }
    }

    /// Room for steps.
    pub(super) fn work(&self) -> Work {
        let (hidden, mixed) = (self.shape.hidden, self.shape.heads * self.shape.head_dim);
        Work {
            spans: Spans::default(),
            adapters: Adapters::default(),
            x: Rows::new(hidden),
            normed: Rows::new(hidden),
            hidden: Activations::new(hidden),
            projections: Rows::new(self.heads.width()),
            attention: Attention::new(self.heads),
            mixed: Rows::new(mixed),
            mixed_quants: Activations::new(mixed),
            gate_up: Rows::new(padded(self.shape.intermediate) + self.shape.intermediate),
            gated_rows: Rows::new(self.shape.intermediate),
            gated: Activations::new(self.shape.intermediate),
            embedding: pack::scratch(hidden),
            last: Rows::new(hidden),
            last_quants: Activations::new(hidden),
        }
    }

    /// Carries `work.x` through the hosted layers and keeps keys and values. An adapter adds to what the weights give: before
    /// queries and keys are normed and rotated, and to the residual stream after they have added to it.
    pub(super) fn run(&mut self, pool: &mut Pool, kv: &mut KvPool, slices: &[Slice<'_>], work: &mut Work) {
        self.rope.reach(work.spans.reach());
        work.attention.plan(pool, &work.spans);
        let rows = work.spans.rows();
        for rows_of in [&mut work.projections, &mut work.mixed, &mut work.gate_up] {
            rows_of.resize(rows);
        }
        let Work { adapters, x, normed, hidden, projections, mixed, gate_up, gated_rows, .. } = work;
        let eps = self.shape.rms_eps;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden.quantise_normed(pool, x, (&layer.attn_norm, eps), adapters.keep(normed));
            let updates = adapters.at(slices, (index, Site::Qkv), normed);
            layer.qkv.multiply_adapted(pool, hidden, projections, Write::Set, updates);
            let norms = layer.head_norms.as_ref();
            self.rope.store(pool, projections, &work.spans, self.heads, norms, (kv, index));
            work.attention.compute(pool, projections, &work.spans, (kv, index), mixed);
            work.mixed_quants.quantise(pool, mixed);
            let updates = adapters.at(slices, (index, Site::Out), mixed);
            layer.out.multiply_adapted(pool, &work.mixed_quants, x, Write::Add, updates);
            hidden.quantise_normed(pool, x, (&layer.ffn_norm, eps), adapters.keep(normed));
            let updates = adapters.at(slices, (index, Site::GateUp), normed);
            layer.gate_up.multiply_adapted(pool, hidden, gate_up, Write::Set, updates);
            work.gated.quantise_gated(pool, gate_up, adapters.keep(gated_rows));
            let updates = adapters.at(slices, (index, Site::Down), gated_rows);
            layer.down.multiply_adapted(pool, &work.gated, x, Write::Add, updates);
        }
    }
}

/// What weights are packed with.
struct Packer<'a> {
    file: &'a ModelFile,
    pool: &'a mut Pool,
    quant: Quant,
    /// Where all of them lie.
    arena: Arena,
}

impl Packer<'_> {
    /// One matrix of layers that share their inputs: their weights, and the biases that they have.
    fn matrix(&mut self, inputs: usize, tensors: &[(TensorName, Option<TensorName>)]) -> Result<Matrix, WeightsError> {
        let mut matrix = Matrix::new(inputs, &self.arena);
        for &names in tensors {
            pack::push(&mut matrix, self.pool, self.file, names, self.quant)?;
        }
        Ok(matrix)
    }
}

impl Ends {
    fn load(packer: &mut Packer<'_>) -> Result<Self, WeightsError> {
        let (file, shape) = (packer.file, &packer.file.config);
        let head = packer.matrix(shape.hidden, &[(TensorName::Output, None)])?;
        let embedding = if shape.tied { Embedding::Tied } else { Embedding::own(&file.tensor(TensorName::Embedding)?) };
        Ok(Self { embedding, norm: vector(file, TensorName::FinalNorm)?, eps: shape.rms_eps, head })
    }

    fn bytes(&self) -> usize {
        let embedding = match &self.embedding {
            Embedding::Tied => 0,
            Embedding::Own { bytes, .. } => bytes.len(),
        };
        embedding + self.head.bytes()
    }

    /// Begins the step of `work.spans`: their tokens, in order, become the first vectors.
    pub(super) fn embed<'a>(&self, tokens: impl Iterator<Item = &'a TokenId>, work: &mut Work) {
        work.x.resize(work.spans.rows());
        for (row, token) in tokens.enumerate() {
            let to = work.x.row_mut(row);
            match &self.embedding {
                Embedding::Tied => self.head.weights_of(token.index(), to),
                Embedding::Own { dtype, shape, bytes } => {
                    let order = RowOrder::Plain;
                    let tensor = TensorView { dtype: *dtype, shape: *shape, order, bytes };
                    pack::row_f32(&tensor, token.index(), &mut work.embedding, to);
                }
            }
        }
    }

    /// The logits of the rows `wanted` of `work.x`, `[wanted, vocab]`.
    pub(super) fn logits(&self, pool: &mut Pool, work: &mut Work, wanted: &[usize], logits: &mut [f32]) {
        work.last.resize(wanted.len());
        for (to, &from) in wanted.iter().enumerate() {
            work.last.row_mut(to).copy_from_slice(work.x.row(from));
        }
        let norm = (&self.norm[..], self.eps);
        work.last_quants.quantise_normed(pool, &work.last, norm, None);
        self.head.multiply_into(pool, &work.last_quants, logits);
    }
}

impl Embedding {
    fn own(tensor: &TensorView<'_>) -> Self {
        Self::Own { dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes.to_vec() }
    }
}

impl Layer {
    fn load(packer: &mut Packer<'_>, layer: usize) -> Result<Self, WeightsError> {
        use LayerPart::{AttnNorm, Down, FfnNorm, Gate, K, KBias, O, Q, QBias, Up, V, VBias};
        let (file, shape) = (packer.file, &packer.file.config);
        let name = |part| TensorName::Layer { layer, part };
        let mut matrix = |inputs, parts: &[(LayerPart, LayerPart)]| {
            let named = |&(part, bias): &(LayerPart, LayerPart)| {
                (name(part), (shape.qkv_bias && bias.is_bias()).then(|| name(bias)))
            };
            packer.matrix(inputs, &parts.iter().map(named).collect::<Vec<_>>())
        };
        Ok(Self {
            attn_norm: vector(file, name(AttnNorm))?,
            qkv: matrix(shape.hidden, &[(Q, QBias), (K, KBias), (V, VBias)])?,
            head_norms: head_norms(file, layer)?,
            out: matrix(shape.heads * shape.head_dim, &[(O, O)])?,
            ffn_norm: vector(file, name(FfnNorm))?,
            gate_up: matrix(shape.hidden, &[(Gate, Gate), (Up, Up)])?,
            down: matrix(shape.intermediate, &[(Down, Down)])?,
        })
    }

    fn bytes(&self) -> usize {
        [&self.qkv, &self.out, &self.gate_up, &self.down].into_iter().map(Matrix::bytes).sum()
    }
}

fn head_norms(file: &ModelFile, layer: usize) -> Result<Option<HeadNorms>, WeightsError> {
    if !file.config.qk_norm {
        return Ok(None);
    }
    let read = |part| file.tensor_f32(TensorName::Layer { layer, part });
    let (query, key) = (read(LayerPart::QNorm)?, read(LayerPart::KNorm)?);
    Ok(Some(HeadNorms { query, key, eps: file.config.rms_eps }))
}

/// A vector with zeros up to a whole block.
fn vector(file: &ModelFile, name: TensorName) -> Result<Vec<f32>, WeightsError> {
    let mut values = file.tensor_f32(name)?;
    values.resize(padded(values.len()), 0.0);
    Ok(values)
}
