//! PEFT adapters as router and worker both see them, and nothing here multiplies. All of it is pure but [`files`].
//!
//! 1. [`files`] reads the two files of a directory; [`bundle`] makes one piece of bytes of them and names it.
//! 2. [`check`](mod@check) says whether they are usable with a model of a [`geometry`], and what they hold; [`error`] says why not.
//! 3. [`values`]: the numbers of a tensor.

pub mod bundle;
pub mod check;
pub mod error;
pub mod files;
pub mod geometry;
pub mod values;

pub use bundle::{BadBundle, Bundle};
pub use check::{Checked, MAX_RANK, Update, check};
pub use error::{AdapterError, Fault};
pub use files::{FilesError, read_directory};
pub use geometry::{Geometry, Linear};
pub use values::{Dtype, Values};
