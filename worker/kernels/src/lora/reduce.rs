//! `x Aᵀ` of some rows and some tiles of A.

use std::ops::Range;

use super::FOUR;
use super::low_rank::{LowRank, TILE};
use super::numbers::{Numbers, Vector};
use crate::rows::{Rows, Shared};
use crate::simd::{LANES, Op, Simd};

/// Bytes that A is asked for ahead of its use.
const PREFETCH: usize = 4096;

/// Some rows times some tiles.
pub(super) struct Reduce<'a> {
    pub(super) low_rank: &'a LowRank,
    pub(super) tiles: Range<usize>,
    /// Rows of `x`.
    pub(super) rows: &'a [u32],
    pub(super) x: &'a Rows,
    /// Where results go: those of the first row from `first` on, those of the next `stride` further.
    pub(super) to: &'a Shared<f32>,
    pub(super) first: usize,
    pub(super) stride: usize,
}

impl Op for Reduce<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.low_rank.a() {
            Numbers::Single(a) => self.tiles(s, a),
            Numbers::Half(a) => self.tiles(s, a),
            Numbers::UpperHalf(a) => self.tiles(s, a),
            Numbers::Whole(a) => self.tiles(s, a),
        }
    }
}

impl Reduce<'_> {
    #[inline(always)]
    fn tiles<S: Simd, V: Vector>(&self, s: S, a: &[V]) {
        for tile in self.tiles.clone() {
            let first = tile * TILE;
            let rows = TILE.min(self.low_rank.ranks() - first);
            let a = &a[first * self.low_rank.input_vectors()..][..rows * self.low_rank.input_vectors()];
            match rows {
                1 => self.tile::<S, V, 1>(s, a, first),
                2 => self.tile::<S, V, 2>(s, a, first),
                3 => self.tile::<S, V, 3>(s, a, first),
                _ => self.tile::<S, V, TILE>(s, a, first),
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, V: Vector, const T: usize>(&self, s: S, a: &[V], first: usize) {
        let (a, _) = a.as_chunks::<T>();
        let mut to = self.first + first;
        let mut rows = self.rows;
        if S::SUMS >= FOUR * TILE {
            while let Some((four, others)) = rows.split_first_chunk::<FOUR>() {
                self.rows(s, a, to, four);
                (to, rows) = (to + FOUR * self.stride, others);
            }
        }
        while let Some((pair, others)) = rows.split_first_chunk::<2>() {
            self.rows(s, a, to, pair);
            (to, rows) = (to + 2 * self.stride, others);
        }
        if let [row] = rows {
            self.rows(s, a, to, &[*row]);
        }
    }

    #[inline(always)]
    fn rows<S: Simd, V: Vector, const T: usize, const R: usize>(&self, s: S, a: &[[V; T]], to: usize, rows: &[u32; R]) {
        let mut x: [&[[f32; LANES]]; R] = [&[]; R];
        for row in 0..R {
            x[row] = &self.x.padded_row(rows[row] as usize).as_chunks().0[..a.len()];
        }
        let mut sums = [[s.splat(0.0); T]; R];
        for (at, a) in a.iter().enumerate() {
            if self.rows.len() <= 2 {
                for vector in a {
                    s.prefetch(std::ptr::from_ref(vector).cast::<u8>().wrapping_add(PREFETCH));
                }
            }
            let mut values = [s.splat(0.0); R];
            for row in 0..R {
                values[row] = s.load(&x[row][at]);
            }
            for t in 0..T {
                let a = a[t].load(s);
                for row in 0..R {
                    sums[row][t] = s.fma(values[row], a, sums[row][t]);
                }
            }
        }
        for row in 0..R {
            // SAFETY: `Updates::begin` has made room for every rank of every row; this tile of these rows is one thread's.
            let to = unsafe { self.to.pointer(to + row * self.stride) };
            if let Ok(four) = <[S::F; TILE]>::try_from(&sums[row][..]) {
                // SAFETY: as above.
                unsafe { to.cast::<[f32; TILE]>().write(s.sum_four(four)) };
            } else {
                for t in 0..T {
                    // SAFETY: as above.
                    unsafe { to.add(t).write(s.sum(sums[row][t])) };
                }
            }
        }
    }
}
