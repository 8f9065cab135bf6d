//! PEFT adapters as router and worker both see them, and nothing here multiplies. All of it is pure but [`files`].
//!
//! 1. [`files`] reads the two files of a directory; [`bundle`] makes one piece of bytes of them and names it.
//! 2. [`check`](mod@check) says whether they are usable with a model of a [`geometry`], and what they hold; [`error`] says why not.
//! 3. `config` (by way of `json`) is what `adapter_config.json` says; `targets` and `scales` say it of one module, by `pattern`.
//! 4. `weights` is what the header of `adapter_model.safetensors` says, `tensors` what its names mean, [`values`] its numbers.

pub mod bundle;
pub mod check;
mod config;
pub mod error;
mod excerpt;
pub mod files;
pub mod geometry;
mod json;
mod pattern;
mod scales;
mod targets;
mod tensors;
pub mod values;
mod weights;

#[cfg(test)]
mod tests;

pub use bundle::{BadBundle, Bundle};
pub use check::{Checked, MAX_RANK, Update, check};
pub use error::{AdapterError, Fault};
pub use files::{FilesError, read_directory};
pub use geometry::{Geometry, Linear};
pub use values::{Dtype, Values};
