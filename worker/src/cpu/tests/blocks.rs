//! Blocks taken apart stand for the same numbers as candle's dequantisation gives.

use crate::cpu::pack::{row_f32, scratch};
use crate::weights::{RowOrder, TensorType, TensorView};

const TYPES: [TensorType; 10] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// Blocks of any bits but for their half-precision scales, which are small numbers.
fn blocks(dtype: TensorType, bytes: usize) -> Vec<u8> {
    let mut state = 12345u32;
    let mut blocks: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let halves: &[usize] = match dtype {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        _ => &[208],
    };
    for block in blocks.chunks_mut(dtype.block_bytes()) {
        for &at in halves {
            // The exponent between 2^-14 and 2^1, the sign kept.
            block[at + 1] = block[at + 1] & 0x80 | block[at + 1] & 0x3f;
        }
    }
    blocks
}

#[test]
fn every_block_type_stands_for_what_candle_says() {
    let (rows, cols) = (7, 512);
    for dtype in TYPES {
        let bytes = blocks(dtype, rows * cols / dtype.block_elements() * dtype.block_bytes());
        let tensor = TensorView { dtype, shape: [rows, cols], order: RowOrder::Plain, bytes: &bytes };
        let blocks = dtype.ggml().from_data(std::borrow::Cow::Borrowed(&bytes));
        let candle_core::CpuStorage::F32(expected) = blocks.dequantize(rows * cols).unwrap() else { unreachable!() };
        for row in 0..rows {
            let mut ours = vec![0.0; cols];
            row_f32(&tensor, row, &mut scratch(cols), &mut ours);
            for (at, (ours, theirs)) in ours.iter().zip(&expected[row * cols..]).enumerate() {
                // Products of three are rounded in another order.
                let close = (ours - theirs).abs() <= 1e-6 * theirs.abs().max(ours.abs()).max(1e-3);
                assert!(close, "{dtype} row {row} element {at}: {ours}, {theirs}");
            }
        }
    }
}
