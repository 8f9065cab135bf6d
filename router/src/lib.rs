//! The router.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod request;
pub mod text;
