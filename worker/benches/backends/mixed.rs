//! What a chunk of a prompt adds to a step of decodes: the price that the scheduler's pace must find out. All sequences have KV
//! of their own, so that none of it is in a cache because another one looked at it.

use std::time::Instant;

use shoal_common::ids::TokenId;
use shoal_worker::backend::{BLOCK_TOKENS, Backend, BlockId, LogitsBuffer, LogitsOf, Slice};

const DECODES: usize = 8;
/// Positions of a decode.
const DEEP: usize = 320;
/// Where the chunk begins, and how many tokens it has.
const STARTS: [usize; 3] = [0, 512, 1536];
const CHUNKS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// The best of as many steps is told.
const STEPS: usize = 25;

pub(crate) fn measure(backend: &mut dyn Backend, logits: &mut LogitsBuffer) -> Result<(), Box<dyn std::error::Error>> {
    let longest = STARTS[STARTS.len() - 1] + CHUNKS[CHUNKS.len() - 1];
    let (own, prompt) = ((DEEP + 1).div_ceil(BLOCK_TOKENS), longest.div_ceil(BLOCK_TOKENS));
    backend.reserve(DECODES * own + prompt)?;
    let table = |first: usize, blocks: usize| (first..first + blocks).map(|it| BlockId(it as u32)).collect::<Vec<_>>();
    let tables: Vec<Vec<BlockId>> = (0..DECODES).map(|stream| table(stream * own, own)).collect();
    let chunk_table = table(DECODES * own, prompt);
    let tokens: Vec<TokenId> = (0..longest as u32).map(|token| TokenId(token % 1000)).collect();
    let slice = |start: usize, count: usize, blocks, logits| Slice {
        start,
        tokens: &tokens[start..start + count],
        blocks,
        adapter: None,
        logits,
    };
    for blocks in &tables {
        backend.forward(&[slice(0, DEEP, blocks, LogitsOf::None)], logits)?;
    }
    backend.forward(&[slice(0, longest, &chunk_table, LogitsOf::None)], logits)?;
    let decodes: Vec<Slice<'_>> = tables.iter().map(|blocks| slice(DEEP, 1, blocks, LogitsOf::Last)).collect();
    let alone = best(backend, logits, &decodes)?;
    println!("a step of {DECODES} decodes, each {DEEP} deep: {:.2} ms", alone * 1e3);
    for start in STARTS {
        for count in CHUNKS {
            let mut slices = decodes.clone();
            slices.push(slice(start, count, &chunk_table, LogitsOf::None));
            let with = best(backend, logits, &slices)?;
            let each = (with - alone) / count as f64;
            println!("  with {count} tokens from {start} on: {:.2} ms, {:.3} ms for each", with * 1e3, each * 1e3);
        }
    }
    Ok(())
}

/// Seconds of the fastest of some equal steps.
fn best(
    backend: &mut dyn Backend,
    logits: &mut LogitsBuffer,
    slices: &[Slice<'_>],
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..STEPS {
        let begin = Instant::now();
        backend.forward(slices, logits)?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(best)
}
