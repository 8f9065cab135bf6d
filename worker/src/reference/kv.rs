//! Keys and values of one sequence, in blocks of 16 positions that forks share until one of them writes. Written by
//! `llama`, read by `attention`.

use std::sync::Arc;

use super::kernel::{LANES, Lanes};

/// What a layer keeps of each position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvShape {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl KvShape {
    /// Panels of [`LANES`] elements that a head's value takes.
    pub(super) fn value_panels(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    fn width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of one position in one layer.
    pub(super) fn bytes(&self) -> usize {
        self.kv_heads * (self.head_dim + self.value_panels() * LANES) * size_of::<f32>()
    }
}

/// [`LANES`] positions, laid out as the panels that scores and outputs are computed from.
#[derive(Clone, Debug)]
struct Block {
    /// `[kv_heads, head_dim]`; a lane is a position.
    keys: Vec<Lanes>,
    /// `[kv_heads, value_panels, LANES]`; the last axis is the position, a lane is an element of the head.
    values: Vec<Lanes>,
}

impl Block {
    fn empty(shape: KvShape) -> Self {
        Self {
            keys: vec![[0.0; LANES]; shape.width()],
            values: vec![[0.0; LANES]; shape.kv_heads * shape.value_panels() * LANES],
        }
    }

    fn write(&mut self, shape: KvShape, slot: usize, key: &[f32], value: &[f32]) {
        for (lanes, &key) in self.keys.iter_mut().zip(key) {
            lanes[slot] = key;
        }
        let heads = value.chunks_exact(shape.head_dim).zip(self.values.chunks_exact_mut(shape.value_panels() * LANES));
        for (value, panels) in heads {
            for (value, panel) in value.chunks(LANES).zip(panels.chunks_exact_mut(LANES)) {
                panel[slot][..value.len()].copy_from_slice(value);
            }
        }
    }
}

/// Keys and values of one sequence in one layer.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerKv {
    blocks: Vec<Arc<Block>>,
}

impl LayerKv {
    /// Stores `key` and `value`, each `[kv_heads, head_dim]`, at `position`; positions are written in order. A block that a
    /// fork shares is copied first.
    pub(super) fn write(&mut self, shape: KvShape, position: usize, key: &[f32], value: &[f32]) {
        let index = position / LANES;
        if index == self.blocks.len() {
            self.blocks.push(Arc::new(Block::empty(shape)));
        }
        Arc::make_mut(&mut self.blocks[index]).write(shape, position % LANES, key, value);
    }

    /// The keys of a head, block by block: `[head_dim]`, a lane is a position.
    pub(super) fn keys(&self, shape: KvShape, head: usize) -> impl Iterator<Item = &[Lanes]> {
        self.blocks.iter().map(move |block| &block.keys[head * shape.head_dim..][..shape.head_dim])
    }

    /// Panel `panel` of the values of a head, block by block: `[LANES]` positions, a lane is an element of the head.
    pub(super) fn values(&self, shape: KvShape, head: usize, panel: usize) -> impl Iterator<Item = &[Lanes]> {
        let from = (head * shape.value_panels() + panel) * LANES;
        self.blocks.iter().map(move |block| &block.values[from..from + LANES])
    }
}

/// Keys and values of one sequence.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    /// Positions held.
    pub(super) length: usize,
    /// One for each layer.
    pub(super) layers: Vec<LayerKv>,
}

impl Sequence {
    /// A sequence without positions.
    pub(super) fn empty(layers: usize) -> Self {
        Self { length: 0, layers: vec![LayerKv::default(); layers] }
    }

    /// The first `length` positions, sharing their blocks.
    pub(super) fn prefix(&self, length: usize) -> Self {
        let blocks = length.div_ceil(LANES);
        let prefix = |layer: &LayerKv| LayerKv { blocks: layer.blocks[..blocks].to_vec() };
        Self { length, layers: self.layers.iter().map(prefix).collect() }
    }
}
