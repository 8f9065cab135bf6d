//! The HTTP side of the router.

pub mod completions;
pub mod error;
pub mod foreign;
pub mod report;
pub mod request_id;
pub mod schema;
pub mod server;
pub mod sse;
