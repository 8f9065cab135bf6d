//! `y += scale reduced Bᵀ` of some rows and some panels of B.

use std::ops::Range;

use super::FOUR;
use super::low_rank::{LowRank, PANEL, Panel};
use super::numbers::{Numbers, Vector};
use crate::rows::Shared;
use crate::simd::{LANES, Op, Simd};

/// Bytes that B is asked for ahead of its use.
const PREFETCH: usize = 4096;

/// Some rows and some panels.
pub(super) struct Expand<'a> {
    pub(super) low_rank: &'a LowRank,
    pub(super) panels: Range<usize>,
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
            Numbers::Single(b) => self.panels(s, b),
            Numbers::Half(b) => self.panels(s, b),
            Numbers::UpperHalf(b) => self.panels(s, b),
            Numbers::Whole(b) => self.panels(s, b),
        }
    }
}

impl Expand<'_> {
    #[inline(always)]
    fn panels<S: Simd, V: Vector>(&self, s: S, b: &[V]) {
        for panel in self.panels.clone() {
            let panel = self.low_rank.panel(panel);
            let b = &b[panel.begin..][..panel.part.rank * panel.vectors];
            match panel.vectors {
                1 => self.panel::<S, V, 1>(s, b, &panel),
                2 => self.panel::<S, V, 2>(s, b, &panel),
                3 => self.panel::<S, V, 3>(s, b, &panel),
                _ => self.panel::<S, V, PANEL>(s, b, &panel),
            }
        }
    }

    #[inline(always)]
    fn panel<S: Simd, V: Vector, const P: usize>(&self, s: S, b: &[V], panel: &Panel<'_>) {
        let (b, _) = b.as_chunks::<P>();
        let (mut slot, mut rows) = (0, self.rows);
        if S::SUMS >= FOUR * PANEL {
            while let Some((four, others)) = rows.split_first_chunk::<FOUR>() {
                self.rows(s, b, panel, (slot, four));
                (slot, rows) = (slot + FOUR, others);
            }
        }
        while let Some((pair, others)) = rows.split_first_chunk::<2>() {
            self.rows(s, b, panel, (slot, pair));
            (slot, rows) = (slot + 2, others);
        }
        if let [row] = rows {
            self.rows(s, b, panel, (slot, &[*row]));
        }
    }

    #[inline(always)]
    fn rows<S: Simd, V: Vector, const P: usize, const R: usize>(
        &self,
        s: S,
        b: &[[V; P]],
        panel: &Panel<'_>,
        (slot, rows): (usize, &[u32; R]),
    ) {
        let mut reduced: [&[f32]; R] = [&[]; R];
        for row in 0..R {
            reduced[row] = &self.reduced[(slot + row) * self.stride + panel.part.first_rank..][..b.len()];
        }
        let mut sums = [[s.splat(0.0); P]; R];
        for (rank, b) in b.iter().enumerate() {
            if self.rows.len() <= 2 {
                for vector in b {
                    s.prefetch(std::ptr::from_ref(vector).cast::<u8>().wrapping_add(PREFETCH));
                }
            }
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
                // SAFETY: the row is one of the step's, and no other thread has this panel of it.
                unsafe { self.write(s, rows[row] as usize, panel, p, sums[row][p]) };
            }
        }
    }

    /// Adds a vector of outputs to a row; what lies beyond the part's last output stays as it is.
    ///
    /// # Safety
    /// The row is below the count of rows of `y`, and nobody else has this vector of it.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, row: usize, panel: &Panel<'_>, p: usize, sum: S::F) {
        let (part, first) = (panel.part, (panel.vector + p) * LANES);
        let length = LANES.min(part.outputs - first);
        // SAFETY: the operator has seen that the part ends inside the row; the rest is the caller's promise.
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
