//! The worker: hosts a model and streams tokens to routers.
//!
//! 1. [`run`] starts the engine over a [`model::LoadedModel`] and supervises one session per router (`supervisor`).
//! 2. A [`session`] dials its router, takes groups off QUIC streams and hands them to the [`engine`].
//! 3. The [`engine`] is one OS thread: the [`scheduler`]'s policy plans a step, a [`backend::Backend`] computes it, the
//!    [`sampler`] draws.
//! 4. [`emit`] writes the step's tokens of all groups of a connection back to back.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod backend;
pub mod emit;
pub mod engine;
mod metrics;
pub mod model;
pub mod sampler;
pub mod scheduler;
pub mod scripted;
pub mod session;
mod supervisor;
pub mod weights;

pub use supervisor::{WorkerError, run};
