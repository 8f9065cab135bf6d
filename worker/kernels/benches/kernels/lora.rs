//! Products at a layer's sites with low-rank updates beside the same products alone: rows of one adapter, of four and of an
//! adapter each. What is read is in no cache.

use std::time::Instant;

use shoal_kernels::{Activations, Arena, Encoding, Factors, Lora, LowRank, Pool, Precision, Rows, Write, padded};

use crate::limits::Limits;
use crate::{COLD_BYTES, TIME, cold_matrices, noise, rows_of};

/// Inputs and outputs of the sites of SmolLM2-135M: queries, keys and values; attention's output; gates and ups; down.
const SITES: [(usize, &[usize]); 4] = [(576, &[576, 192, 192]), (576, &[576]), (576, &[1536, 1536]), (1536, &[576])];

/// Calls of one kind in a row.
const CALLS: u32 = 10;

/// Prints what ranks 8 and 64 add to the time of a product, and bytes a second of that.
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
    let (mut updates, arena) = (Vec::new(), Arena::default());
    let matrices = cold_matrices(pool, inputs, outputs, Encoding::NibblesMin);
    while updates.iter().map(LowRank::bytes).sum::<usize>() < COLD_BYTES {
        updates.push(update(&arena, inputs, outputs, rank, is_half));
    }
    let bytes = updates[0].bytes();
    let threads = pool.threads();
    print!("lora of rank {rank}, {} bits, {inputs} x {outputs:?}, {threads} threads:", if is_half { 16 } else { 32 });
    for &rows in rows {
        let (x, mut y) = (rows_of(rows, inputs), Rows::new(matrices[0].width()));
        let mut quants = Activations::new(inputs);
        quants.quantise(pool, &x);
        y.resize(rows);
        let mut mixes: Vec<usize> = [1, 4, rows].into_iter().filter(|&mix| mix <= rows).collect();
        mixes.dedup();
        let mut loras: Vec<Lora> = mixes.iter().map(|&mix| plan(rows, mix)).collect();
        let (mut next_matrix, mut next) = (0, 0);
        let seconds = in_turn(mixes.len() + 1, |which| {
            let update = |adapter: usize| updates.get(adapter % updates.len());
            let begin = next;
            let these = which.checked_sub(1).map(|mix| {
                next = begin + mixes[mix];
                loras[mix].updates(|adapter| update(begin + adapter), &x)
            });
            matrices[next_matrix].multiply_adapted(pool, &quants, &mut y, Write::Set, these);
            next_matrix = (next_matrix + 1) % matrices.len();
        });
        let alone = seconds[0];
        print!("  {rows} rows {:.1} us", alone * 1e6);
        for (adapters, seconds) in mixes.iter().zip(&seconds[1..]) {
            let added = seconds - alone;
            let read = (bytes * adapters) as f64 / added / 1e9;
            print!(
                ", of {adapters} +{:.1} us (+{:.0} %; {read:.1} GB/s, {:.0} %)",
                added * 1e6,
                100.0 * added / alone,
                100.0 * read / limits.read,
            );
        }
    }
    println!();
}

fn plan(rows: usize, adapters: usize) -> Lora {
    let mut lora = Lora::default();
    lora.plan((0..rows).map(|row| (1, Some(row % adapters))));
    lora
}

/// Medians of the seconds of `kinds` kinds of a call, which take turns: what the machine does beside is the same for all.
fn in_turn(kinds: usize, mut call: impl FnMut(usize)) -> Vec<f64> {
    let mut seconds = vec![Vec::new(); kinds];
    let begin = Instant::now();
    while begin.elapsed() < 3 * TIME || seconds[0].len() < 5 {
        for (kind, seconds) in seconds.iter_mut().enumerate() {
            let begin = Instant::now();
            (0..CALLS).for_each(|_| call(kind));
            seconds.push(begin.elapsed().as_secs_f64() / f64::from(CALLS));
        }
    }
    let median = |seconds: &mut Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    seconds.iter_mut().map(median).collect()
}

fn update(arena: &Arena, inputs: usize, outputs: &[usize], rank: usize, is_half: bool) -> LowRank {
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
    LowRank::pack(arena, Precision::Exact, inputs, &parts)
}
