//! Low-rank updates, row by row and number by number: `y += scale B(A x)` as its definition says, every sum ascending, every
//! product rounded before it is added. Called by `llama` after each linear layer.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use shoal_common::adapter::Geometry;
use shoal_kernels::{Unpacked, padded};

use crate::adapters::{Adapter, Site};
use crate::backend::Slice;

/// The adapters of a step.
#[derive(Debug)]
pub(super) struct Adapters<'a> {
    /// Of each row.
    of_rows: Vec<Option<&'a Adapter>>,
    /// Each that occurs.
    distinct: Vec<&'a Adapter>,
}

impl<'a> Adapters<'a> {
    pub(super) fn new(slices: &[Slice<'a>]) -> Self {
        let of_slice = |slice: &Slice<'a>| std::iter::repeat_n(slice.adapter, slice.tokens.len());
        let mut distinct: Vec<&Adapter> = Vec::new();
        for adapter in slices.iter().filter_map(|slice| slice.adapter) {
            if !distinct.iter().any(|known| std::ptr::eq(*known, adapter)) {
                distinct.push(adapter);
            }
        }
        Self { of_rows: slices.iter().flat_map(of_slice).collect(), distinct }
    }

    /// `y` with what the rows' adapters make of `x` at a layer's site, each `[rows, _]`. The linear layers of a site lie side
    /// by side in `y`.
    pub(super) fn add(
        &self,
        (layer, site): (usize, Site),
        geometry: &Geometry,
        x: &Tensor,
        y: Tensor,
    ) -> Result<Tensor> {
        if self.distinct.is_empty() {
            return Ok(y);
        }
        let (shape, inputs) = (y.dims2()?, x.dims2()?.1);
        let (x, mut y) = (x.flatten_all()?.to_vec1::<f32>()?, y.flatten_all()?.to_vec1::<f32>()?);
        for adapter in &self.distinct {
            let Some(update) = adapter.update(layer, site) else { continue };
            let parts: Vec<Unpacked> = update.unpack().collect();
            let rows = y.par_chunks_mut(shape.1).zip(x.par_chunks(inputs)).zip(&self.of_rows);
            let rows = rows.filter(|(_, own)| own.is_some_and(|own| std::ptr::eq(own, *adapter)));
            rows.for_each(|((y, x), _)| add_row(&parts, site, geometry, x, y));
        }
        Tensor::from_vec(y, shape, &candle_core::Device::Cpu)
    }
}

fn add_row(parts: &[Unpacked], site: Site, geometry: &Geometry, x: &[f32], y: &mut [f32]) {
    let (mut packed_at, mut at) = (0, 0);
    for linear in site.linears() {
        let [outputs, _] = linear.shape(geometry);
        if let Some(part) = parts.iter().find(|part| part.at == packed_at) {
            let reduced: Vec<f32> = part.a.chunks_exact(x.len()).map(|a| dot(a, x)).collect();
            for (y, b) in y[at..at + outputs].iter_mut().zip(part.b.chunks_exact(part.rank)) {
                *y += part.scale * dot(b, &reduced);
            }
        }
        packed_at += padded(outputs);
        at += outputs;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}
