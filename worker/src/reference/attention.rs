//! Attention of one layer as a candle operator: every row (a position of a sequence) looks at the positions up to its own.
//!
//! A row is computed alone, over blocks aligned to absolute positions, in ascending order: which rows share a step, and
//! where a prefill was cut, cannot show in its bits. Written as loops and not as candle operators for the reasons in
//! `kernel`: a row of a long sequence would be hundreds of tiny matmuls.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::kernel::{LANES, MAX_ROWS, Machine, RowGroup};
use super::kv::{KvShape, LayerKv};

/// What one row looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    /// The layer's keys and values of the row's sequence.
    pub(super) kv: LayerKv<'a>,
    /// The row's position; positions `0..=position` are held.
    pub(super) position: usize,
}

/// The operator: queries `[rows, heads, head_dim]` to outputs `[rows, heads * head_dim]`.
#[derive(Debug)]
pub(super) struct Attention<'a> {
    pub(super) machine: Machine,
    pub(super) shape: KvShape,
    pub(super) rows: &'a [Row<'a>],
}

impl Attention<'_> {
    fn forward(&self, queries: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![0.0; queries.len()];
        // Heads that share a key/value head are neighbours.
        let shared = width / self.shape.kv_heads;
        let tasks = out.par_chunks_mut(shared).zip(queries.par_chunks(shared)).enumerate();
        tasks.for_each(|(index, (out, queries))| {
            let (row, kv_head) = (self.rows[index / self.shape.kv_heads], index % self.shape.kv_heads);
            self.machine.run(Heads { shape: self.shape, row, kv_head, queries, out });
        });
        out
    }
}

/// The query heads of one key/value head of one row.
struct Heads<'a> {
    shape: KvShape,
    row: Row<'a>,
    kv_head: usize,
    /// `[shared, head_dim]`
    queries: &'a [f32],
    /// `[shared, head_dim]`
    out: &'a mut [f32],
}

impl WithSimd for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let head_dim = self.shape.head_dim;
        let groups = self.queries.chunks(MAX_ROWS * head_dim).zip(self.out.chunks_mut(MAX_ROWS * head_dim));
        for (queries, out) in groups {
            let queries = RowGroup::pack(queries, head_dim);
            let mut scores = vec![0.0; queries.rows() * (self.row.position + 1)];
            self.row.score(simd, head_dim, self.kv_head, &queries, &mut scores);
            scores.chunks_exact_mut(self.row.position + 1).for_each(softmax);
            let weights = RowGroup::pack(&scores, self.row.position + 1);
            self.row.mix(simd, self.shape, self.kv_head, &weights, out);
        }
    }
}

impl Row<'_> {
    fn blocks(&self) -> usize {
        (self.position + 1).div_ceil(LANES)
    }

    /// Scaled scores of all positions held, `[queries, position + 1]`.
    #[inline(always)]
    fn score<S: Simd>(&self, simd: S, head_dim: usize, kv_head: usize, queries: &RowGroup, scores: &mut [f32]) {
        let held = self.position + 1;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (block, keys) in self.kv.keys(kv_head).take(self.blocks()).enumerate() {
            let mut sums = [[0.0; LANES]; MAX_ROWS];
            queries.accumulate(simd, keys, 0, &mut sums);
            for (scores, sums) in scores.chunks_exact_mut(held).zip(&sums) {
                let scores = &mut scores[block * LANES..held.min((block + 1) * LANES)];
                scores.iter_mut().zip(sums).for_each(|(score, sum)| *score = sum * scale);
            }
        }
    }

    /// The values of all positions held, weighted: `[queries, head_dim]`.
    #[inline(always)]
    fn mix<S: Simd>(&self, simd: S, shape: KvShape, kv_head: usize, weights: &RowGroup, out: &mut [f32]) {
        for panel in 0..shape.value_panels() {
            let mut sums = [[0.0; LANES]; MAX_ROWS];
            for (block, values) in self.kv.values(kv_head, panel).take(self.blocks()).enumerate() {
                let from = block * LANES;
                weights.accumulate(simd, &values[..LANES.min(self.position + 1 - from)], from, &mut sums);
            }
            for (out, sums) in out.chunks_exact_mut(shape.head_dim).zip(&sums) {
                let elements = &mut out[panel * LANES..shape.head_dim.min((panel + 1) * LANES)];
                elements.copy_from_slice(&sums[..elements.len()]);
            }
        }
    }
}

/// Softmax in place; the sum ascends.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = exp(*score - largest));
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, heads, head_dim) = layout.shape().dims3()?;
        let fits = rows == self.rows.len() && head_dim == self.shape.head_dim;
        let Some((from, to)) = layout.contiguous_offsets().filter(|_| fits) else {
            candle_core::bail!("attention over {} rows was given {:?}", self.rows.len(), layout.shape())
        };
        let width = heads * head_dim;
        let out = self.forward(&storage.as_slice::<f32>()?[from..to], width);
        Ok((CpuStorage::F32(out), Shape::from((rows, width))))
    }
}
