//! Tokens per second of the reference backend: prefill of 512 tokens, then decodes of 1, 8 and 32 sequences together.
//!
//! `SHOAL_TEST_MODEL=/path/to/model.gguf cargo bench -p shoal-worker --bench reference`

use std::path::PathBuf;
use std::time::Instant;

use shoal_common::ids::TokenId;
use shoal_worker::backend::{BLOCK_TOKENS, Backend, BlockId, LogitsBuffer, LogitsOf, Slice};
use shoal_worker::reference::Reference;
use shoal_worker::weights::ModelFile;

const PREFILL: usize = 512;
const STEPS: usize = 16;
/// Blocks of the prompt, which all sequences share, and of a sequence's own steps.
const SHARED: usize = PREFILL / BLOCK_TOKENS;
const OWN: usize = STEPS.div_ceil(BLOCK_TOKENS);
const MOST: usize = 32;

#[expect(clippy::disallowed_methods, reason = "the path of a benchmark's model is no setting of the server")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo test --benches` runs this without a model: it then only has to build.
    let Some(path) = std::env::var_os("SHOAL_TEST_MODEL").map(PathBuf::from) else {
        println!("set SHOAL_TEST_MODEL to a model file to measure");
        return Ok(());
    };
    let threads = std::thread::available_parallelism()?.get();
    let begin = Instant::now();
    let file = ModelFile::open(&path)?;
    let mut backend = Reference::load(&file, threads)?;
    println!("load: {:.2} s, {threads} threads", begin.elapsed().as_secs_f64());
    let mut logits = LogitsBuffer::default();
    let vocab = file.config.vocab as u32;
    let prompt: Vec<TokenId> = (0..PREFILL as u32).map(|i| TokenId(i * 7919 % vocab)).collect();
    backend.reserve(SHARED + MOST * OWN)?;
    let root = table(0);
    let begin = Instant::now();
    backend.forward(&[Slice { start: 0, tokens: &prompt, blocks: &root, logits: LogitsOf::Last }], &mut logits)?;
    println!("prefill {PREFILL}: {:.0} tokens/s", PREFILL as f64 / begin.elapsed().as_secs_f64());
    for batch in [1, 8, MOST] {
        let rate = decode(&mut backend, &mut logits, batch)?;
        println!("decode of {batch} together, {PREFILL} tokens deep: {rate:.1} tokens/s");
    }
    Ok(())
}

fn decode(backend: &mut Reference, logits: &mut LogitsBuffer, batch: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let tables: Vec<Vec<BlockId>> = (0..batch).map(table).collect();
    let begin = Instant::now();
    for step in 0..STEPS {
        let tokens = [TokenId(100 + step as u32)];
        let slice = |blocks| Slice { start: PREFILL + step, tokens: &tokens, blocks, logits: LogitsOf::Last };
        let slices: Vec<Slice<'_>> = tables.iter().map(Vec::as_slice).map(slice).collect();
        backend.forward(&slices, logits)?;
    }
    Ok((STEPS * batch) as f64 / begin.elapsed().as_secs_f64())
}

/// The blocks of a sequence: the prompt's, then its own.
fn table(sequence: usize) -> Vec<BlockId> {
    let own = SHARED + sequence * OWN;
    (0..SHARED).chain(own..own + OWN).map(|block| BlockId(block as u32)).collect()
}
