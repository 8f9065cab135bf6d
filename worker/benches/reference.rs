//! Tokens per second of the reference backend: prefill of 512 tokens, then decodes of 1, 8 and 32 sequences together.
//!
//! `SHOAL_TEST_MODEL=/path/to/model.gguf cargo bench -p shoal-worker --bench reference`

use std::path::PathBuf;
use std::time::Instant;

use shoal_common::ids::TokenId;
use shoal_worker::backend::{Backend, LogitsBuffer, LogitsOf, SequenceId, Slice};
use shoal_worker::reference::Reference;
use shoal_worker::weights::ModelFile;

const PREFILL: usize = 512;
const STEPS: usize = 16;

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
    let root = SequenceId(0);
    let begin = Instant::now();
    backend.forward(&[Slice { sequence: root, start: 0, tokens: &prompt, logits: LogitsOf::Last }], &mut logits)?;
    println!("prefill {PREFILL}: {:.0} tokens/s", PREFILL as f64 / begin.elapsed().as_secs_f64());
    for batch in [1, 8, 32] {
        let rate = decode(&mut backend, &mut logits, root, batch)?;
        println!("decode of {batch} together, {PREFILL} tokens deep: {rate:.1} tokens/s");
    }
    Ok(())
}

fn decode(
    backend: &mut Reference,
    logits: &mut LogitsBuffer,
    root: SequenceId,
    batch: u64,
) -> Result<f64, Box<dyn std::error::Error>> {
    let sequences: Vec<SequenceId> = (1..=batch).map(SequenceId).collect();
    sequences.iter().try_for_each(|&sequence| backend.fork(root, sequence, PREFILL))?;
    let begin = Instant::now();
    for step in 0..STEPS {
        let tokens = [TokenId(100 + step as u32)];
        let slice = |&sequence| Slice { sequence, start: PREFILL + step, tokens: &tokens, logits: LogitsOf::Last };
        let slices: Vec<Slice<'_>> = sequences.iter().map(slice).collect();
        backend.forward(&slices, logits)?;
    }
    let rate = (STEPS * sequences.len()) as f64 / begin.elapsed().as_secs_f64();
    sequences.into_iter().for_each(|sequence| backend.release(sequence));
    Ok(rate)
}
