//! Low-rank updates of a layer's sites: rows of one adapter, and of an adapter each. What is read is in no cache.

use shoal_kernels::{Arena, Factors, Lora, LowRank, Pool, Precision, Rows, padded};

use crate::limits::Limits;
use crate::{COLD_BYTES, noise, rows_of, time};

/// Inputs and outputs of the sites of SmolLM2-135M: queries, keys and values; attention's output; gates and ups; down.
const SITES: [(usize, &[usize]); 4] = [(576, &[576, 192, 192]), (576, &[576]), (576, &[1536, 1536]), (1536, &[576])];

/// Prints bytes and multiply-adds a second for ranks 8 and 64.
pub(crate) fn measure(pool: &mut Pool, rows: &[usize], limits: &Limits) {
    for (rank, is_half) in [(8, false), (8, true), (64, false)] {
        for &(inputs, outputs) in &SITES {
            site(pool, (inputs, outputs), (rank, is_half), rows, limits);
        }
    }
}

fn site(
    pool: &mut Pool,
    (inputs, outputs): (usize, &[usize]),
    (rank, is_half): (usize, bool),
    rows: &[usize],
    limits: &Limits,
) {
    let mut updates = Vec::new();
    while updates.iter().map(LowRank::bytes).sum::<usize>() < COLD_BYTES {
        updates.push(update(inputs, outputs, rank, is_half));
    }
    let bytes = updates[0].bytes();
    let threads = pool.threads();
    print!("lora of rank {rank}, {} bits, {inputs} x {outputs:?}, {threads} threads:", if is_half { 16 } else { 32 });
    for &rows in rows {
        for adapters in [1, rows] {
            let (x, mut y) = (rows_of(rows, inputs), Rows::new(width(outputs)));
            y.resize(rows);
            let mut lora = Lora::default();
            lora.plan((0..rows).map(|row| (1, Some(row % adapters))));
            let mut next = 0;
            let seconds = time(|| {
                lora.add(pool, |adapter| Some(&updates[(next + adapter) % updates.len()]), &x, &mut y);
                next = (next + adapters) % updates.len();
            });
            let numbers = rank * (inputs * outputs.len() + outputs.iter().sum::<usize>());
            let read = (bytes * adapters) as f64 / seconds / 1e9;
            let flops = 2.0 * (numbers * rows) as f64 / seconds / 1e9;
            print!(
                "  {rows} rows of {adapters}: {:.1} us, {read:.1} GB/s ({:.0} %), {flops:.0} GFLOP/s ({:.0} %)",
                seconds * 1e6,
                100.0 * read / limits.read,
                100.0 * flops / limits.fma
            );
            if rows == 1 {
                break;
            }
        }
    }
    println!();
}

fn width(outputs: &[usize]) -> usize {
    let (last, before) = outputs.split_last().expect("a site has layers");
    before.iter().map(|outputs| padded(*outputs)).sum::<usize>() + last
}

fn update(inputs: usize, outputs: &[usize], rank: usize, is_half: bool) -> LowRank {
    let mut seed = 7;
    let mut values = |count: usize| -> Vec<f32> {
        let value = |_| (noise(&mut seed) >> if is_half { 20 } else { 0 }) as f32 / (1 << 23) as f32;
        (0..count).map(value).collect()
    };
    let factors: Vec<_> = outputs.iter().map(|outputs| (values(rank * inputs), values(outputs * rank))).collect();
    let mut parts = Vec::new();
    let mut at = 0;
    for (&outputs, (a, b)) in outputs.iter().zip(&factors) {
        parts.push(Factors { at, outputs, rank, scale: 0.5, a, b });
        at += padded(outputs);
    }
    LowRank::pack(&Arena::default(), Precision::Exact, inputs, &parts)
}
