//! Made-up adapters for tests: any linear layers, rank and width of numbers, as PEFT would write them.

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use shoal_common::adapter::{Bundle, Geometry, Linear};
use shoal_common::ids::{Digest, Generation, LayerRange};
use shoal_kernels::Precision;

use super::{Adapter, LoadFor};

/// What an adapter is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe<'a> {
    pub(crate) geometry: Geometry,
    /// What it changes in every layer.
    pub(crate) linears: &'a [Linear],
    pub(crate) rank: usize,
    /// F32, F16 or BF16.
    pub(crate) dtype: Dtype,
    pub(crate) seed: u32,
}

impl Recipe<'_> {
    /// Its bundle.
    pub(crate) fn bundle(&self) -> Vec<u8> {
        let targets: Vec<&str> =
            self.linears.iter().filter_map(|linear| linear.path().split('.').next_back()).collect();
        let config = json!({ "peft_type": "LORA", "r": self.rank, "lora_alpha": 2, "target_modules": targets });
        let (mut seed, mut tensors) = (self.seed, Vec::new());
        for layer in 0..self.geometry.layers {
            for linear in self.linears {
                let [outputs, inputs] = linear.shape(&self.geometry);
                for (factor, shape) in [("lora_A", [self.rank, inputs]), ("lora_B", [outputs, self.rank])] {
                    let name = format!("base_model.model.model.layers.{layer}.{}.{factor}.weight", linear.path());
                    tensors.push((name, shape, self.numbers(&mut seed, shape)));
                }
            }
        }
        let views = tensors.iter().map(|(name, shape, bytes): &(String, [usize; 2], Vec<u8>)| {
            (name, TensorView::new(self.dtype, shape.to_vec(), bytes).unwrap())
        });
        let weights = safetensors::serialize(views, None).unwrap();
        Bundle { config: config.to_string().as_bytes(), weights: &weights }.to_bytes().unwrap()
    }

    /// All of its layers in memory.
    pub(crate) fn adapter(&self) -> Adapter {
        let (bundle, layers) = (self.bundle(), LayerRange { begin: 0, end: self.geometry.layers });
        let load_for = LoadFor { geometry: self.geometry, layers, precision: Precision::Fixed16 };
        Adapter::load(Generation(Digest::of(&bundle)), &bundle, &load_for).unwrap()
    }

    /// Numbers between -1/4 and 1/4 without a pattern.
    fn numbers(&self, seed: &mut u32, shape: [usize; 2]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..shape[0] * shape[1] {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = (*seed >> 8) as f32 / (1 << 25) as f32 - 0.25;
            match self.dtype {
                Dtype::F16 => bytes.extend(f16::from_f32(number).to_le_bytes()),
                Dtype::BF16 => bytes.extend(bf16::from_f32(number).to_le_bytes()),
                _ => bytes.extend(number.to_le_bytes()),
            }
        }
        bytes
    }
}
