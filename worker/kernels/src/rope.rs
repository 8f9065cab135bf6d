//! From projections to queries and the KV pool: per-head norms where the model has them, rotary position embedding, and
//! the one rounding of keys and values to half precision.

use crate::kv::{BLOCK_POSITIONS, KvPool, KvShape, Span, Spans};
use crate::pool::Pool;
use crate::rows::{Rows, Shared, padded};
use crate::simd::{LANES, Op, Simd, dispatch};

/// Largest number of half precision.
const LARGEST_HALF: f32 = 65504.0;

/// Positions by which the tables grow.
const TABLE_STEP: usize = 256;

/// Rows that one thread takes in one go: neighbouring positions share cache lines of the pool.
const ROW_GRAIN: usize = BLOCK_POSITIONS;

/// Norms of each query and key head, `[head_dim]`.
#[derive(Debug)]
pub struct HeadNorms {
    /// Weights for queries.
    pub query: Vec<f32>,
    /// Weights for keys.
    pub key: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Rotation tables over pairs (i, i + head_dim / 2).
#[derive(Debug)]
pub struct Rope {
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
    /// `[positions, 2, head_dim / 2]`: cosines, then sines. Computed in f64 by `libm` and rounded once.
    table: Vec<f32>,
}

/// Where queries, keys and values are in a row of projections, and how many heads there are.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads.
    pub kv: usize,
    /// Elements of a head; even.
    pub dim: usize,
}

impl Heads {
    /// Width of the projections: queries, keys and values, each part but the last padded.
    pub fn width(self) -> usize {
        self.values_at() + self.kv * self.dim
    }

    fn keys_at(self) -> usize {
        padded(self.queries * self.dim)
    }

    fn values_at(self) -> usize {
        self.keys_at() + padded(self.kv * self.dim)
    }
}

impl Rope {
    /// `frequencies` are radians per position of each pair, `[head_dim / 2]`.
    pub fn new(frequencies: Vec<f64>) -> Self {
        Self { frequencies, table: Vec::new() }
    }

    /// Extends the tables to at least `positions`.
    pub fn reach(&mut self, positions: usize) {
        let row = 2 * self.frequencies.len();
        let have = self.table.len() / row;
        if positions <= have {
            return;
        }
        let positions = positions.next_multiple_of(TABLE_STEP);
        self.table.resize(positions * row, 0.0);
        for (position, row) in (have..positions).zip(self.table[have * row..].chunks_exact_mut(row)) {
            let (cosines, sines) = row.split_at_mut(row.len() / 2);
            for ((frequency, to_cosine), to_sine) in self.frequencies.iter().zip(cosines).zip(sines) {
                let (sine, cosine) = libm::sincos(position as f64 * frequency);
                (*to_cosine, *to_sine) = (cosine as f32, sine as f32);
            }
        }
    }

    /// Norms and rotates the queries of `projections` in place, and stores their keys and values in `layer` of `kv`.
    /// [`Rope::reach`] has extended the tables to the spans' positions.
    pub fn store(
        &self,
        pool: &mut Pool,
        projections: &mut Rows,
        spans: &Spans,
        heads: Heads,
        norms: Option<&HeadNorms>,
        (kv, layer): (&mut KvPool, usize),
    ) {
        let shape = kv.shape();
        assert_eq!((heads.kv, heads.dim, heads.dim / 2), (shape.kv_heads, shape.head_dim, self.frequencies.len()));
        assert_eq!(projections.width(), heads.width(), "width of the projections");
        assert!(norms.is_none_or(|norms| norms.query.len() == heads.dim && norms.key.len() == heads.dim));
        spans.check(projections.count(), kv);
        assert!(spans.reach() * heads.dim <= self.table.len(), "reach of the tables");
        if layer == 0 {
            kv.prepare(spans);
        }
        let (isa, stride) = (pool.isa(), projections.stride());
        let rows = Shared::new(projections.values_mut());
        let layer = Shared::new(kv.layer_mut(layer));
        let all: usize = spans.spans.iter().map(chunks).sum();
        // A single row of a small model takes less than waking another thread for it.
        let grain = if all <= 2 { all } else { 1 };
        pool.split(all, grain, |_, items| {
            for item in items {
                let (span, first) = locate(spans, item);
                for row in first..span.rows.min(first + ROW_GRAIN) {
                    let position = span.position + row;
                    // SAFETY: each row of the projections belongs to one span, and each is taken once.
                    let projections = unsafe { rows.part((span.first_row + row) * stride, stride) };
                    let angles = &self.table[position * heads.dim..][..heads.dim];
                    let block = spans.blocks(span)[position / BLOCK_POSITIONS];
                    let slot = Slot { layer: &layer, shape, block, position };
                    dispatch(isa, StoreRow { projections, angles, heads, norms, slot });
                }
            }
        });
    }
}

