//! Adapters in a worker: low-rank updates of the linear layers that this worker hosts, ready for a step.
//!
//! [`store`] has them and gets them: a session asks it for a group's adapter and holds the [`Lease`] on behalf of the group.
//! What it decides is in `book`, what it does in `fetch` (from a router), `disk` and [`loader`] (from disk into memory).

mod book;
mod disk;
mod error;
mod fetch;
mod lease;
mod loader;
pub mod store;

use shoal_common::ids::Generation;

pub use book::Limits;
pub use error::{AcquireError, Reason, Unavailable};
pub use fetch::{Blob, FetchError, Opening, RouterSource, Source};
pub use lease::Lease;
pub use loader::{Loaded, Loader, PeftLoader, Unusable};
pub use store::{AdapterStore, News, StoreSettings, Via};

/// An adapter in memory: what it changes in the hosted layers. Shared by all groups that run with it; never changes.
#[derive(Debug)]
pub struct Adapter {
    generation: Generation,
}

impl Adapter {
    /// Which one it is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    fn new(generation: Generation) -> Self {
        Self { generation }
    }

    /// One that changes nothing.
    #[cfg(test)]
    pub(crate) fn empty(generation: Generation) -> Self {
        Self { generation }
    }
}
