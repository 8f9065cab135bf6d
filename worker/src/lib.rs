//! The worker: hosts a model and streams tokens to routers.
//!
//! 1. [`model::load`] checks and reads a model ([`weights`]) into a [`backend::Backend`]: [`cpu`] on our own kernels, the
//!    candle [`mod@reference`] that it is tested against, or the [`scripted`] one of the tests.
//! 2. [`run`] starts the engine over it and supervises one session per router (`supervisor`).
//! 3. A [`session`] dials its router, takes groups off QUIC streams and hands them to the [`engine`].
//! 4. The [`engine`] is one OS thread: the [`scheduler`]'s policy plans a step, the backend computes it, the [`sampler`]
//!    draws.
//! 5. [`emit`] writes the step's tokens of all groups of a connection back to back.
//!
//! A worker whose process is killed is told of by [`tell_of_death`], from another process.
//!
//! A group that names an adapter waits in its session until [`adapters`] has that in memory. [`stage`] splits a model over
//! workers: on one that is the head, the engine's backend is a pipeline of all of them.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod adapters;
pub mod backend;
pub mod cpu;
pub mod emit;
pub mod engine;
mod metrics;
pub mod model;
mod obituary;
pub mod reference;
pub mod sampler;
pub mod scheduler;
pub mod scripted;
pub mod session;
pub mod stage;
mod supervisor;
pub mod weights;

pub use obituary::tell_of_death;
pub use supervisor::{Footing, Hosting, Neighbourhood, Part, WorkerError, run, run_on};