fn chunks(span: &Span) -> usize {
    span.rows.div_ceil(ROW_GRAIN)
}

/// The span of chunk `item`, and the chunk's first row within it.
fn locate(spans: &Spans, mut item: usize) -> (&Span, usize) {
    for span in &spans.spans {
        if item < chunks(span) {
            return (span, item * ROW_GRAIN);
        }
        item -= chunks(span);
    }
    unreachable!("chunks are counted over the same spans")
}

/// A position's place in the pool.
struct Slot<'a> {
    layer: &'a Shared<u16>,
    shape: KvShape,
    block: u32,
    position: usize,
}

struct StoreRow<'a> {
    projections: &'a mut [f32],
    /// Cosines, then sines.
    angles: &'a [f32],
    heads: Heads,
    norms: Option<&'a HeadNorms>,
    slot: Slot<'a>,
}

impl Op for StoreRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { projections, angles, heads, norms, slot } = self;
        let (queries, rest) = projections.split_at_mut(heads.keys_at());
        for query in queries.chunks_exact_mut(heads.dim).take(heads.queries) {
            if let Some(norms) = norms {
                norm(query, &norms.query, norms.eps);
            }
            rotate(s, query, angles);
        }
        let (keys, values) = rest.split_at_mut(heads.values_at() - heads.keys_at());
        for (head, key) in keys.chunks_exact_mut(heads.dim).take(heads.kv).enumerate() {
            if let Some(norms) = norms {
                norm(key, &norms.key, norms.eps);
            }
            rotate(s, key, angles);
            slot.store(s, head, key, &values[head * heads.dim..][..heads.dim]);
        }
    }
}

/// Rotates pairs (i, i + half).
#[inline(always)]
fn rotate<S: Simd>(s: S, head: &mut [f32], angles: &[f32]) {
    let half = head.len() / 2;
    let (low, high) = head.split_at_mut(half);
    let (cosines, sines) = angles.split_at(half);
    let (low, low_rest) = low.as_chunks_mut::<LANES>();
    let (high, high_rest) = high.as_chunks_mut::<LANES>();
    let ((cosines, cosines_rest), (sines, sines_rest)) = (cosines.as_chunks::<LANES>(), sines.as_chunks::<LANES>());
    for (((low, high), cosine), sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
        let ((a, b), (cosine, sine)) = ((s.load(low), s.load(high)), (s.load(cosine), s.load(sine)));
        s.store(s.fma(a, cosine, s.sub(s.splat(0.0), s.mul(b, sine))), low);
        s.store(s.fma(b, cosine, s.mul(a, sine)), high);
    }
    for (((a, b), cosine), sine) in low_rest.iter_mut().zip(high_rest).zip(cosines_rest).zip(sines_rest) {
        let rotated = a.mul_add(*cosine, 0.0 - *b * *sine);
        *b = b.mul_add(*cosine, *a * *sine);
        *a = rotated;
    }
}

/// RMS norm of a head; the squares are summed in ascending order.
#[inline(always)]
fn norm(head: &mut [f32], weights: &[f32], eps: f32) {
    let mut squares = 0.0f32;
    for x in &*head {
        squares = x.mul_add(*x, squares);
    }
    let scale = 1.0 / (squares / head.len() as f32 + eps).sqrt();
    for (x, weight) in head.iter_mut().zip(weights) {
        *x = *x * scale * weight;
    }
}

impl Slot<'_> {
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, head: usize, key: &[f32], value: &[f32]) {
        let (shape, lane) = (self.shape, self.position % BLOCK_POSITIONS);
        let at = self.block as usize * shape.block_size() + head * shape.head_size();
        for (chunk, key) in key.chunks(LANES).enumerate() {
            let halves = to_halves(s, key);
            for (element, half) in (chunk * LANES..).zip(&halves[..key.len()]) {
                // SAFETY: the spans' check put the block inside the pool, and a position is stored by one thread.
                unsafe { self.layer.pointer(at + element * BLOCK_POSITIONS + lane).write(*half) };
            }
        }
        let at = at + shape.head_dim * BLOCK_POSITIONS + lane * shape.value_stride();
        for (chunk, value) in value.chunks(LANES).enumerate() {
            // SAFETY: as above.
            let to = unsafe { self.layer.part(at + chunk * LANES, LANES) };
            to.copy_from_slice(&to_halves(s, value));
        }
    }
}

/// Up to 16 values rounded half to even, none of them infinite or NaN; zeros behind them.
#[inline(always)]
fn to_halves<S: Simd>(s: S, values: &[f32]) -> [u16; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    let bounded = s.max(s.min(s.load(&lanes), s.splat(LARGEST_HALF)), s.splat(-LARGEST_HALF));
    let mut halves = [0; LANES];
    s.store_f16(bounded, &mut halves);
    halves
}
