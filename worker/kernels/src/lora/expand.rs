//! `y += scale reduced Bᵀ` of some rows and some of their outputs.

use std::ops::Range;

use super::FOUR;
use super::low_rank::{LowRank, PANEL, Run};
use super::numbers::{Numbers, Vector};
use crate::rows::Shared;
use crate::simd::{LANES, Op, Simd};

/// Some rows and some of their outputs.
pub(super) struct Expand<'a> {
    pub(super) low_rank: &'a LowRank,
    /// Of a row of `y`. They begin at a vector, and end at one or with the row.
    pub(super) columns: Range<usize>,
    /// Rows of `y`.
    pub(super) rows: &'a [u32],
    /// What [`super::reduce`] made of them, `stride` from row to row.
    pub(super) reduced: &'a [f32],
    pub(super) stride: usize,
    pub(super) y: &'a Shared<f32>,
    /// Elements from a row of `y` to the next.
    pub(super) row_width: usize,
}

impl Op for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.low_rank.b() {
            Numbers::Single(b) => self.runs(s, b),
            Numbers::Half(b) => self.runs(s, b),
            Numbers::UpperHalf(b) => self.runs(s, b),
            Numbers::Whole(b) => self.runs(s, b),
        }
    }
}

impl Expand<'_> {
    #[inline(always)]
    fn runs<S: Simd, V: Vector>(&self, s: S, b: &[V]) {
        for part in self.low_rank.parts() {
            let mut vectors = part.vectors_of(&self.columns);
            while !vectors.is_empty() {
                let run = part.run(&vectors);
                let b = &b[run.begin..run.end];
                vectors.start += run.vectors;
                match run.vectors {
                    1 => self.stretch::<S, V, 1>(s, b, &run),
                    2 => self.stretch::<S, V, 2>(s, b, &run),
                    3 => self.stretch::<S, V, 3>(s, b, &run),
                    _ => self.stretch::<S, V, PANEL>(s, b, &run),
                }
            }
        }
    }

    #[inline(always)]
    fn stretch<S: Simd, V: Vector, const P: usize>(&self, s: S, b: &[V], run: &Run<'_>) {
        let (mut slot, mut rows) = (0, self.rows);
        if S::SUMS >= FOUR * PANEL {
            while let Some((four, others)) = rows.split_first_chunk::<FOUR>() {
                self.rows::<S, V, P, FOUR>(s, b, run, (slot, four));
                (slot, rows) = (slot + FOUR, others);
            }
        }
        while let Some((pair, others)) = rows.split_first_chunk::<2>() {
            self.rows::<S, V, P, 2>(s, b, run, (slot, pair));
            (slot, rows) = (slot + 2, others);
        }
        if let [row] = rows {
            self.rows::<S, V, P, 1>(s, b, run, (slot, &[*row]));
        }
    }

    #[inline(always)]
    fn rows<S: Simd, V: Vector, const P: usize, const R: usize>(
        &self,
        s: S,
        b: &[V],
        run: &Run<'_>,
        (slot, rows): (usize, &[u32; R]),
    ) {
        let mut reduced: [&[f32]; R] = [&[]; R];
        for row in 0..R {
            reduced[row] = &self.reduced[(slot + row) * self.stride + run.part.first_rank..][..run.part.rank];
        }
        let mut sums = [[s.splat(0.0); P]; R];
        for (rank, b) in b.chunks(run.stride).enumerate() {
            let b: &[V; P] = b.first_chunk().expect("a run has its vectors of every rank");
            let mut values = [s.splat(0.0); R];
            for row in 0..R {
                values[row] = s.splat(reduced[row][rank]);
            }
            for p in 0..P {
                let b = b[p].load(s);
                for row in 0..R {
                    sums[row][p] = s.fma(values[row], b, sums[row][p]);
                }
            }
        }
        for row in 0..R {
            for p in 0..P {
                // SAFETY: the row is one of the step's, and no other thread has these columns of it.
                unsafe { self.write(s, rows[row] as usize, run, p, sums[row][p]) };
            }
        }
    }

    /// Adds a vector of outputs to a row; what lies beyond the part's last output stays as it is.
    ///
    /// # Safety
    /// The row is below the count of rows of `y`, and nobody else has this vector of it.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, row: usize, run: &Run<'_>, p: usize, sum: S::F) {
        let (part, first) = (run.part, (run.vector + p) * LANES);
        let length = LANES.min(part.outputs - first);
        // SAFETY: `Updates::begin` has seen that the part ends inside the row; the rest is the caller's promise.
        let to = unsafe { self.y.part(row * self.row_width + part.at + first, length) };
        let scale = s.splat(part.scale);
        if let Ok(to) = <&mut [f32; LANES]>::try_from(&mut *to) {
            s.store(s.fma(scale, sum, s.load(to)), to);
        } else {
            let mut lanes = [0.0; LANES];
            lanes[..length].copy_from_slice(to);
            let y = s.load(&lanes);
            s.store(s.fma(scale, sum, y), &mut lanes);
            to.copy_from_slice(&lanes[..length]);
        }
    }
}
