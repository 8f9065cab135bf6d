//! Rotation, the KV pool and attention.

use half::f16;
use proptest::prelude::*;

use super::{bits, numbers, pools, rows};
use crate::{Attention, HeadNorms, Heads, KvPool, KvShape, Pool, Rope, Rows, Spans};

/// A layer's worth of attention with its pool.
struct Bench {
    heads: Heads,
    rope: Rope,
    norms: Option<HeadNorms>,
    kv: KvPool,
    attention: Attention,
}

/// Consecutive positions of a sequence: where they begin, their projections, and the sequence's block table.
struct Piece<'a> {
    position: usize,
    values: &'a [f32],
    blocks: &'a [u32],
}

impl Bench {
    fn new(heads: Heads, blocks: usize) -> Self {
        let shape = KvShape { layers: 2, kv_heads: heads.kv, head_dim: heads.dim };
        let frequency = |pair: usize| 100f64.powf(-2.0 * pair as f64 / heads.dim as f64);
        Self {
            heads,
            rope: Rope::new((0..heads.dim / 2).map(frequency).collect()),
            norms: None,
            kv: KvPool::new(shape, blocks).unwrap(),
            attention: Attention::new(heads),
        }
    }

    fn step(&mut self, pool: &mut Pool, pieces: &[Piece<'_>]) -> Rows {
        let width = self.heads.width();
        let (mut spans, mut values) = (Spans::default(), Vec::new());
        for piece in pieces {
            spans.push(piece.values.len() / width, piece.position, piece.blocks.iter().copied());
            values.extend_from_slice(piece.values);
        }
        let mut projections = rows(&values, width);
        let mut out = Rows::new(self.heads.queries * self.heads.dim);
        out.resize(spans.rows());
        self.rope.reach(spans.reach());
        self.rope.store(pool, &mut projections, &spans, self.heads, self.norms.as_ref(), (&mut self.kv, 1));
        self.attention.plan(pool, &spans);
        self.attention.compute(pool, &projections, &spans, (&self.kv, 1), &mut out);
        out
    }
}

/// Attention in f64 over f32 projections, keys and values rounded to half precision as the pool does.
fn exact(bench: &Bench, values: &[f32]) -> Vec<f64> {
    let Heads { queries, kv, dim } = bench.heads;
    let rotate = |head: &[f32], position: usize, weights: Option<&Vec<f32>>| -> Vec<f64> {
        let mut head: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
        if let Some(weights) = weights {
            let square = head.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            head.iter_mut().zip(weights).for_each(|(x, w)| *x *= f64::from(*w) / (square + 1e-6).sqrt());
        }
        let turn = |pair: usize| {
            let angle = position as f64 * 100f64.powf(-2.0 * pair as f64 / dim as f64);
            let (a, b) = (head[pair], head[pair + dim / 2]);
            (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
        };
        let turned: Vec<_> = (0..dim / 2).map(turn).collect();
        turned.iter().map(|pair| pair.0).chain(turned.iter().map(|pair| pair.1)).collect()
    };
    let half = |value: f64| f64::from(f16::from_f64(value).to_f32());
    let (keys_at, values_at) = (crate::padded(queries * dim), crate::padded(queries * dim) + crate::padded(kv * dim));
    let projections: Vec<&[f32]> = values.chunks(bench.heads.width()).collect();
    let mut out = Vec::new();
    for (row, own) in projections.iter().enumerate() {
        for head in 0..queries {
            let query = rotate(&own[head * dim..][..dim], row, bench.norms.as_ref().map(|norms| &norms.query));
            let at = head / (queries / kv) * dim;
            let score = |position: usize| -> f64 {
                let weights = bench.norms.as_ref().map(|norms| &norms.key);
                let key = rotate(&projections[position][keys_at + at..][..dim], position, weights);
                query.iter().zip(key).map(|(q, k)| q * half(k)).sum::<f64>() / (dim as f64).sqrt()
            };
            let scores: Vec<f64> = (0..=row).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for element in 0..dim {
                let value = |position: usize| half(f64::from(projections[position][values_at + at + element]));
                out.push((0..=row).map(|position| weights[position] * value(position)).sum::<f64>() / total);
            }
        }
    }
    out
}

fn heads() -> impl Strategy<Value = Heads> {
    let shared = prop::sample::select(vec![1, 2, 3, 4, 7, 12]);
    (1..4usize, shared, prop::sample::select(vec![2, 16, 24, 64, 80])).prop_map(|(kv, shared, dim)| Heads {
        queries: kv * shared,
        kv,
        dim,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn attention_is_close_to_exact_arithmetic(heads in heads(), length in 1..50usize, has_norms: bool, seed: u32) {
        let values = numbers(u64::from(seed), length * heads.width());
        for pool in &mut pools() {
            let mut bench = Bench::new(heads, 8);
            if has_norms {
                let (query, key) = (numbers(1, heads.dim), numbers(2, heads.dim));
                bench.norms = Some(HeadNorms { query, key, eps: 1e-6 });
            }
            let out = bench.step(pool, &[Piece { position: 0, values: &values, blocks: &[3, 1, 7, 0] }]);
            let ours = (0..length).flat_map(|row| out.row(row).to_vec());
            for (at, (ours, exact)) in ours.zip(exact(&bench, &values)).enumerate() {
                // Half precision of keys of up to 40, and the exponential of what that does to a score.
                prop_assert!((f64::from(ours) - exact).abs() < 0.15, "element {}: {} for {}", at, ours, exact);
            }
        }
    }

    #[test]
    fn cuts_blocks_strangers_threads_and_instruction_sets_do_not_show(
        heads in heads(), length in 2..70usize, cut in 1..69usize, seed: u32,
    ) {
        let width = heads.width();
        let (values, strangers) = (numbers(u64::from(seed), length * width), numbers(9, 40 * width));
        let cut = cut.min(length - 1);
        let mut seen: Vec<Vec<u32>> = Vec::new();
        for pool in &mut pools() {
            let mut bench = Bench::new(heads, 24);
            let whole = bench.step(pool, &[Piece { position: 0, values: &values, blocks: &[0, 1, 2, 3, 4] }]);
            // Blocks that were used before, strangers beside it, and a cut.
            let table = [20, 3, 11, 1, 7];
            bench.step(pool, &[Piece { position: 0, values: &numbers(5, 80 * width), blocks: &table }]);
            let (first, second) = values.split_at(cut * width);
            let other = [12, 13, 14];
            let before = bench.step(pool, &[
                Piece { position: 0, values: &strangers[..20 * width], blocks: &other },
                Piece { position: 0, values: first, blocks: &table },
            ]);
            let after = bench.step(pool, &[
                Piece { position: cut, values: second, blocks: &table },
                Piece { position: 20, values: &strangers[20 * width..], blocks: &other },
            ]);
            let out = heads.queries * heads.dim;
            let joined = [&bits(&before)[20 * out..], &bits(&after)[..second.len() / width * out]].concat();
            prop_assert_eq!(&joined, &bits(&whole));
            seen.push(joined);
        }
        prop_assert!(seen.iter().all(|bits| *bits == seen[0]));
    }
}

#[test]
fn a_copied_block_holds_the_same() {
    let heads = Heads { queries: 2, kv: 1, dim: 16 };
    let (pool, mut bench) = (&mut pools().pop().unwrap(), Bench::new(heads, 6));
    let values = numbers(1, 30 * heads.width());
    bench.step(pool, &[Piece { position: 0, values: &values, blocks: &[0, 1] }]);
    bench.kv.copy_block(1, 4);
    let next = numbers(2, heads.width());
    let copied = bench.step(pool, &[Piece { position: 30, values: &next, blocks: &[0, 4] }]);
    let original = bench.step(pool, &[Piece { position: 30, values: &next, blocks: &[0, 1] }]);
    assert_eq!(bits(&copied), bits(&original));
}

#[test]
fn values_beyond_half_precision_stay_finite() {
    let heads = Heads { queries: 1, kv: 1, dim: 16 };
    let (pool, mut bench) = (&mut pools().pop().unwrap(), Bench::new(heads, 2));
    let mut values = numbers(1, 3 * heads.width());
    values[heads.width() - 1] = 1e30;
    values[heads.width() - 2] = f32::NAN;
    bench.step(pool, &[Piece { position: 0, values: &values, blocks: &[0] }]);
    // Another sequence gets the block: what lies behind its positions must not reach it.
    let fresh = numbers(2, heads.width());
    let reused = bench.step(pool, &[Piece { position: 0, values: &fresh, blocks: &[0] }]);
    let unused = bench.step(pool, &[Piece { position: 0, values: &fresh, blocks: &[1] }]);
    assert_eq!(bits(&reused), bits(&unused));
    assert!(reused.row(0).iter().all(|value| value.is_finite()));
}

#[test]
#[should_panic(expected = "a block outside the pool")]
fn a_block_outside_the_pool_is_refused() {
    let heads = Heads { queries: 1, kv: 1, dim: 16 };
    let (pool, mut bench) = (&mut pools().pop().unwrap(), Bench::new(heads, 2));
    bench.step(pool, &[Piece { position: 0, values: &numbers(1, heads.width()), blocks: &[2] }]);
}
