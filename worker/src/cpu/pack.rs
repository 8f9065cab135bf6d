//! From a file's tensors to the kernels' matrices: blocks as they are, floats quantised. Called when a model is loaded.

use half::{bf16, f16};
use shoal_common::config::Quant;
use shoal_kernels::{BLOCK, Encoding, Matrix, Pool, SUPER_BLOCK, Weights, padded};

use super::blocks;
use crate::weights::{ModelFile, TensorName, TensorType, TensorView, WeightsError};

/// Appends a linear layer's weights to `matrix`.
pub(super) fn push(
    matrix: &mut Matrix,
    pool: &mut Pool,
    file: &ModelFile,
    (name, bias): (TensorName, Option<TensorName>),
    quant: Quant,
) -> Result<(), WeightsError> {
    let tensor = file.tensor(name)?;
    let bias = bias.map(|bias| file.tensor_f32(bias)).transpose()?;
    let outputs = tensor.shape[0];
    let encoding = encoding(tensor.dtype, quant);
    if !tensor.dtype.is_float() {
        let read = |output, weights: &mut Weights| blocks::take_apart(tensor.dtype, tensor.row(output), weights);
        matrix.push(pool, encoding, outputs, bias.as_deref(), read);
        return Ok(());
    }
    let quantise = match quant {
        Quant::Q8_0 => q8_0,
        Quant::Q4_0 => q4_0,
    };
    matrix.push(pool, encoding, outputs, bias.as_deref(), |output, weights| {
        let mut values = vec![0.0; tensor.shape[1]];
        floats(tensor.dtype, tensor.row(output), &mut values);
        let groups = weights.quants.chunks_mut(BLOCK).zip(&mut weights.scales);
        for (values, (quants, scale)) in values.chunks(BLOCK).zip(groups) {
            quantise(values, Group { quants, scale });
        }
    });
    Ok(())
}

/// How the weights of a tensor are packed.
pub(super) fn encoding(dtype: TensorType, quant: Quant) -> Encoding {
    blocks::encoding(dtype).unwrap_or(match quant {
        Quant::Q8_0 => Encoding::Bytes,
        Quant::Q4_0 => Encoding::Nibbles,
    })
}

/// An embedding: what its stored bytes stand for. `to` is `[cols]`; `scratch` is made once, for rows as wide.
pub(super) fn row_f32(tensor: &TensorView<'_>, row: usize, scratch: &mut Weights, to: &mut [f32]) {
    let Some(encoding) = blocks::encoding(tensor.dtype) else {
        return floats(tensor.dtype, tensor.row(row), to);
    };
    blocks::take_apart(tensor.dtype, tensor.row(row), scratch);
    for (group, to) in to.chunks_mut(encoding.group()).enumerate() {
        let quants = &scratch.quants[group * encoding.group()..];
        let (centre, common) = match encoding {
            Encoding::Nibbles => (8.0, 1.0),
            Encoding::SixBits => (32.0, scratch.supers[group * encoding.group() / SUPER_BLOCK]),
            _ => (0.0, 1.0),
        };
        for (to, &quant) in to.iter_mut().zip(quants) {
            let quant = f32::from(quant.cast_signed()) - centre;
            *to = quant * (common * scratch.scales[group]) + scratch.minima[group];
        }
    }
}

/// Room for a row of `cols` weights of any type.
pub(super) fn scratch(cols: usize) -> Weights {
    let groups = cols.div_ceil(BLOCK / 2);
    Weights {
        quants: vec![0; padded(cols)],
        scales: vec![0.0; groups],
        supers: vec![0.0; cols.div_ceil(SUPER_BLOCK)],
        minima: vec![0.0; groups],
    }
}

fn floats(dtype: TensorType, row: &[u8], to: &mut [f32]) {
    match dtype {
        TensorType::F16 => widen(row, to, |le| f16::from_le_bytes(le).to_f32()),
        TensorType::BF16 => widen(row, to, |le| bf16::from_le_bytes(le).to_f32()),
        _ => widen(row, to, f32::from_le_bytes),
    }
}

fn widen<const N: usize>(row: &[u8], to: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (to, &bytes) in to.iter_mut().zip(row.as_chunks().0) {
        *to = value(bytes);
    }
}

/// Up to 32 weights that share a scale.
struct Group<'a> {
    quants: &'a mut [u8],
    scale: &'a mut f32,
}

/// A scale as it will be stored: in half precision.
fn stored(scale: f32) -> f32 {
    f16::from_f32(scale.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())).to_f32()
}

/// `value / scale`, where a scale of zero quantises everything to zero.
fn quotient(value: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { value / scale }
}

/// Scale amax / 127; to the nearest quant, half to even.
fn q8_0(values: &[f32], to: Group<'_>) {
    let amax = values.iter().fold(0.0f32, |amax, value| amax.max(value.abs()));
    *to.scale = stored(amax / 127.0);
    for (quant, value) in to.quants.iter_mut().zip(values) {
        let nearest = quotient(*value, *to.scale).round_ties_even().clamp(-127.0, 127.0);
        *quant = (nearest as i8).cast_unsigned();
    }
}

/// The value of the largest magnitude becomes -8; to the nearest quant, half to even.
fn q4_0(values: &[f32], to: Group<'_>) {
    let largest =
        values.iter().fold(0.0f32, |largest, &value| if value.abs() > largest.abs() { value } else { largest });
    *to.scale = stored(largest / -8.0);
    for (quant, value) in to.quants.iter_mut().zip(values) {
        let nearest = quotient(*value, *to.scale).round_ties_even().clamp(-8.0, 7.0);
        *quant = (nearest + 8.0) as u8;
    }
}
