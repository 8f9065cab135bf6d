//! The arithmetic of the `cpu` backend, and the only crate with unsafe code. Everything it offers is safe to call.
//!
//! **Numerics contract.** Every function gives the same bits whatever the instruction set, the number of threads and the
//! rows beside a row. The portable code says what the bits are; the others are tested against it.
//!
//! 1. [`Isa`]: what this CPU has. `simd` is the vocabulary that kernels are written in, once for all of them.
//! 2. [`Pool`]: the threads that all of it runs on.
//! 3. [`Rows`]: rows of f32. [`Activations`]: rows quantised to int8, normed or gated on the way.
//! 4. [`Arena`]: where weights lie. [`Matrix`]: packed weights, and the product of the two. `matmul` computes it on vectors, `amx` on tiles.
//! 5. [`KvPool`]: keys and values in blocks. [`Rope`] writes it, [`Attention`] reads it.
//! 6. [`LowRank`]: an adapter's update of linear layers. [`Lora`]: which rows have which; products add to each what its own
//!    makes of it.

mod activations;
mod ahead;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
mod isa;
mod kv;
mod lora;
mod matmul;
mod matrix;
mod memory;
mod pool;
mod rope;
mod rows;
mod simd;
mod vector;

pub use activations::{Activations, Kept};
pub use attention::Attention;
pub use isa::Isa;
pub use kv::{BLOCK_POSITIONS, KvPool, KvShape, OutOfMemory, Spans};
pub use lora::{Factors, Lora, LowRank, Precision, Unpacked, Updates};
pub use matmul::Write;
pub use matrix::{Encoding, Matrix, SUPER_BLOCK, Weights};
pub use memory::Arena;
pub use pool::Pool;
pub use rope::{HeadNorms, Heads, Rope};
pub use rows::{BLOCK, Rows, padded};

#[cfg(test)]
mod tests;
