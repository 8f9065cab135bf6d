//! The operators against their definitions in f64, on shapes that no golden model has: odd widths, biases, head
//! dimensions that fill no panel, more queries for a key than are computed together.

use candle_core::{Device, Tensor};

use super::super::attention::{Attention, Row};
use super::super::kernel::Machine;
use super::super::kv::{KvPool, KvShape};
use super::super::linear::Linear;
use super::super::swiglu::SwiGlu;
use crate::backend::BlockId;

/// Values between -1 and 1 without a pattern.
fn values(seed: u32, length: usize) -> Vec<f32> {
    let step = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let states = std::iter::successors(step(&seed), step).take(length);
    states.map(|state| (state >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn assert_close(what: &str, ours: f32, exact: f64) {
    assert!((f64::from(ours) - exact).abs() < 1e-5, "{what}: {ours} is not {exact}");
}

#[test]
fn a_linear_layer_of_odd_sizes_is_its_definition() {
    let (inputs, first, second) = (29, 21, 16);
    let weights = values(1, (first + second) * inputs);
    let bias = values(2, first + second);
    let (upper, lower) = weights.split_at(first * inputs);
    let linear = Linear::pack(Machine::detect(), inputs, &[upper, lower], Some(bias.clone()));
    for rows in 1..=14 {
        let x = values(rows as u32, rows * inputs);
        let mut y = vec![0.0; rows * (first + second)];
        linear.forward(&x, &mut y);
        for (x, y) in x.chunks(inputs).zip(y.chunks(first + second)) {
            for ((y, weights), bias) in y.iter().zip(weights.chunks(inputs)).zip(&bias) {
                assert_close(&format!("{rows} rows"), *y, dot(x, weights) + f64::from(*bias));
            }
        }
    }
    assert!(linear.weights_of(30).eq(weights[30 * inputs..31 * inputs].iter().copied()));
}

#[test]
fn attention_of_odd_heads_is_its_definition() {
    let (shape, heads, length) = (KvShape { kv_heads: 2, head_dim: 24 }, 18, 40);
    let width = shape.kv_heads * shape.head_dim;
    let (keys, stored) = (values(1, length * width), values(2, length * width));
    let (mut pool, table) = (KvPool::new(shape, 2), [BlockId(3), BlockId(0), BlockId(2)]);
    pool.reserve(4).unwrap();
    for position in 0..length {
        let range = position * width..(position + 1) * width;
        pool.write(1, table[position / 16], position % 16, &keys[range.clone()], &stored[range]);
    }
    let kv = pool.layer(1, &table);
    let rows: Vec<Row<'_>> = [0, 15, 16, 39].map(|position| Row { kv, position }).to_vec();
    let queries = values(3, rows.len() * heads * shape.head_dim);
    let tensor = Tensor::from_slice(&queries, (rows.len(), heads, shape.head_dim), &Device::Cpu).unwrap();
    let out = tensor.apply_op1_no_bwd(&Attention { machine: Machine::detect(), shape, rows: &rows }).unwrap();
    let out = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let heads_of_rows = queries.chunks(shape.head_dim).zip(out.chunks(shape.head_dim)).enumerate();
    for (index, (query, out)) in heads_of_rows {
        let (held, kv_head) = (rows[index / heads].position + 1, index % heads / (heads / shape.kv_heads));
        let at = |position: usize| position * width + kv_head * shape.head_dim;
        let score = |position| (dot(query, &keys[at(position)..][..shape.head_dim]) / 24f64.sqrt()).exp();
        let scores: Vec<f64> = (0..held).map(score).collect();
        let sum: f64 = scores.iter().sum();
        for (element, &ours) in out.iter().enumerate() {
            let mixed = |(position, score): (usize, &f64)| score / sum * f64::from(stored[at(position) + element]);
            assert_close(&format!("head {index}"), ours, scores.iter().enumerate().map(mixed).sum());
        }
    }
}

#[test]
fn a_gate_is_its_definition_even_far_out() {
    let gates = [0.0_f32, 1.0, -1.0, 20.0, -20.0, 200.0, -200.0];
    let x = [gates, [0.5; 7]].concat();
    let y = Tensor::from_slice(&x, (1, 14), &Device::Cpu).unwrap().apply_op1_no_bwd(&SwiGlu).unwrap();
    for (gate, y) in gates.into_iter().zip(y.flatten_all().unwrap().to_vec1::<f32>().unwrap()) {
        let gate = f64::from(gate);
        assert_close("gate", y, gate / (1.0 + (-gate).exp()) * 0.5);
    }
}
