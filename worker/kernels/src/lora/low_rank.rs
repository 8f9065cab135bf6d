//! An adapter's update of linear layers that share their inputs, packed once in the order in which a step reads it.
//!
//! The A of all layers lie below each other, in **tiles** of up to four rows: the same 16 inputs of each row side by side,
//! then the next 16. B lies in **panels** of up to 64 outputs of a layer: all outputs of the first rank, then of the next.
//! A tile or a panel is one run of memory, and so are all of them; ranks are never padded.

use std::ops::Range;

use super::numbers::{Format, Numbers, Precision};
use crate::memory::Arena;
use crate::rows::Rows;
use crate::simd::LANES;

/// Rows of A that are reduced together: with two rows of inputs they are the eight sums that hide the latency of
/// multiply-adds.
pub(super) const TILE: usize = 4;

/// Vectors of outputs of a panel: as many sums.
pub(crate) const PANEL: usize = 4;

/// The update of one linear layer, to be packed.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// Where the layer's outputs begin in a row of outputs: at a whole block.
    pub at: usize,
    /// How many outputs.
    pub outputs: usize,
    /// Rows of A.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: &'a [f32],
    /// `[outputs, rank]`
    pub b: &'a [f32],
}

/// The update of linear layers that share their inputs.
#[derive(Debug)]
pub struct LowRank {
    inputs: usize,
    parts: Vec<Part>,
    /// `[tiles, vectors of inputs, rows of the tile]`
    a: Numbers,
    /// For each part `[panels, rank, vectors of the panel]`.
    b: Numbers,
}

/// One linear layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) at: usize,
    pub(super) outputs: usize,
    pub(super) rank: usize,
    /// What the product of A and B as they are stored is multiplied with.
    pub(super) scale: f32,
    /// Of the numbers of A and of B.
    steps: [f32; 2],
    /// Rows of A above its own.
    pub(super) first_rank: usize,
    /// Vectors of B before its own.
    first_vector: usize,
}

/// Vectors of outputs that are computed together: a panel of B, or a part of one.
pub(super) struct Run<'a> {
    pub(super) part: &'a Part,
    /// The first one within the part, and how many.
    pub(super) vector: usize,
    pub(super) vectors: usize,
    /// Where they lie in B: those of the first rank from `begin` on, those of the next `stride` further.
    pub(super) begin: usize,
    pub(super) end: usize,
    pub(super) stride: usize,
}

impl LowRank {
    /// Packs the updates of layers with `inputs` inputs into `arena`. Numbers are kept in 16 bits where all of them, those of
    /// A or those of B, are as exact in them as `precision` asks for.
    ///
    /// # Panics
    /// Where a length contradicts the dimensions, a rank is zero, or outputs do not begin at a vector or before the last
    /// layer's end.
    pub fn pack(arena: &Arena, precision: Precision, inputs: usize, updates: &[Factors<'_>]) -> Self {
        let format_of =
            |factor: for<'a> fn(&Factors<'a>) -> &'a [f32]| Format::of(precision, updates.iter().flat_map(factor));
        let [format_of_a, format_of_b] = [format_of(|update| update.a), format_of(|update| update.b)];
        let mut parts: Vec<Part> = Vec::with_capacity(updates.len());
        for update in updates {
            let Factors { at, outputs, rank, scale, a, b } = *update;
            let end = parts.last().map_or(0, |part| part.at + part.outputs);
            assert!(rank > 0 && at >= end && at.is_multiple_of(LANES), "rank and place");
            assert_eq!((a.len(), b.len()), (rank * inputs, outputs * rank), "sizes of A and B");
            let [first_rank, first_vector] = parts.last().map_or([0; 2], Part::ends);
            let steps = [format_of_a.step_of(a), format_of_b.step_of(b)];
            let scale = scale * (steps[0] * steps[1]);
            parts.push(Part { at, outputs, rank, scale, steps, first_rank, first_vector });
        }
        let [ranks, vectors] = parts.last().map_or([0; 2], Part::ends);
        let mut packed = Self {
            inputs,
            parts,
            a: Numbers::zeros(arena, format_of_a, ranks * inputs.div_ceil(LANES)),
            b: Numbers::zeros(arena, format_of_b, vectors),
        };
        for (index, update) in updates.iter().enumerate() {
            packed.fill(index, update);
        }
        packed
    }

