//! Tokens per second of a backend: prefill of 512 tokens, then decodes of 1, 8 and 32 sequences together; for one sequence
//! also the bytes of weights that a second of decoding reads.
//!
//! `SHOAL_TEST_MODEL=/path/to/model.gguf cargo bench -p shoal-worker --bench backends`; `-- reference` measures the
//! reference backend instead of the cpu backend, `-- q4_0` quantises a model of floats to 4 bits, `-- 1` takes one thread,
//! `-- one` decodes only one sequence, `-- adapters` compares sequences with adapters to those without instead, `-- mixed`
//! tells what a chunk of a prompt adds to a step of decodes.

mod adapters;
mod mixed;

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Instant;

use shoal_common::config::Quant;
use shoal_common::ids::TokenId;
use shoal_worker::adapters::Adapter;
use shoal_worker::backend::{BLOCK_TOKENS, Backend, BlockId, LogitsBuffer, LogitsOf, Slice};
use shoal_worker::cpu::Cpu;
use shoal_worker::reference::Reference;
use shoal_worker::weights::ModelFile;

const PREFILL: usize = 512;
const STEPS: usize = 32;
/// The best of as many runs is told.
const RUNS: usize = 5;
/// Blocks of the prompt, which all sequences share, and of a sequence's own steps.
const SHARED: usize = PREFILL / BLOCK_TOKENS;
const OWN: usize = STEPS.div_ceil(BLOCK_TOKENS);
const MOST: usize = 64;

#[expect(clippy::disallowed_methods, reason = "the path of a benchmark's model is no setting of the server")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo test --benches` runs this without a model: it then only has to build.
    let Some(path) = std::env::var_os("SHOAL_TEST_MODEL").map(PathBuf::from) else {
        println!("set SHOAL_TEST_MODEL to a model file to measure");
        return Ok(());
    };
    let is_asked = |word: &str| std::env::args().any(|argument| argument == word);
    let threads = if is_asked("1") { NonZero::<usize>::MIN } else { std::thread::available_parallelism()? };
    let quant = if is_asked("q4_0") { Quant::Q4_0 } else { Quant::Q8_0 };
    let begin = Instant::now();
    let file = ModelFile::open(&path)?;
    let (mut backend, bytes): (Box<dyn Backend>, usize) = if is_asked("reference") {
        (Box::new(Reference::load(&file, threads.get())?), 0)
    } else {
        let cpu = Cpu::load(&file, threads, quant)?;
        println!("{}", cpu.isa());
        let bytes = cpu.weight_bytes();
        (Box::new(cpu), bytes)
    };
    println!(
        "load: {:.2} s, {threads} threads, {:.1} MB of weights",
        begin.elapsed().as_secs_f64(),
        bytes as f64 / 1e6
    );
    let mut logits = LogitsBuffer::default();
    if is_asked("mixed") {
        return mixed::measure(&mut *backend, &mut logits);
    }
    let vocab = file.config.vocab as u32;
    let prompt: Vec<TokenId> = (0..PREFILL as u32).map(|i| TokenId(i * 7919 % vocab)).collect();
    backend.reserve(SHARED + MOST * OWN)?;
    let root = table(0);
    let prefill = best(|| {
        let slice = Slice { start: 0, tokens: &prompt, blocks: &root, adapter: None, logits: LogitsOf::Last };
        backend.forward(&[slice], &mut logits)?;
        Ok(PREFILL)
    })?;
    println!("prefill {PREFILL}: {prefill:.0} tokens/s");
    if is_asked("adapters") {
        return adapters::measure(&mut *backend, &mut logits, &file.config.geometry(), &prompt);
    }
    let batches = [1, 8, 32].into_iter().filter(|batch| !is_asked("one") || *batch == 1);
    for batch in batches {
        let rate = best(|| decode(&mut *backend, &mut logits, batch, |_| None))?;
        let read =
            if batch == 1 { format!(", {:.1} GB/s of weights", rate * bytes as f64 / 1e9) } else { String::new() };
        println!("decode of {batch} together, {PREFILL} tokens deep: {rate:.1} tokens/s{read}");
    }
    Ok(())
}

/// The best rate of some runs, each of which says how many tokens it computed.
fn best(mut run: impl FnMut() -> Result<usize, Box<dyn std::error::Error>>) -> Result<f64, Box<dyn std::error::Error>> {
    let mut best = 0f64;
    for _ in 0..RUNS {
        best = best.max(rate(&mut run)?);
    }
    Ok(best)
}

/// The rate of a run.
fn rate(run: impl FnOnce() -> Result<usize, Box<dyn std::error::Error>>) -> Result<f64, Box<dyn std::error::Error>> {
    let begin = Instant::now();
    Ok(run()? as f64 / begin.elapsed().as_secs_f64())
}

fn decode<'a>(
    backend: &mut dyn Backend,
    logits: &mut LogitsBuffer,
    batch: usize,
    adapter: impl Fn(usize) -> Option<&'a Adapter>,
) -> Result<usize, Box<dyn std::error::Error>> {
    let tables: Vec<Vec<BlockId>> = (0..batch).map(table).collect();
    for step in 0..STEPS {
        let tokens = [TokenId(100 + step as u32)];
        let start = PREFILL + step;
        let slices: Vec<Slice<'_>> = tables
            .iter()
            .enumerate()
            .map(|(stream, blocks)| {
                let adapter = adapter(stream);
                Slice { start, tokens: &tokens, blocks, adapter, logits: LogitsOf::Last }
            })
            .collect();
        backend.forward(&slices, logits)?;
    }
    Ok(STEPS * batch)
}

/// The blocks of a sequence: the prompt's, then its own.
fn table(sequence: usize) -> Vec<BlockId> {
    let own = SHARED + sequence * OWN;
    (0..SHARED).chain(own..own + OWN).map(|block| BlockId(block as u32)).collect()
}
