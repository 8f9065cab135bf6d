//! The matmul and attention kernels against the machine's limits, measured by the same binary in the same run: bytes of
//! weights a second against plain reading, multiply-adds a second against the bare dot-product and multiply-add
//! instructions.
//!
//! `cargo bench -p shoal-kernels --bench kernels`; numbers after `--` choose the rows (default 1 8 32 512); 0 is
//! attention alone, `lora` products with low-rank updates beside products alone, `quantise` what makes rows into left
//! sides of products alone, and an instruction set by its name (`amx-int8`) its products alone.

use std::hint::black_box;
use std::num::NonZero;
use std::time::{Duration, Instant};

use shoal_kernels::{
    Activations, Arena, Attention, Encoding, Heads, Isa, KvPool, KvShape, Matrix, Pool, Rope, Rows, Spans, Write,
};

mod limits;
mod lora;

/// Inputs and outputs of the layers of SmolLM2-135M and of a 1B llama.
const SHAPES: [(usize, usize); 7] =
    [(576, 960), (576, 3072), (1536, 576), (576, 49152), (2048, 3072), (2048, 16384), (8192, 2048)];
const ENCODINGS: [Encoding; 4] = [Encoding::Nibbles, Encoding::NibblesMin, Encoding::Bytes, Encoding::SixBits];
/// Weights that are passed over before any is read again: larger than every cache.
const COLD_BYTES: usize = 160 << 20;
/// Repetitions last as long as this, and the best of five is taken.
const TIME: Duration = Duration::from_millis(120);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let rows = if rows.is_empty() { vec![1, 8, 32, 512] } else { rows };
    // `cargo test --benches` runs this without `--bench`: it then only has to build.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let threads = std::thread::available_parallelism()?;
    let limits = limits::measure(threads);
    println!("{limits}");
    if std::env::args().any(|argument| argument == "lora") {
        lora::measure(&mut Pool::new(threads, Isa::best())?, &rows, &limits);
        lora::measure(&mut Pool::new(NonZero::<usize>::MIN, Isa::best())?, &rows, &limits);
        return Ok(());
    }
    if std::env::args().any(|argument| argument == "quantise") {
        quantise(&mut Pool::new(threads, Isa::best())?, &rows, &limits);
        return Ok(());
    }
    let is_named = |isa: &Isa| std::env::args().any(|argument| argument == isa.to_string());
    let (mut isas, named): (Vec<_>, Vec<_>) = Isa::available().into_iter().partition(|isa| !is_named(isa));
    let has_named = !named.is_empty();
    if has_named {
        isas = named;
    } else {
        isas.remove(0);
    }
    for isa in isas.into_iter().filter(|_| rows != [0]) {
        let mut pool = Pool::new(threads, isa)?;
        for &(inputs, outputs) in &SHAPES {
            for encoding in ENCODINGS {
                matmul(&mut pool, (inputs, outputs), encoding, &rows, &limits);
            }
        }
    }
    if has_named {
        return Ok(());
    }
    let mut pool = Pool::new(threads, Isa::best())?;
    for heads in [Heads { queries: 9, kv: 3, dim: 64 }, Heads { queries: 32, kv: 8, dim: 64 }] {
        for work in [[1, 1, 256], [1, 1, 2048], [8, 1, 1024], [32, 1, 256], [1, 8, 1800], [1, 512, 0], [1, 512, 1536]] {
            attention(&mut pool, heads, work, &limits);
        }
    }
    if rows != [0] {
        lora::measure(&mut pool, &rows, &limits);
        quantise(&mut pool, &rows, &limits);
    }
    let mut one = Pool::new(NonZero::<usize>::MIN, Isa::best())?;
    splits(&mut pool);
    splits(&mut one);
    Ok(())
}

/// The best of five times per call of `work`, in seconds.
fn time(mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (begin, mut calls) = (Instant::now(), 0);
        while begin.elapsed() < TIME / 5 || calls < 2 {
            work();
            calls += 1;
        }
        best = best.min(begin.elapsed().as_secs_f64() / f64::from(calls));
    }
    best
}

/// Numbers that follow no pattern a kernel could profit from.
fn noise(seed: &mut u32) -> u32 {
    *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *seed >> 8
}

fn rows_of(count: usize, width: usize) -> Rows {
    let (mut rows, mut seed) = (Rows::new(width), 7);
    rows.resize(count);
    for row in 0..count {
        rows.row_mut(row).iter_mut().for_each(|x| *x = noise(&mut seed) as f32 / (1 << 23) as f32 - 1.0);
    }
    rows
}

/// As many matrices as are passed over before any is read again.
fn cold_matrices(pool: &mut Pool, inputs: usize, parts: &[usize], encoding: Encoding) -> Vec<Matrix> {
    let (mut matrices, arena) = (Vec::new(), Arena::default());
    while matrices.iter().map(Matrix::bytes).sum::<usize>() < COLD_BYTES {
        let mut matrix = Matrix::new(inputs, &arena);
        for &outputs in parts {
            matrix.push(pool, encoding, outputs, None, |output, weights| {
                let mut seed = output as u32;
                weights.quants.iter_mut().for_each(|quant| *quant = (noise(&mut seed) & 15) as u8);
                weights.scales.fill(1.0);
                weights.supers.fill(0.01);
                weights.minima.fill(-0.05);
            });
        }
        matrices.push(matrix);
    }
    matrices
}

