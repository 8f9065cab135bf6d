//! The pool of KV blocks: keys and values of 16 positions in every layer, laid out as the panels that `attention` computes
//! from. Written by `llama`, read by `attention`. Whose block is whose is the engine's to know.

use std::collections::TryReserveError;

use super::kernel::{LANES, Lanes};
use crate::backend::{BLOCK_TOKENS, BlockId};

const _: () = assert!(LANES == BLOCK_TOKENS, "a block is a panel of positions");

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

    /// Panels of a block's keys in one layer, `[kv_heads, head_dim]`; a lane is a position.
    fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Panels of a block's values in one layer, `[kv_heads, value_panels, LANES]`; the last axis is the position, a lane is
    /// an element of the head.
    fn values(&self) -> usize {
        self.kv_heads * self.value_panels() * LANES
    }

    /// Panels of a block in one layer: its keys, then its values.
    fn panels(&self) -> usize {
        self.keys() + self.values()
    }

    /// Bytes of one position in one layer.
    pub(super) fn bytes(&self) -> usize {
        self.panels() * size_of::<Lanes>() / BLOCK_TOKENS
    }
}

/// All blocks of KV. A block takes memory from its first write on and keeps it.
#[derive(Debug)]
pub(super) struct KvPool {
    shape: KvShape,
    layers: usize,
    /// Each `[layers, panels]`, or empty while nobody has written to it.
    blocks: Vec<Vec<Lanes>>,
}

impl KvPool {
    /// A pool without blocks.
    pub(super) fn new(shape: KvShape, layers: usize) -> Self {
        Self { shape, layers, blocks: Vec::new() }
    }

    /// Makes `blocks` blocks.
    pub(super) fn reserve(&mut self, blocks: usize) -> Result<(), TryReserveError> {
        self.blocks.try_reserve_exact(blocks)?;
        self.blocks.resize(blocks, Vec::new());
        Ok(())
    }

    /// Stores `key` and `value`, each `[kv_heads, head_dim]`, of position `slot` of a block.
    pub(super) fn write(&mut self, layer: usize, block: BlockId, slot: usize, key: &[f32], value: &[f32]) {
        let shape = self.shape;
        let panels = &mut self.blocks[block.index()];
        if panels.is_empty() {
            panels.resize(self.layers * shape.panels(), [0.0; LANES]);
        }
        let (keys, values) = panels[layer * shape.panels()..][..shape.panels()].split_at_mut(shape.keys());
        for (lanes, &key) in keys.iter_mut().zip(key) {
            lanes[slot] = key;
        }
        let heads = value.chunks_exact(shape.head_dim).zip(values.chunks_exact_mut(shape.value_panels() * LANES));
        for (value, panels) in heads {
            for (value, panel) in value.chunks(LANES).zip(panels.chunks_exact_mut(LANES)) {
                panel[slot][..value.len()].copy_from_slice(value);
            }
        }
    }

    /// Copies a block.
    pub(super) fn copy(&mut self, from: BlockId, to: BlockId) {
        let mut copy = std::mem::take(&mut self.blocks[to.index()]);
        copy.clone_from(&self.blocks[from.index()]);
        self.blocks[to.index()] = copy;
    }

    /// A layer of the sequence that has this block table.
    pub(super) fn layer<'a>(&'a self, layer: usize, blocks: &'a [BlockId]) -> LayerKv<'a> {
        LayerKv { pool: self, layer, blocks }
    }
}

/// Keys and values of one sequence in one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerKv<'a> {
    pool: &'a KvPool,
    layer: usize,
    blocks: &'a [BlockId],
}

impl<'a> LayerKv<'a> {
    fn panels(self, from: usize, count: usize) -> impl Iterator<Item = &'a [Lanes]> {
        let from = self.layer * self.pool.shape.panels() + from;
        self.blocks.iter().map(move |block| &self.pool.blocks[block.index()][from..from + count])
    }

    /// The keys of a head, block by block: `[head_dim]`, a lane is a position.
    pub(super) fn keys(self, head: usize) -> impl Iterator<Item = &'a [Lanes]> {
        let head_dim = self.pool.shape.head_dim;
        self.panels(head * head_dim, head_dim)
    }

    /// Panel `panel` of the values of a head, block by block: `[LANES]` positions, a lane is an element of the head.
    pub(super) fn values(self, head: usize, panel: usize) -> impl Iterator<Item = &'a [Lanes]> {
        let shape = self.pool.shape;
        self.panels(shape.keys() + (head * shape.value_panels() + panel) * LANES, LANES)
    }
}
