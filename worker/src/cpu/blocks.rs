//! The block formats of GGML, taken apart into quants, scales and minima: what the kernels pack. Called by `pack`.
//!
//! Formats: <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c> (`dequantize_row_*`). A row's bytes were
//! checked to be whole blocks when the file was opened.

use half::f16;
use shoal_kernels::{Encoding, SUPER_BLOCK, Weights};

use crate::weights::TensorType;

/// How a block type is packed; `None` for the float types.
pub(super) fn encoding(dtype: TensorType) -> Option<Encoding> {
    Some(match dtype {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => return None,
        TensorType::Q4_0 => Encoding::Nibbles,
        TensorType::Q4_1 => Encoding::NibblesMin,
        TensorType::Q4_K => Encoding::NibblesWideMin,
        TensorType::Q5_0 | TensorType::Q8_0 => Encoding::Bytes,
        TensorType::Q5_1 | TensorType::Q5_K => Encoding::BytesWideMin,
        TensorType::Q3_K => Encoding::HalfBytes,
        TensorType::Q6_K => Encoding::SixBits,
        TensorType::Q2_K => Encoding::HalfBytesMin,
    })
}

/// Takes a row's blocks apart. `weights` has room for the row's quants and groups.
pub(super) fn take_apart(dtype: TensorType, row: &[u8], weights: &mut Weights) {
    let blocks = row.chunks_exact(dtype.block_bytes());
    let groups = encoding(dtype).map_or(1, |encoding| dtype.block_elements() / encoding.group());
    let quants = weights.quants.chunks_mut(dtype.block_elements());
    let scales = weights.scales.chunks_mut(groups).zip(weights.minima.chunks_mut(groups));
    let elements = dtype.block_elements();
    for (index, ((block, quants), (scales, minima))) in blocks.zip(quants).zip(scales).enumerate() {
        let common = &mut weights.supers[index * elements / SUPER_BLOCK];
        let to = Block { quants, scales, minima, common };
        match dtype {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {}
            TensorType::Q4_0 => q4_0(block, to),
            TensorType::Q4_1 => q4_1(block, to),
            TensorType::Q5_0 => q5_0(block, to),
            TensorType::Q5_1 => q5_1(block, to),
            TensorType::Q8_0 => q8_0(block, to),
            TensorType::Q2_K => q2_k(block, to),
            TensorType::Q3_K => q3_k(block, to),
            TensorType::Q4_K => q4_k(block, to),
            TensorType::Q5_K => q5_k(block, to),
            TensorType::Q6_K => q6_k(block, to),
        }
    }
}

/// Where a block's parts go.
struct Block<'a> {
    quants: &'a mut [u8],
    scales: &'a mut [f32],
    minima: &'a mut [f32],
    /// The common scale of 256 weights.
    common: &'a mut f32,
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Low nibbles are the first half of the block, high ones the second.
fn nibbles(packed: &[u8], quants: &mut [u8]) {
    let (low, high) = quants.split_at_mut(packed.len());
    for ((low, high), packed) in low.iter_mut().zip(high).zip(packed) {
        (*low, *high) = (packed & 15, packed >> 4);
    }
}

/// Adds 16 where the bit of `high` is set.
fn fifth_bits(high: &[u8], quants: &mut [u8]) {
    for (element, quant) in quants.iter_mut().enumerate() {
        *quant |= (high[element / 8] >> (element % 8) & 1) << 4;
    }
}

fn q4_0(block: &[u8], to: Block<'_>) {
    to.scales[0] = half(block, 0);
    nibbles(&block[2..18], to.quants);
}

fn q4_1(block: &[u8], to: Block<'_>) {
    to.scales[0] = half(block, 0);
    to.minima[0] = half(block, 2);
    nibbles(&block[4..20], to.quants);
}

fn q5_0(block: &[u8], to: Block<'_>) {
    to.scales[0] = half(block, 0);
    nibbles(&block[6..22], to.quants);
    fifth_bits(&block[2..6], to.quants);
    to.quants.iter_mut().for_each(|quant| *quant = quant.wrapping_sub(16));
}