fn matmul(
    pool: &mut Pool,
    (inputs, outputs): (usize, usize),
    encoding: Encoding,
    rows: &[usize],
    limits: &limits::Limits,
) {
    let matrices = cold_matrices(pool, inputs, &[outputs], encoding);
    print!("{:12} {inputs:5} x {outputs:5} {encoding:?}:", pool.isa().to_string());
    for &rows in rows {
        let (x, mut y) = (rows_of(rows, inputs), Rows::new(outputs));
        y.resize(rows);
        let mut quantised = Activations::new(inputs);
        quantised.quantise(pool, &x);
        let mut next = 0;
        let seconds = time(|| {
            matrices[next].multiply(pool, &quantised, &mut y, Write::Set);
            next = (next + 1) % matrices.len();
        });
        let bytes = matrices[0].bytes() as f64 / seconds / 1e9;
        let operations = 2.0 * (inputs * outputs * rows) as f64 / seconds / 1e9;
        print!(
            "  {rows} rows {bytes:.1} GB/s ({:.0} %) {operations:.0} GOP/s ({:.0} %)",
            100.0 * bytes / limits.read,
            100.0 * operations / limits.dots
        );
    }
    println!();
}

/// What comes before each product of a layer: norms of the hidden rows, and gated rows of the inner ones, of SmolLM2-135M and of
/// a 1B llama.
fn quantise(pool: &mut Pool, rows: &[usize], limits: &limits::Limits) {
    for (hidden, inner) in [(576, 1536), (2048, 8192)] {
        for &rows in rows {
            let weights = vec![0.5; hidden];
            let (x, mut normed) = (rows_of(rows, hidden), Activations::new(hidden));
            let norms = time(|| normed.quantise_normed(pool, &x, (&weights, 1e-5), None));
            let (x, mut gated) = (rows_of(rows, 2 * inner), Activations::new(inner));
            let gates = time(|| gated.quantise_gated(pool, &x, None));
            let read = |values: usize, seconds: f64| {
                let read = (size_of::<f32>() * values * rows) as f64 / seconds / 1e9;
                format!("{:.1} us, {read:.1} GB/s ({:.0} %)", seconds * 1e6, 100.0 * read / limits.read)
            };
            let (norms, gates) = (read(hidden, norms), read(2 * inner, gates));
            println!("quantise {rows} rows: norms of {hidden} {norms}, gated of {inner} {gates}");
        }
    }
}

/// `streams` sequences of as many positions, `rows` of each at `position`; layer after layer, so that no cache holds what is
/// read.
fn attention(pool: &mut Pool, heads: Heads, [streams, rows, position]: [usize; 3], limits: &limits::Limits) {
    let reach = position + rows;
    let table = reach.div_ceil(16);
    let mut shape = KvShape { layers: 1, kv_heads: heads.kv, head_dim: heads.dim };
    shape.layers = (COLD_BYTES / (shape.bytes_per_position() * reach * streams)).clamp(1, 64);
    let mut kv = KvPool::new(shape, table * streams).expect("some hundred megabytes");
    let mut rope = Rope::new(vec![0.1; heads.dim / 2]);
    rope.reach(reach);
    let mut spans = Spans::default();
    let blocks = |stream: usize| (stream * table) as u32..((stream + 1) * table) as u32;
    for (layer, stream) in (0..shape.layers).flat_map(|layer| (0..streams).map(move |stream| (layer, stream))) {
        // In pieces, as a prompt would be.
        for at in (0..reach).step_by(512) {
            let piece = (reach - at).min(512);
            spans.clear();
            spans.push(piece, at, blocks(stream));
            let mut projections = rows_of(piece, heads.width());
            rope.store(pool, &mut projections, &spans, heads, None, (&mut kv, layer));
        }
    }
    spans.clear();
    (0..streams).for_each(|stream| spans.push(rows, position, blocks(stream)));
    let (projections, mut out) = (rows_of(streams * rows, heads.width()), Rows::new(heads.queries * heads.dim));
    out.resize(streams * rows);
    let mut attention = Attention::new(heads);
    attention.plan(pool, &spans);
    let mut layer = 0;
    let seconds = time(|| {
        attention.compute(pool, &projections, &spans, (&kv, layer % shape.layers), &mut out);
        layer += 1;
    });
    let looks: usize = (position + 1..=reach).sum::<usize>() * streams;
    let operations = 4.0 * (looks * heads.queries * heads.dim) as f64 / seconds / 1e9;
    let bytes = (streams * reach * shape.bytes_per_position() / shape.layers) as f64 / seconds / 1e9;
    println!(
        "attention {} heads over {}, {streams} x {rows} rows at {position}: {:.1} us, {operations:.0} GFLOP/s ({:.0} %), \
         {bytes:.1} GB/s ({:.0} %)",
        heads.queries,
        heads.kv,
        seconds * 1e6,
        100.0 * operations / limits.fma,
        100.0 * bytes / limits.read,
    );
}

fn splits(pool: &mut Pool) {
    let seconds = time(|| {
        for _ in 0..1000 {
            pool.split(2, 1, |_, range| {
                black_box(range);
            });
        }
    });
    println!("a split on {} threads: {:.0} ns", pool.threads(), seconds * 1e6);
}
