//! The one inner loop of the reference backend: a panel of 16 outputs times up to six rows. `linear` and `attention` call
//! it; it knows nothing of models.
//!
//! Every output is one chain of fused multiply-adds over ascending k, in a lane of its own. A fused multiply-add is rounded
//! once by definition (IEEE 754), so the bits of an output depend on its own row and column alone: not on the rows beside
//! it, not on the width of the machine's registers.
//!
//! candle's own matmul is not used because it cannot promise that (the `gemm` crate picks its kernel and its split of k by
//! the number of rows and the size of the caches), and because candle 0.11 reads `/proc/cpuinfo` anew for every matmul
//! unless `RAYON_NUM_THREADS` is set: 30 µs on 2 cores, more on a larger machine, for products that take 5 µs.

use pulp::{Arch, Simd, WithSimd};

/// Outputs of a panel.
pub(super) const LANES: usize = 16;

/// Most rows that are computed together: six rows of two 8-wide registers are the 12 accumulators that hide the latency
/// of fused multiply-adds on AVX2 and leave registers for the operands.
pub(super) const MAX_ROWS: usize = 6;

/// The values of one k for all outputs of a panel.
pub(super) type Lanes = [f32; LANES];

/// The instruction set that loops are compiled for, chosen when the process starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine(Arch);

impl Machine {
    /// The best that this CPU has.
    pub(super) fn detect() -> Self {
        Self(Arch::new())
    }

    /// Instructions every CPU has. Slow; its bits are the same.
    #[cfg(test)]
    pub(super) fn portable() -> Self {
        Self(Arch::Scalar)
    }

    /// Runs `work` compiled for this instruction set.
    pub(super) fn run<Work: WithSimd>(self, work: Work) -> Work::Output {
        self.0.dispatch(work)
    }
}

/// Up to [`MAX_ROWS`] rows side by side: element `k` of row `r` at `k * rows + r`.
#[derive(Debug)]
pub(super) struct RowGroup {
    rows: usize,
    values: Vec<f32>,
}

impl RowGroup {
    /// Takes 1 to [`MAX_ROWS`] rows, `[rows, k]` row-major.
    pub(super) fn pack(source: &[f32], k: usize) -> Self {
        let rows = source.len() / k;
        let mut values = vec![0.0; source.len()];
        for (row, source) in source.chunks_exact(k).enumerate() {
            for (to, &from) in values[row..].iter_mut().step_by(rows).zip(source) {
                *to = from;
            }
        }
        Self { rows, values }
    }

    /// How many rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds to `sums[row]` the products of the rows' elements `[from, from + panel.len())` with `panel`, ascending.
    #[inline(always)]
    pub(super) fn accumulate<S: Simd>(&self, simd: S, panel: &[Lanes], from: usize, sums: &mut [Lanes; MAX_ROWS]) {
        let values = &self.values[from * self.rows..(from + panel.len()) * self.rows];
        match self.rows {
            1 => accumulate::<S, 1>(simd, panel, values, sums),
            2 => accumulate::<S, 2>(simd, panel, values, sums),
            3 => accumulate::<S, 3>(simd, panel, values, sums),
            4 => accumulate::<S, 4>(simd, panel, values, sums),
            5 => accumulate::<S, 5>(simd, panel, values, sums),
            _ => accumulate::<S, 6>(simd, panel, values, sums),
        }
    }
}

#[inline(always)]
fn accumulate<S: Simd, const ROWS: usize>(simd: S, panel: &[Lanes], values: &[f32], sums: &mut [Lanes; MAX_ROWS]) {
    match LANES / S::F32_LANES {
        1 => accumulate_registers::<S, ROWS, 1>(simd, panel, values, sums),
        2 => accumulate_registers::<S, ROWS, 2>(simd, panel, values, sums),
        4 => accumulate_registers::<S, ROWS, 4>(simd, panel, values, sums),
        _ => accumulate_registers::<S, ROWS, 16>(simd, panel, values, sums),
    }
}

/// `REGISTERS` registers of `S` hold the lanes of a panel.
#[inline(always)]
fn accumulate_registers<S: Simd, const ROWS: usize, const REGISTERS: usize>(
    simd: S,
    panel: &[Lanes],
    values: &[f32],
    sums: &mut [Lanes; MAX_ROWS],
) {
    let panel = S::as_simd_f32s(panel.as_flattened()).0.as_chunks::<REGISTERS>().0;
    let sums = S::as_mut_simd_f32s(sums.as_flattened_mut()).0.as_chunks_mut::<REGISTERS>().0;
    let mut held: [[S::f32s; REGISTERS]; ROWS] = std::array::from_fn(|row| sums[row]);
    for (weights, values) in panel.iter().zip(values.as_chunks::<ROWS>().0) {
        for row in 0..ROWS {
            let value = simd.splat_f32s(values[row]);
            for register in 0..REGISTERS {
                held[row][register] = simd.mul_add_f32s(weights[register], value, held[row][register]);
            }
        }
    }
    sums[..ROWS].copy_from_slice(&held);
}
