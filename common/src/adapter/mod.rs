//! PEFT adapters as router and worker both see them: what is one ([`bundle`]), and the model that it must fit ([`geometry`]).
//! Pure: no I/O, and nothing here multiplies.

pub mod bundle;
pub mod geometry;

pub use bundle::{BadBundle, Bundle};
pub use geometry::{Geometry, Linear};