    fn fill(&mut self, index: usize, update: &Factors<'_>) {
        let part = self.parts[index];
        for (rank, row) in update.a.chunks_exact(self.inputs).enumerate() {
            for (vector, values) in row.chunks(LANES).enumerate() {
                let (to, _) = self.place_in_a(part.first_rank + rank, vector * LANES);
                self.a.set(to, values, part.steps[0]);
            }
        }
        for (vector, rows) in update.b.chunks(LANES * part.rank).enumerate() {
            for rank in 0..part.rank {
                let mut lanes = [0.0; LANES];
                let column = rows[rank..].iter().step_by(part.rank);
                lanes.iter_mut().zip(column).for_each(|(lane, value)| *lane = *value);
                let (to, _) = part.place_in_b(vector * LANES, rank);
                self.b.set(to, &lanes, part.steps[1]);
            }
        }
    }

    /// The updates, one for each layer, as they were before they were packed, as far as the precision holds them.
    pub fn unpack(&self) -> impl Iterator<Item = Unpacked> + '_ {
        self.parts.iter().map(|part| {
            let a = |at: usize| self.place_in_a(part.first_rank + at / self.inputs, at % self.inputs);
            let b = |at: usize| part.place_in_b(at / part.rank, at % part.rank);
            Unpacked {
                at: part.at,
                rank: part.rank,
                scale: part.scale / (part.steps[0] * part.steps[1]),
                a: (0..part.rank * self.inputs).map(|at| self.a.get(a(at), part.steps[0])).collect(),
                b: (0..part.outputs * part.rank).map(|at| self.b.get(b(at), part.steps[1])).collect(),
            }
        })
    }

    /// Vector and lane of an element of the A that lie below each other.
    fn place_in_a(&self, row: usize, input: usize) -> (usize, usize) {
        let first = row / TILE * TILE;
        let rows = TILE.min(self.ranks() - first);
        (first * self.input_vectors() + input / LANES * rows + row % TILE, input % LANES)
    }

    /// Inputs of the layers.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// What it takes of memory.
    pub fn bytes(&self) -> usize {
        self.bytes_of_a() + self.b.bytes()
    }

    pub(super) fn bytes_of_a(&self) -> usize {
        self.a.bytes()
    }

    /// Refuses rows that it does not fit; its ranks, all layers together.
    pub(super) fn check(&self, x: &Rows, y: &Rows) -> usize {
        assert_eq!(x.width(), self.inputs, "inputs of an update");
        let end = self.parts.last().map_or(0, |part| part.at + part.outputs);
        assert!(end <= y.width(), "outputs of an update");
        self.ranks()
    }

    /// Rows of all A.
    pub(super) fn ranks(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first_rank + part.rank)
    }

    pub(super) fn input_vectors(&self) -> usize {
        self.inputs.div_ceil(LANES)
    }

    pub(super) fn a(&self) -> &Numbers {
        &self.a
    }

    pub(super) fn b(&self) -> &Numbers {
        &self.b
    }

    /// Tiles of A.
    pub(super) fn tiles(&self) -> usize {
        self.ranks().div_ceil(TILE)
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// The update of one linear layer, unpacked.
#[derive(Clone, Debug, PartialEq)]
pub struct Unpacked {
    /// Where the layer's outputs begin in a row of outputs.
    pub at: usize,
    /// Rows of A.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, rank]`
    pub b: Vec<f32>,
}

impl Part {
    /// Vectors of outputs.
    fn vectors(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Rows of A and vectors of B up to its end.
    fn ends(&self) -> [usize; 2] {
        [self.first_rank + self.rank, self.first_vector + self.vectors() * self.rank]
    }

    /// Its vectors of outputs in `columns` of a row of outputs.
    pub(super) fn vectors_of(&self, columns: &Range<usize>) -> Range<usize> {
        let vector = |column: usize| column.saturating_sub(self.at).div_ceil(LANES).min(self.vectors());
        vector(columns.start)..vector(columns.end)
    }

    /// The longest start of `vectors` that lies in one panel.
    pub(super) fn run(&self, vectors: &Range<usize>) -> Run<'_> {
        let vector = vectors.start;
        let (first, within) = (vector / PANEL * PANEL, vector % PANEL);
        let stride = PANEL.min(self.vectors() - first);
        let panel = self.first_vector + first * self.rank;
        Run {
            part: self,
            vector,
            vectors: vectors.len().min(stride - within),
            begin: panel + within,
            end: panel + stride * self.rank,
            stride,
        }
    }

    /// Vector and lane of an element of B.
    fn place_in_b(&self, output: usize, rank: usize) -> (usize, usize) {
        let vector = output / LANES;
        let first = vector / PANEL * PANEL;
        let vectors = PANEL.min(self.vectors() - first);
        (self.first_vector + first * self.rank + rank * vectors + vector % PANEL, output % LANES)
    }
}
