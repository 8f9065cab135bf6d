//! Adapters in a worker: low-rank updates of the linear layers that this worker hosts, ready for a step.
//!
//! `load` makes an [`Adapter`] of a bundle's bytes; backends find in it what to add where.

mod adapter;
mod load;
#[cfg(test)]
pub(crate) mod recipe;

pub use adapter::{Adapter, Site};
pub use load::LoadError;
