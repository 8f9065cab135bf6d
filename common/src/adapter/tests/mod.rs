//! Adapters for the tests: those of the golden set, and small ones that can be spoilt in every way.

mod configs;
mod files;
mod golden;
mod hostile;
mod names;
mod targets;

use std::path::PathBuf;

use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use super::error::AdapterError;
use super::{Bundle, Geometry, Linear, check};

pub(super) const SMOLLM2: Geometry = Geometry { layers: 30, hidden: 576, intermediate: 1536, queries: 576, keys: 192 };
pub(super) const TINY: Geometry = Geometry { layers: 4, hidden: 64, intermediate: 160, queries: 64, keys: 32 };

/// A path of the golden set.
fn golden(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden")).join(path)
}

/// An adapter for [`TINY`] in pieces, which it takes by itself.
#[derive(Clone)]
struct Adapter {
    config: Map<String, Value>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// What `check` says of one linear layer, without the numbers.
type Judged = (u32, Linear, u32, f32);

impl Adapter {
    /// Rank 2 on queries and values of the first two layers, in f32.
    fn qv() -> Self {
        let config = json!({
            "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "bias": "none"
        });
        let Value::Object(config) = config else { unreachable!("it is written as one") };
        let adapter = Self { config, tensors: Vec::new() };
        [0, 1]
            .into_iter()
            .fold(adapter, |adapter, layer| adapter.update(layer, Linear::Q, 2).update(layer, Linear::V, 2))
    }

    /// A and B of one linear layer in addition.
    fn update(self, layer: u32, linear: Linear, rank: usize) -> Self {
        let module = format!("base_model.model.model.layers.{layer}.{}", linear.path());
        let [outputs, inputs] = linear.shape(&TINY);
        self.tensor(&format!("{module}.lora_A.weight"), &[rank, inputs])
            .tensor(&format!("{module}.lora_B.weight"), &[outputs, rank])
    }

    /// A tensor in addition, in f32.
    fn tensor(mut self, name: &str, shape: &[usize]) -> Self {
        let numbers = (0..shape.iter().product::<usize>()).map(|at| at as f32 - 7.5);
        let bytes = numbers.flat_map(f32::to_le_bytes).collect();
        let dtype = safetensors::Dtype::F32;
        self.tensors.push(Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes });
        self
    }

    /// The same with another value in the configuration.
    fn with(mut self, field: &str, value: Value) -> Self {
        self.config.insert(field.to_owned(), value);
        self
    }

    /// The same without a field.
    fn without(mut self, field: &str) -> Self {
        self.config.remove(field);
        self
    }

    /// The same with every tensor renamed.
    fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        for tensor in &mut self.tensors {
            tensor.name = rename(&tensor.name);
        }
        self
    }

    fn config(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    fn weights(&self) -> Vec<u8> {
        let views = self
            .tensors
            .iter()
            .map(|tensor| (&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn judged(&self) -> Result<Vec<Judged>, AdapterError> {
        judged(&self.config(), &self.weights())
    }

    fn refused(&self) -> AdapterError {
        self.judged().expect_err("it must be refused")
    }
}

fn judged(config: &[u8], weights: &[u8]) -> Result<Vec<Judged>, AdapterError> {
    let checked = check(&Bundle { config, weights }, &TINY)?;
    Ok(checked.updates.iter().map(|update| (update.layer, update.linear, update.rank, update.scale)).collect())
}
