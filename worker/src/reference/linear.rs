//! Linear layers: `y = x · Wᵀ + b` in f32, as a candle operator. Owns the weights, repacked once at load into panels of 16
//! outputs, so that a step reads each of them once and in order.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::kernel::{LANES, Lanes, MAX_ROWS, Machine, RowGroup};

/// Groups of rows that pass over a panel before the next panel is read: 96 rows of the widest layers stay in a second
/// level cache beside the panel.
const GROUPS_PER_PASS: usize = 16;

/// Shares of the panels per thread: a thread that the system takes away for a while delays a step by a quarter of its part.
const SHARES_PER_THREAD: usize = 4;

/// The weights of a linear layer.
#[derive(Debug)]
pub(super) struct Linear {
    machine: Machine,
    inputs: usize,
    outputs: usize,
    /// `[ceil(outputs / LANES), inputs]`; lanes past the last output are zero.
    panels: Vec<Lanes>,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Packs `weights`, `[outputs, inputs]` row-major, several stacked along the outputs.
    pub(super) fn pack(machine: Machine, inputs: usize, weights: &[&[f32]], bias: Option<Vec<f32>>) -> Self {
        let rows: Vec<&[f32]> = weights.iter().flat_map(|part| part.chunks_exact(inputs)).collect();
        let mut panels = vec![[0.0; LANES]; rows.len().div_ceil(LANES) * inputs];
        panels.par_chunks_mut(inputs).zip(rows.par_chunks(LANES)).for_each(|(panel, rows)| {
            for (lane, row) in rows.iter().enumerate() {
                for (to, &from) in panel.iter_mut().zip(*row) {
                    to[lane] = from;
                }
            }
        });
        Self { machine, inputs, outputs: rows.len(), panels, bias }
    }

    /// The weights of one output, `[inputs]`: an embedding where the head is tied to it.
    pub(super) fn weights_of(&self, output: usize) -> impl Iterator<Item = f32> + '_ {
        let panel = output / LANES * self.inputs;
        self.panels[panel..panel + self.inputs].iter().map(move |lanes| lanes[output % LANES])
    }

    /// `x` is `[rows, inputs]`, `y` becomes `[rows, outputs]`, both row-major.
    pub(super) fn forward(&self, x: &[f32], y: &mut [f32]) {
        let rows = x.len() / self.inputs;
        // Eight rows are twice four and not six and two: small groups leave the multipliers waiting.
        let together = rows.div_ceil(rows.div_ceil(MAX_ROWS));
        let groups: Vec<RowGroup> =
            x.par_chunks(together * self.inputs).map(|rows| RowGroup::pack(rows, self.inputs)).collect();
        let panels = self.panels.len() / self.inputs;
        let share = panels.div_ceil(rayon::current_num_threads() * SHARES_PER_THREAD);
        let shares: Vec<Vec<f32>> =
            self.panels.par_chunks(share * self.inputs).map(|panels| self.share(panels, &groups)).collect();
        y.par_chunks_mut(self.outputs).enumerate().for_each(|(row, y)| self.gather(row, share * LANES, &shares, y));
    }

    fn share(&self, panels: &[Lanes], groups: &[RowGroup]) -> Vec<f32> {
        self.machine.run(Multiply { inputs: self.inputs, panels, groups })
    }

    /// One row's outputs out of the shares, each `[rows, width]`, the last perhaps narrower.
    fn gather(&self, row: usize, width: usize, shares: &[Vec<f32>], y: &mut [f32]) {
        let mut left = self.panels.len() / self.inputs * LANES;
        for (y, share) in y.chunks_mut(width).zip(shares) {
            let width = width.min(left);
            left -= width;
            y.copy_from_slice(&share[row * width..][..y.len()]);
        }
        if let Some(bias) = &self.bias {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    }
}

/// Some panels times all rows: `[rows, panels * LANES]`.
struct Multiply<'a> {
    inputs: usize,
    panels: &'a [Lanes],
    groups: &'a [RowGroup],
}

impl WithSimd for Multiply<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let width = self.panels.len() / self.inputs * LANES;
        let rows: usize = self.groups.iter().map(RowGroup::rows).sum();
        let together = self.groups[0].rows() * width;
        let mut y = vec![0.0; rows * width];
        let passes = self.groups.chunks(GROUPS_PER_PASS).zip(y.chunks_mut(GROUPS_PER_PASS * together));
        for (groups, y) in passes {
            for (index, panel) in self.panels.chunks_exact(self.inputs).enumerate() {
                for (group, y) in groups.iter().zip(y.chunks_mut(together)) {
                    let mut sums = [[0.0; LANES]; MAX_ROWS];
                    group.accumulate(simd, panel, 0, &mut sums);
                    for (y, sums) in y.chunks_exact_mut(width).zip(&sums) {
                        y[index * LANES..(index + 1) * LANES].copy_from_slice(sums);
                    }
                }
            }
        }
        y
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "panel-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, inputs) = layout.shape().dims2()?;
        let Some((from, to)) = layout.contiguous_offsets().filter(|_| inputs == self.inputs) else {
            candle_core::bail!("a linear layer of {} inputs was given {:?}", self.inputs, layout.shape())
        };
        let mut y = vec![0.0; rows * self.outputs];
        self.forward(&storage.as_slice::<f32>()?[from..to], &mut y);
        Ok((CpuStorage::F32(y), Shape::from((rows, self.outputs))))
    }
}
