//! The engine's promises, turn by turn on the test's own thread: nothing here waits for a clock.

mod adapters;
pub(crate) mod backend;
pub(crate) mod bench;
mod epochs;
mod paging;
mod promises;