fn q5_1(block: &[u8], to: Block<'_>) {
    to.scales[0] = half(block, 0);
    to.minima[0] = half(block, 2);
    nibbles(&block[8..24], to.quants);
    fifth_bits(&block[4..8], to.quants);
}

fn q8_0(block: &[u8], to: Block<'_>) {
    to.scales[0] = half(block, 0);
    to.quants.copy_from_slice(&block[2..34]);
}

/// 16 groups of 16: two bits to a quant, four bits to a scale and to a minimum.
fn q2_k(block: &[u8], to: Block<'_>) {
    let (packed_scales, packed) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half(block, 80), half(block, 82));
    for (group, packed) in packed_scales.iter().enumerate() {
        to.scales[group] = scale * f32::from(packed & 15);
        to.minima[group] = -(minimum * f32::from(packed >> 4));
    }
    for (element, quant) in to.quants.iter_mut().enumerate() {
        *quant = two_bits(packed, element);
    }
}

/// Elements 32 apart share a byte; each 128 have 32 bytes of their own.
fn two_bits(packed: &[u8], element: usize) -> u8 {
    let (part, within) = (element / 128, element % 128);
    packed[part * 32 + within % 32] >> (within / 32 * 2) & 3
}

/// 16 groups of 16: two bits and a sign-giving third to a quant, six bits to a scale.
fn q3_k(block: &[u8], to: Block<'_>) {
    let (high, packed, scales, scale) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (group, to) in to.scales.iter_mut().enumerate() {
        let low = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        *to = scale * (f32::from(low | top << 4) - 32.0);
    }
    for (element, quant) in to.quants.iter_mut().enumerate() {
        let is_set = high[element % 32] >> (element / 32) & 1 == 1;
        *quant = two_bits(packed, element).wrapping_sub(if is_set { 0 } else { 4 });
    }
}

/// The six-bit scale and minimum of group `group` of 8.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4;
    (scale, packed[group + 4] >> 4 | packed[group] >> 6 << 4)
}

fn six_bit_groups(block: &[u8], to: &mut Block<'_>) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for group in 0..8 {
        let (scale_of, minimum_of) = six_bits(&block[4..16], group);
        to.scales[group] = scale * f32::from(scale_of);
        to.minima[group] = -(minimum * f32::from(minimum_of));
    }
}

/// 8 groups of 32; two neighbouring groups share their bytes.
fn q4_k(block: &[u8], mut to: Block<'_>) {
    six_bit_groups(block, &mut to);
    for (packed, quants) in block[16..144].chunks_exact(32).zip(to.quants.chunks_exact_mut(64)) {
        nibbles(packed, quants);
    }
}

fn q5_k(block: &[u8], mut to: Block<'_>) {
    six_bit_groups(block, &mut to);
    for (packed, quants) in block[48..176].chunks_exact(32).zip(to.quants.chunks_exact_mut(64)) {
        nibbles(packed, quants);
    }
    for (group, quants) in to.quants.chunks_exact_mut(32).enumerate() {
        for (quant, high) in quants.iter_mut().zip(&block[16..48]) {
            *quant |= (high >> group & 1) << 4;
        }
    }
}

/// 16 groups of 16: four bits and two more to a quant, eight to a scale.
fn q6_k(block: &[u8], to: Block<'_>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    *to.common = half(block, 208);
    for (to, packed) in to.scales.iter_mut().zip(scales) {
        *to = f32::from(packed.cast_signed());
    }
    for (element, quant) in to.quants.iter_mut().enumerate() {
        let (part, within) = (element / 128, element % 128);
        let (quarter, lane) = (within / 32, within % 32);
        let four = low[part * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4) & 15;
        let two = high[part * 32 + lane] >> (quarter * 2) & 3;
        *quant = four | two << 4;
    }
}

const _: () = assert!(SUPER_BLOCK == 2 * 128, "the K types come in two parts of 128");
