//! The HTTP side of the router.

pub mod error;
pub mod foreign;
pub mod schema;
