//! The gate of the feed-forward network as a candle operator: `[rows, 2 * width]` (gate, then up) to `silu(gate) * up`,
//! `[rows, width]`. Not `candle_nn::ops::swiglu`, which takes the exponential of the platform's C library.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use rayon::prelude::*;

use super::exp::exp;

/// The operator.
#[derive(Debug)]
pub(super) struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, both) = layout.shape().dims2()?;
        let Some((from, to)) = layout.contiguous_offsets() else { candle_core::bail!("swiglu was given a view") };
        let width = both / 2;
        let x = &storage.as_slice::<f32>()?[from..to];
        let mut y = vec![0.0; rows * width];
        y.par_chunks_mut(width).zip(x.par_chunks(both)).for_each(|(y, x)| {
            let (gate, up) = x.split_at(width);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate / (1.0 + exp(-gate)) * up;
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, width))))
    }
}
