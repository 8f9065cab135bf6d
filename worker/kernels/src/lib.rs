//! The arithmetic of the `cpu` backend, and the only crate with unsafe code. Everything it offers is safe to call.
//!
//! **Numerics contract.** Every function gives the same bits whatever the instruction set, the number of threads and the
//! rows beside a row. The portable code says what the bits are; the others are tested against it.
//!
//! 1. [`isa`]: what this CPU has.
//! 2. [`pool`]: the threads that all of it runs on.

pub mod isa;
pub mod pool;

pub use isa::Isa;
pub use pool::Pool;
