//! Keys and values in half precision, in blocks of 16 positions: written by [`crate::Rope`], read by [`crate::Attention`].
//!
//! A block of a layer holds, for each key/value head, the keys as `[head_dim, 16]` (a lane is a position) and the values as
//! `[16, head_dim rounded up to 16]`. Values beyond half precision's range are its largest, so that a block never holds
//! anything that is not finite, and what a weight of zero multiplies is zero.

use crate::ahead::Ahead;
use crate::memory::Zeroed;
use crate::simd::LANES;

/// Positions of a block.
pub const BLOCK_POSITIONS: usize = LANES;

/// What is kept of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvShape {
    pub(crate) fn value_stride(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of one head of a block of one layer.
    pub(crate) fn head_size(self) -> usize {
        (self.head_dim + self.value_stride()) * BLOCK_POSITIONS
    }

    /// Elements of a block of one layer.
    pub(crate) fn block_size(self) -> usize {
        self.kv_heads * self.head_size()
    }

    /// Bytes of one position over all layers.
    pub fn bytes_per_position(self) -> usize {
        self.layers * self.block_size() * size_of::<u16>() / BLOCK_POSITIONS
    }
}

/// There is not so much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for {blocks} kv blocks of {bytes} bytes")]
pub struct OutOfMemory {
    /// Blocks that were asked for.
    pub blocks: usize,
    /// Bytes of each.
    pub bytes: usize,
}

/// The blocks of all layers. The system gives it memory as blocks are written, some ahead of the highest.
#[derive(Debug)]
pub struct KvPool {
    shape: KvShape,
    blocks: usize,
    /// Before the layers, which it looks at until it is dropped.
    ahead: Option<Ahead>,
    layers: Vec<Zeroed>,
}

impl KvPool {
    /// `blocks` blocks of zeros.
    pub fn new(shape: KvShape, blocks: usize) -> Result<Self, OutOfMemory> {
        let size = blocks.checked_mul(shape.block_size()).and_then(|size| size.checked_mul(size_of::<u16>()));
        let layer = |_| size.and_then(Zeroed::new);
        let layers: Option<Vec<Zeroed>> = (0..shape.layers).map(layer).collect();
        let bytes = shape.bytes_per_position() * BLOCK_POSITIONS;
        let layers = layers.ok_or(OutOfMemory { blocks, bytes })?;
        let ahead = Ahead::start(&layers, shape.block_size() * size_of::<u16>(), blocks);
        Ok(Self { shape, blocks, ahead, layers })
    }

    /// What is kept of a position.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Copies a block in all layers.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let (from, to, size) = (from as usize, to as usize, self.shape.block_size());
        assert!(from < self.blocks && to < self.blocks, "block {from} or {to} of {}", self.blocks);
        for layer in &mut self.layers {
            layer.as_mut_slice::<u16>().copy_within(from * size..(from + 1) * size, to * size);
        }
    }

    /// A step is about to write to blocks of these spans.
    pub(crate) fn prepare(&self, spans: &Spans) {
        if let (Some(ahead), Some(highest)) = (&self.ahead, spans.blocks.iter().max()) {
            ahead.written(*highest);
        }
    }

    pub(crate) fn layer(&self, layer: usize) -> &[u16] {
        self.layers[layer].as_slice()
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut [u16] {
        self.layers[layer].as_mut_slice()
    }
}

/// The rows of a step: which are consecutive positions of one sequence, and where its blocks are.
#[derive(Debug, Default)]
pub struct Spans {
    pub(crate) spans: Vec<Span>,
    /// The block tables of all spans.
    blocks: Vec<u32>,
    rows: usize,
}

/// Consecutive rows of a step that are consecutive positions of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Index of the first row.
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: usize,
    /// Where its block table begins, and how long it is.
    table: (usize, usize),
}

impl Span {
    /// One more than the last row's position.
    pub(crate) fn end(&self) -> usize {
        self.position + self.rows
    }
}

impl Spans {
    /// No rows.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.blocks.clear();
        self.rows = 0;
    }

    /// Appends `rows` rows (at least one) of one sequence, the first of them at `position`. Block i holds positions 16 i to
    /// 16 i + 15; the table reaches as far as the rows do.
    pub fn push(&mut self, rows: usize, position: usize, blocks: impl Iterator<Item = u32>) {
        let begin = self.blocks.len();
        self.blocks.extend(blocks.take((position + rows).div_ceil(BLOCK_POSITIONS)));
        let table = (begin, self.blocks.len() - begin);
        assert!(rows > 0 && position + rows <= table.1 * BLOCK_POSITIONS, "blocks of a span");
        self.spans.push(Span { first_row: self.rows, rows, position, table });
        self.rows += rows;
    }

    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// One more than the largest position.
    pub fn reach(&self) -> usize {
        self.spans.iter().map(Span::end).max().unwrap_or(0)
    }

    pub(crate) fn blocks(&self, span: &Span) -> &[u32] {
        &self.blocks[span.table.0..][..span.table.1]
    }

    /// Panics unless there are `rows` rows and all blocks are in `pool`.
    pub(crate) fn check(&self, rows: usize, pool: &KvPool) {
        assert_eq!(self.rows, rows, "rows of the step");
        assert!(self.blocks.iter().all(|&block| (block as usize) < pool.blocks), "a block outside the pool");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of memory that the process has.
    fn resident() -> Option<usize> {
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        Some(pages.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
    }

    const SHAPE: KvShape = KvShape { layers: 4, kv_heads: 2, head_dim: 64 };

    #[test]
    fn a_pool_takes_memory_only_as_blocks_are_written() {
        let Some(before) = resident() else { return };
        let mut pool = KvPool::new(SHAPE, 1 << 16).unwrap();
        let bytes = (SHAPE.bytes_per_position() * BLOCK_POSITIONS) << 16;
        pool.copy_block(3, 4);
        let grown = resident().unwrap() - before;
        assert!(bytes > 1 << 30 && grown < bytes / 8, "{grown} of {bytes} bytes");
        assert!(pool.layer(3).as_ptr().addr().is_multiple_of(64));
        assert!(pool.layer(3).iter().step_by(4093).all(|value| *value == 0));
    }

    #[test]
    fn memory_of_the_next_blocks_is_there_before_they_are_written() {
        let Some(before) = resident() else { return };
        let pool = KvPool::new(SHAPE, 1 << 16).unwrap();
        let mut spans = Spans::default();
        spans.push(40, 0, [7, 20_000, 9].into_iter());
        let bytes = SHAPE.bytes_per_position() * BLOCK_POSITIONS * 20_000;
        if pool.ahead.is_none() {
            return;
        }
        while resident().unwrap() - before < bytes {
            pool.prepare(&spans);
            std::thread::yield_now();
        }
        // It ends in the middle of what it was asked for.
        spans.push(1, 0, [65_000].into_iter());
        pool.prepare(&spans);
    }
}
