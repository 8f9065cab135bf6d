//! Arithmetic on what was read: blocks to floats, rotary frequencies.

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::weights::bytes::FileBytes;
use crate::weights::tensor::{LayerPart, RowOrder, TensorName, TensorType, TensorView};
use crate::weights::{RopeConfig, RopeScaling};

const ANY: TensorName = TensorName::Layer { layer: 0, part: LayerPart::Up };

fn random_values(count: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(7);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

#[test]
fn every_type_comes_back_as_close_as_its_bits_allow() {
    let types = [
        (TensorType::F32, 0.0),
        (TensorType::F16, 0.0005),
        (TensorType::BF16, 0.004),
        (TensorType::Q8_0, 0.005),
        (TensorType::Q6_K, 0.04),
        (TensorType::Q5_0, 0.07),
        (TensorType::Q5_1, 0.04),
        (TensorType::Q5_K, 0.06),
        (TensorType::Q4_0, 0.14),
        (TensorType::Q4_1, 0.08),
        (TensorType::Q4_K, 0.12),
        (TensorType::Q3_K, 0.35),
        (TensorType::Q2_K, 0.5),
    ];
    let shape = [3, 512];
    let source = random_values(shape[0] * shape[1]);
    let tensor = Tensor::from_slice(&source, &shape, &Device::Cpu).unwrap();
    for (dtype, tolerance) in types {
        let quantised = QTensor::quantize(&tensor, dtype.ggml()).unwrap();
        let stored = FileBytes::copy_of(&quantised.data().unwrap());
        assert_eq!(stored.as_slice().len(), source.len() / dtype.block_elements() * dtype.block_bytes(), "{dtype}");
        let view = TensorView { dtype, shape, order: RowOrder::Plain, bytes: stored.as_slice() };
        let values = view.to_f32(ANY).unwrap();
        let worst = values.iter().zip(&source).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{dtype}: {worst} off");
    }
}

#[test]
fn interleaved_rows_come_out_in_halves() {
    // Two heads of four rows: the file has 0, 2, 1, 3 of each.
    let stored: Vec<u8> = [0f32, 2., 1., 3., 4., 6., 5., 7.].iter().flat_map(|value| value.to_le_bytes()).collect();
    let order = RowOrder::Interleaved { head_dim: 4 };
    let view = TensorView { dtype: TensorType::F32, shape: [8, 1], order, bytes: &stored };
    assert_eq!(view.to_f32(ANY).unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
    assert_eq!(view.row(1), 1f32.to_le_bytes());
}

#[test]
fn rotary_frequencies_fall_from_one_by_powers_of_theta() {
    let rope = RopeConfig { theta: 10_000.0, dims: 4, scaling: RopeScaling::None };
    let close = |found: Vec<f64>, expected: [f64; 2]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-12), "{found:?} for {expected:?}");
    };
    close(rope.frequencies(), [1.0, 0.01]);
    close(RopeConfig { scaling: RopeScaling::Linear { factor: 4.0 }, ..rope.clone() }.frequencies(), [0.25, 0.0025]);
    close(RopeConfig { scaling: RopeScaling::Divisors(vec![1.0, 8.0]), ..rope }.frequencies(), [1.0, 0.00125]);
}

#[test]
fn llama_3_keeps_high_frequencies_divides_low_ones_and_blends_between() {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    let plain = RopeConfig { theta: 500_000.0, dims: 128, scaling: RopeScaling::None };
    let scaled = RopeConfig { scaling, ..plain.clone() }.frequencies();
    let ratio: Vec<f64> = plain.frequencies().iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
    // The divisors that Llama 3.1's own GGUF files carry: 1 up to pair 28, 8 from pair 35 on.
    assert!(ratio[..=28].iter().all(|&ratio| ratio == 1.0), "{ratio:?}");
    assert!(ratio[35..].iter().all(|&ratio| ratio == 8.0), "{ratio:?}");
    assert!(ratio[29..35].windows(2).all(|pair| 1.0 < pair[0] && pair[0] < pair[1] && pair[1] < 8.0), "{ratio:?}");
}
