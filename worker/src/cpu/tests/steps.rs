//! What a step costs beside its arithmetic: nothing is allocated once the largest step so far has been seen.

use shoal_common::ids::TokenId;
use shoal_kernels::Precision;

use super::open;
use crate::backend::bench::{Instructions, Layers, Setup, golden, golden_adapter};
use crate::backend::contract::TINY_GEOMETRY;
use crate::backend::{BlockId, LogitsBuffer, LogitsOf, Slice};

/// What is counted is the caller's: with one thread, all there is.
const THREADS: [usize; 2] = [1, 2];

#[test]
fn a_step_with_adapters_allocates_nothing_after_the_first_of_its_size() {
    THREADS.into_iter().for_each(step_with_adapters);
}

fn step_with_adapters(threads: usize) {
    let setup = Setup {
        model: &golden("tiny/gguf/tiny-q4_1.gguf"),
        threads,
        instructions: Instructions::Best,
        layers: Layers::All,
    };
    let mut backend = open(setup).unwrap();
    backend.reserve(64).unwrap();
    let tables: Vec<Vec<BlockId>> = (0..9).map(|at| (7 * at..7 * at + 7).map(BlockId).collect()).collect();
    let adapters =
        ["tiny/tiny-qv", "tiny/tiny-all"].map(|name| golden_adapter(name, TINY_GEOMETRY, Precision::Fixed16));
    let (prompt, mut logits) = (vec![TokenId(5); 24], LogitsBuffer::default());
    let mut step = |number: usize| {
        // The step is as large as before, but who has which adapter changes.
        let adapter = |at: usize| [None, Some(&*adapters[0]), Some(&*adapters[1])][(number + at) % 3];
        let slice = |at: usize| Slice {
            start: if at < 8 { 17 } else { 0 },
            tokens: if at < 8 { &prompt[..1] } else { &prompt },
            blocks: &tables[at],
            adapter: adapter(at),
            logits: LogitsOf::All,
        };
        let slices: [Slice<'_>; 9] = std::array::from_fn(slice);
        allocation_counter::measure(|| backend.forward(&slices, &mut logits).unwrap()).count_total
    };
    (0..3).for_each(|number| {
        step(number);
    });
    assert_eq!((3..30).map(&mut step).sum::<u64>(), 0);
}

#[test]
fn a_step_allocates_nothing_after_the_first_of_its_size() {
    // Tied and not, with biases and with norms of the heads; the embedding from blocks and from floats.
    let files =
        ["tiny/gguf/tiny-q4_1.gguf", "families/llama3/base", "families/qwen2/qwen2-q8_0.gguf", "families/qwen3/base"];
    for (file, threads) in files.into_iter().flat_map(|file| THREADS.map(|threads| (file, threads))) {
        let setup = Setup { model: &golden(file), threads, instructions: Instructions::Best, layers: Layers::All };
        let mut backend = open(setup).unwrap();
        backend.reserve(64).unwrap();
        let tables: Vec<Vec<BlockId>> = (0..9).map(|at| (7 * at..7 * at + 7).map(BlockId).collect()).collect();
        let (prompt, mut logits) = (vec![TokenId(5); 24], LogitsBuffer::default());
        let mut step = |number: usize| {
            let decode = |at: usize| Slice {
                start: number,
                tokens: &prompt[..1],
                blocks: &tables[at],
                adapter: None,
                logits: LogitsOf::Last,
            };
            let chunk = Slice { start: 0, tokens: &prompt, blocks: &tables[8], adapter: None, logits: LogitsOf::All };
            let slices: [Slice<'_>; 9] = std::array::from_fn(|at| if at < 8 { decode(at) } else { chunk });
            let counted = allocation_counter::measure(|| backend.forward(&slices, &mut logits).unwrap());
            counted.count_total
        };
        // The first steps find out how much is needed; a longer block table, once in 16 steps, is a larger step.
        (0..17).for_each(|number| {
            step(number);
        });
        let later: u64 = (17..32).map(&mut step).sum();
        assert_eq!(later, 0, "{file}, {threads} threads");
    }
}
