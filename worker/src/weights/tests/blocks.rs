//! Every element type against values that ggml's own Python package computed from the same bytes.

use ::safetensors::SafeTensors;

use super::golden;
use crate::weights::bytes::FileBytes;
use crate::weights::tensor::{LayerPart, RowOrder, TensorName, TensorType, TensorView};

const ANY: TensorName = TensorName::Layer { layer: 0, part: LayerPart::Up };

/// Every type but F32, which expands to itself.
const TYPES: [TensorType; 12] = [
    TensorType::F16,
    TensorType::BF16,
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

#[test]
fn blocks_of_every_type_expand_to_the_bits_that_ggml_gives() {
    let file = std::fs::read(golden("blocks/blocks.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(file.len(), 2 * TYPES.len());
    for dtype in TYPES {
        let values = file.tensor(&format!("{dtype}.values")).unwrap();
        let &[rows, cols] = values.shape() else { panic!("{dtype}: not a matrix") };
        let stored = FileBytes::copy_of(file.tensor(&format!("{dtype}.bytes")).unwrap().data());
        let view = TensorView { dtype, shape: [rows, cols], order: RowOrder::Plain, bytes: stored.as_slice() };
        let ours: Vec<u32> = view.to_f32(ANY).unwrap().into_iter().map(f32::to_bits).collect();
        let golden: Vec<u32> = values.data().as_chunks().0.iter().map(|&le| u32::from_le_bytes(le)).collect();
        let differ = ours.iter().zip(&golden).filter(|(a, b)| a != b).count();
        assert_eq!((ours.len(), differ), (rows * cols, 0), "{dtype}: values, and how many of them differ");
    }
}
