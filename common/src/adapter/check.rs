//! Whether an adapter's two files are usable with a base model, and what they say. The router asks when an adapter is
//! registered, the worker again when it loads one: the same bytes and the same geometry give the same answer.

use super::bundle::Bundle;
use super::config::Config;
use super::error::{AdapterError, Excerpt, MadeFor, Side};
use super::geometry::{Geometry, Linear};
use super::scales::{Scale, Scales};
use super::targets::Targets;
use super::tensors::{self, Named};
use super::values::{Dtype, Values};
use super::weights;

/// Largest rank of an update.
pub const MAX_RANK: u32 = 256;

/// An adapter that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked<'a> {
    /// What it adds, by layer and, within a layer, in the order of computation. Never empty.
    pub updates: Vec<Update<'a>>,
}

/// What an adapter adds to one linear layer: `y += scale * B(A x)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update<'a> {
    /// Index of the layer.
    pub layer: u32,
    /// Which of its linear layers.
    pub linear: Linear,
    /// Rows of `a` and columns of `b`, 1 to [`MAX_RANK`].
    pub rank: u32,
    /// What `b`'s result is multiplied with; finite.
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: Values<'a>,
    /// `[outputs, rank]`
    pub b: Values<'a>,
}

impl Checked<'_> {
    /// Largest rank of an update.
    pub fn rank(&self) -> u32 {
        self.updates.iter().map(|update| update.rank).max().unwrap_or(0)
    }

    /// Numbers in all A and B.
    pub fn values(&self) -> u64 {
        self.updates.iter().map(|update| (update.a.len() + update.b.len()) as u64).sum()
    }
}

/// What `bundle` says, if it is a usable adapter for a model of `geometry`. It reads every number once, which takes seconds
/// for gigabytes; what it holds meanwhile grows with the configuration and the header only.
pub fn check<'a>(bundle: &Bundle<'a>, geometry: &Geometry) -> Result<Checked<'a>, AdapterError> {
    let config = Config::parse(bundle.config)?;
    let targets = Targets::new(&config)?;
    let scales = Scales::new(&config)?;
    let made_for = MadeFor(config.base_model);
    let pairs = tensors::pairs(weights::read(bundle.weights)?, geometry, &made_for)?;

    let mut updates = Vec::with_capacity(pairs.len());
    for (&(layer, linear), pair) in &pairs {
        let module = format!("model.layers.{layer}.{}", linear.path());
        if !targets.contain(&module) {
            return Err(AdapterError::NotTargeted { module });
        }
        let Scale { rank, factor: scale } = scales.of(&module)?;
        let fit = Fit { linear, rank, geometry, made_for: &made_for };
        updates.push(Update { layer, linear, rank, scale, a: fit.a(&pair.a)?, b: fit.b(&pair.b)? });
    }
    // Last, for it alone takes long.
    for (update, pair) in updates.iter().zip(pairs.values()) {
        finite(&update.a, &pair.a)?;
        finite(&update.b, &pair.b)?;
    }
    Ok(Checked { updates })
}

/// What the tensors of one linear layer must fit.
struct Fit<'c> {
    linear: Linear,
    /// The configuration's.
    rank: u32,
    geometry: &'c Geometry,
    made_for: &'c MadeFor,
}

impl Fit<'_> {
    /// The numbers of `[rank, inputs]`.
    fn a<'a>(&self, named: &Named<'a>) -> Result<Values<'a>, AdapterError> {
        let [_, inputs] = self.linear.shape(self.geometry);
        let values = values(named)?;
        let shape = matrix(named)?;
        self.rank(named, shape, shape[0])?;
        self.width(named, Side::Inputs, inputs, shape[1])?;
        Ok(values)
    }

    /// The numbers of `[outputs, rank]`.
    fn b<'a>(&self, named: &Named<'a>) -> Result<Values<'a>, AdapterError> {
        let [outputs, _] = self.linear.shape(self.geometry);
        let values = values(named)?;
        let shape = matrix(named)?;
        self.rank(named, shape, shape[1])?;
        self.width(named, Side::Outputs, outputs, shape[0])?;
        Ok(values)
    }

    fn rank(&self, named: &Named<'_>, shape: [usize; 2], got: usize) -> Result<(), AdapterError> {
        if got == self.rank as usize {
            return Ok(());
        }
        Err(AdapterError::WrongRank { tensor: Excerpt::of(&named.name), shape, expected: self.rank, got })
    }

    fn width(&self, named: &Named<'_>, side: Side, expected: usize, got: usize) -> Result<(), AdapterError> {
        if got == expected {
            return Ok(());
        }
        let (tensor, made_for) = (Excerpt::of(&named.name), self.made_for.clone());
        Err(AdapterError::WrongWidth { tensor, linear: self.linear, side, expected, got, made_for })
    }
}

fn values<'a>(named: &Named<'a>) -> Result<Values<'a>, AdapterError> {
    let dtype = match named.tensor.dtype {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::BF16,
        other => {
            return Err(AdapterError::WrongDtype { tensor: Excerpt::of(&named.name), dtype: other.to_string() });
        }
    };
    Ok(Values::new(dtype, named.tensor.bytes))
}

fn matrix(named: &Named<'_>) -> Result<[usize; 2], AdapterError> {
    let shape = named.tensor.shape.as_slice();
    shape.try_into().map_err(|_| AdapterError::NotMatrix { tensor: Excerpt::of(&named.name), dimensions: shape.len() })
}

fn finite(values: &Values<'_>, named: &Named<'_>) -> Result<(), AdapterError> {
    let Some(at) = values.first_not_finite() else { return Ok(()) };
    let [_, columns] = matrix(named)?;
    Err(AdapterError::NotFinite { tensor: Excerpt::of(&named.name), row: at / columns, column: at % columns })
}
