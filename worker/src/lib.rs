//! The worker: hosts a model and streams tokens to routers.
//!
//! 1. [`model::load`] opens the model's files ([`weights`]) and fills a [`backend::Backend`] ([`reference`] or [`scripted`]).
//! 2. `supervisor` dials every router and keeps one `session` per connection.
//! 3. A `session` takes groups off QUIC streams, checks them and hands them to the `engine`.
//! 4. The `engine` is one OS thread: the scheduler's policy plans a step, the backend computes it, the `sampler` draws.
//! 5. `emit` writes the step's tokens of all groups of a connection back to back.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod backend;
pub mod model;
pub mod reference;
pub mod sampler;
pub mod scripted;
pub mod weights;
