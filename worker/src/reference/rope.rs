//! Rotary position embedding: the angles of a step's rows. The rotation itself is candle-nn's.

use candle_core::{Device, Result, Tensor};

use crate::weights::RopeConfig;

/// Radians per position of each rotated pair.
#[derive(Debug)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
}

/// Cosines and sines of a step's rows, each `[rows, head_dim / 2]`.
#[derive(Debug)]
pub(super) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(super) fn new(config: &RopeConfig) -> Self {
        Self { frequencies: config.frequencies() }
    }

    /// Computed in f64 and rounded once, by `libm`: the same on every platform.
    pub(super) fn angles(&self, positions: impl Iterator<Item = usize>) -> Result<Angles> {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for frequency in &self.frequencies {
                let (s, c) = libm::sincos(position as f64 * frequency);
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let shape = (cos.len() / self.frequencies.len(), self.frequencies.len());
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, &Device::Cpu)?,
            sin: Tensor::from_vec(sin, shape, &Device::Cpu)?,
        })
    }
}

impl Angles {
    /// Rotates `x`, `[rows, heads, head_dim]`, pairing element `i` with `i + head_dim / 2`.
    pub(super) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}
