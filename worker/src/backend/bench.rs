//! A backend on a test's bench: its logits, and the sequences it holds, by name. For tests of every backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_common::adapter::{self, Bundle, Geometry};
use shoal_common::ids::{LayerRange, TokenId};
use shoal_kernels::Precision;

use super::tables::{Name, Tables};
use super::{Backend, LogitsBuffer, LogitsOf, Slice};
use crate::adapters::{Adapter, LoadFor};

/// Blocks of a test's pool: 32 sequences of a few hundred tokens.
const BLOCKS: usize = 1024;

/// A file or folder of the golden data.
pub(crate) fn golden(relative: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(relative)
}

/// The default model.
#[expect(clippy::disallowed_methods, reason = "the path of a test's model is no setting of the server")]
pub(crate) fn real_model() -> PathBuf {
    let path = std::env::var_os("SHOAL_TEST_MODEL").map(PathBuf::from);
    path.expect("set SHOAL_TEST_MODEL to the file that scripts/fetch-model prints, or filter real_model out")
}

/// The lines of a golden file.
pub(crate) fn lines<Line: serde::de::DeserializeOwned>(relative: &str) -> Vec<Line> {
    let text = std::fs::read_to_string(golden(relative)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// A golden adapter for a model of `geometry`.
pub(crate) fn golden_adapter(relative: &str, geometry: Geometry, precision: Precision) -> Arc<Adapter> {
    let (config, weights) = adapter::read_directory(&golden(relative), u64::MAX).unwrap();
    let bundle = Bundle { config: &config, weights: &weights };
    let layers = LayerRange { begin: 0, end: geometry.layers };
    let bytes = bundle.to_bytes().unwrap();
    let load_for = LoadFor { geometry, layers, precision };
    Arc::new(Adapter::load(bundle.generation().unwrap(), &bytes, &load_for).unwrap())
}

/// A backend with its logits, and the sequences it holds.
pub(crate) struct Bench {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) tables: Tables,
    logits: LogitsBuffer,
}

/// A slice whose sequence has a name.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) sequence: Name,
    pub(crate) start: usize,
    pub(crate) tokens: &'a [TokenId],
    pub(crate) logits: LogitsOf,
}

impl Bench {
    pub(crate) fn over(mut backend: Box<dyn Backend>) -> Self {
        let tables = Tables::reserve(&mut *backend, BLOCKS);
        Self { backend, logits: LogitsBuffer::default(), tables }
    }

    pub(crate) fn name(&mut self) -> Name {
        self.tables.name()
    }

    /// One step.
    pub(crate) fn run(&mut self, parts: &[Part<'_>]) {
        parts.iter().for_each(|part| self.tables.grow(part.sequence, part.start + part.tokens.len()));
        let tables = &self.tables;
        let slices: Vec<Slice<'_>> =
            parts.iter().map(|part| tables.slice(part.sequence, part.start, part.tokens, part.logits)).collect();
        self.backend.forward(&slices, &mut self.logits).unwrap();
    }

    pub(crate) fn fork(&mut self, from: Name, length: usize) -> Name {
        self.tables.fork(&mut *self.backend, from, length).unwrap()
    }

    /// The logits of `rows` rows of the last step.
    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> Vec<Vec<f32>> {
        rows.map(|row| self.logits.row(row).to_vec()).collect()
    }

    /// The logits of every token of `tokens`, which continue `sequence` at `start`, computed `chunk` at a time.
    pub(crate) fn extend(&mut self, sequence: Name, start: usize, tokens: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for (index, tokens) in tokens.chunks(chunk).enumerate() {
            let start = start + index * chunk;
            self.run(&[Part { sequence, start, tokens, logits: LogitsOf::All }]);
            rows.extend(self.rows(0..tokens.len()));
        }
        rows
    }

    /// The logits of every token of a sequence of its own.
    pub(crate) fn alone(&mut self, tokens: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        self.alone_with(None, tokens, chunk)
    }

    /// The logits of every token of a sequence of its own that has this adapter.
    pub(crate) fn alone_with(
        &mut self,
        adapter: Option<&Arc<Adapter>>,
        tokens: &[TokenId],
        chunk: usize,
    ) -> Vec<Vec<f32>> {
        let sequence = self.tables.name_with(adapter);
        let rows = self.extend(sequence, 0, tokens, chunk);
        self.tables.release(sequence);
        rows
    }
}

pub(crate) fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

/// The raw log-probability of `token`.
pub(crate) fn logprob(row: &[f32], token: u32) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    f64::from(row[token as usize] - largest) - sum.ln()
}

/// Rows as bits: `-0.0` is not `0.0` here, and a NaN is itself.
pub(crate) fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

pub(crate) fn assert_same_bits(what: &str, ours: &[Vec<f32>], theirs: &[Vec<f32>]) {
    assert_eq!(ours.len(), theirs.len(), "{what}: rows");
    for (row, (ours, theirs)) in bits(ours).iter().zip(&bits(theirs)).enumerate() {
        let differ = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{what}: {differ} logits of row {row} differ");
    }
}

/// A model at a path, as a bench asks for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) model: &'a Path,
    pub(crate) threads: usize,
    pub(crate) instructions: Instructions,
    pub(crate) layers: Layers,
}

/// Which layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layers {
    All,
    /// From one up to another.
    Between(usize, usize),
}

impl Layers {
    /// The range in a model of `count` layers.
    pub(crate) fn range(self, count: usize) -> std::ops::Range<usize> {
        match self {
            Self::All => 0..count,
            Self::Between(begin, end) => begin..end,
        }
    }
}

/// On which instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// The best of this CPU.
    Best,
    /// The one with this number, from the portable one up; `None` from whoever opens it where there are not so many.
    Number(usize),
}
