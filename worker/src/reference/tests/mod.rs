//! The promises of the reference backend: it agrees with the goldens, and its bits depend on nothing but the tokens
//! before.

mod bits;
mod families;
mod goldens;
mod operators;
mod real_model;
mod refusals;

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use shoal_common::ids::TokenId;

use super::Reference;
use super::kernel::Machine;
use crate::backend::tables::{Name, Tables};
use crate::backend::{Backend, LogitsBuffer, LogitsOf, Slice};
use crate::weights::ModelFile;

/// The tiny golden model in every format.
const TINY: [&str; 4] =
    ["tiny/base", "tiny/gguf/tiny-f32.gguf", "tiny/gguf/tiny-q4_1.gguf", "tiny/gguf/tiny-q8_0.gguf"];

fn golden(relative: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(relative)
}

/// The lines of a golden file.
fn lines<Line: DeserializeOwned>(relative: &str) -> Vec<Line> {
    let text = std::fs::read_to_string(golden(relative)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// Blocks of a test's pool: 32 sequences of a few hundred tokens.
const BLOCKS: usize = 1024;

/// A backend with its logits, and the sequences it holds.
struct Bench {
    backend: Reference,
    logits: LogitsBuffer,
    tables: Tables,
}

/// A slice whose sequence has a name.
#[derive(Clone, Copy)]
struct Part<'a> {
    sequence: Name,
    start: usize,
    tokens: &'a [TokenId],
    logits: LogitsOf,
}

impl Bench {
    fn open(path: &std::path::Path, threads: usize) -> Self {
        Self::over(Reference::load(&ModelFile::open(path).unwrap(), threads).unwrap())
    }

    fn over(mut backend: Reference) -> Self {
        let tables = Tables::reserve(&mut backend, BLOCKS);
        Self { backend, logits: LogitsBuffer::default(), tables }
    }

    fn tiny(format: &str, threads: usize) -> Self {
        Self::open(&golden(format), threads)
    }

    fn portable(format: &str) -> Self {
        let file = ModelFile::open(&golden(format)).unwrap();
        Self::over(Reference::load_on(&file, 1, Machine::portable()).unwrap())
    }

    fn name(&mut self) -> Name {
        self.tables.name()
    }

    /// One step.
    fn run(&mut self, parts: &[Part<'_>]) {
        parts.iter().for_each(|part| self.tables.grow(part.sequence, part.start + part.tokens.len()));
        let slices = parts.iter().map(|part| self.tables.slice(part.sequence, part.start, part.tokens, part.logits));
        let slices: Vec<Slice<'_>> = slices.collect();
        self.backend.forward(&slices, &mut self.logits).unwrap();
    }

    fn fork(&mut self, from: Name, length: usize) -> Name {
        self.tables.fork(&mut self.backend, from, length).unwrap()
    }

    /// The logits of `rows` rows of the last step.
    fn rows(&self, rows: std::ops::Range<usize>) -> Vec<Vec<f32>> {
        rows.map(|row| self.logits.row(row).to_vec()).collect()
    }

    /// The logits of every token of `tokens`, which continue `sequence` at `start`, computed `chunk` at a time.
    fn extend(&mut self, sequence: Name, start: usize, tokens: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for (index, tokens) in tokens.chunks(chunk).enumerate() {
            let start = start + index * chunk;
            self.run(&[Part { sequence, start, tokens, logits: LogitsOf::All }]);
            rows.extend(self.rows(0..tokens.len()));
        }
        rows
    }

    /// The logits of every token of a sequence of its own.
    fn alone(&mut self, tokens: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let sequence = self.name();
        let rows = self.extend(sequence, 0, tokens, chunk);
        self.tables.release(sequence);
        rows
    }

    /// Greedy answers, up to the first step whose golden margin is below `margin`, equal `golden`.
    fn assert_greedy(&mut self, what: &str, prompt: &[u32], golden: &[u32], margins: &[f32], margin: f32) {
        let sequence = self.name();
        let mut row = self.extend(sequence, 0, &tokens(prompt), usize::MAX).pop().unwrap();
        for (step, (&expected, &by)) in golden.iter().zip(margins).enumerate() {
            if by < margin {
                break;
            }
            assert_eq!(argmax(&row), expected as usize, "{what}: step {step}, margin {by}");
            row = self.extend(sequence, prompt.len() + step, &[TokenId(expected)], 1).remove(0);
        }
        self.tables.release(sequence);
    }
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

/// Rows as bits: `-0.0` is not `0.0` here, and a NaN is itself.
fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

fn assert_same_bits(what: &str, ours: &[Vec<f32>], theirs: &[Vec<f32>]) {
    assert_eq!(ours.len(), theirs.len(), "{what}: rows");
    for (row, (ours, theirs)) in bits(ours).iter().zip(&bits(theirs)).enumerate() {
        let differ = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{what}: {differ} logits of row {row} differ");
    }
}
