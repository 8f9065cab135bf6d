//! The router.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod app;
pub mod http;
pub mod prompt_log;
pub mod request;
pub mod text;
pub mod validate;
