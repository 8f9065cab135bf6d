//! The router: takes HTTP completion requests, runs them on workers, merges the tokens into one answer.
//!
//! One request walks through these files, top to bottom:
//!
//! 1. [`http`] takes it off the socket; [`validate`] turns the body into a [`request::CompletionRequest`]; [`resolve`] says
//!    which model and which of the [`adapters`] it means.
//! 2. [`text`] turns its prompts into token ids; [`plan`] checks it against the model and splits it into groups.
//! 3. [`dispatch`] sends each group to a replica that [`fleet`]'s `pick` chose, over a stream of its [`link`]'s connection,
//!    and again to another one when that is lost.
//! 4. [`answer`] drives the groups; [`merge`] and [`choice`] turn their tokens into text and choices.
//! 5. [`http::completions`] sends one document, [`http::sse`] a stream; [`prompt_log`] notes it where the client asked.
//!
//! [`operations`] is what an operator sees and orders; [`supervisor`] is the root actor; [`bind`] and [`Bound::serve`] start
//! and end the whole.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod adapters;
pub mod answer;
pub mod app;
pub mod catalogue;
pub mod choice;
pub mod dispatch;
pub mod fleet;
pub mod http;
pub mod link;
pub mod merge;
pub mod operations;
pub mod plan;
pub mod prompt_log;
mod recorder;
pub mod request;
pub mod resolve;
mod run;
pub mod supervisor;
#[cfg(test)]
mod testing;
pub mod text;
pub mod validate;

pub use recorder::MetricsServer;
pub use run::{Bound, RouterError, RouterSettings, bind, bind_on};
