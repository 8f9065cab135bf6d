//! Adapters in a worker: low-rank updates of the linear layers that this worker hosts, ready for a step.
//!
//! 1. [`store`] has them and gets them: a session asks it for a group's adapter and holds the [`Lease`] on behalf of the group.
//!    What it decides is in `book`, what it does in `fetch` (from an `upstream`, which is a router or a head, or from nearer
//!    [`peers`], which also get what they lack from here), `disk` and `loader` (from disk into memory).
//!    Where a model is split, the others' parts are held with it (`elsewhere`).
//! 2. `load` makes an [`Adapter`] of a bundle's bytes; backends find in it what to add where.

mod adapter;
mod book;
mod disk;
mod elsewhere;
mod error;
mod fetch;
mod lease;
mod load;
mod loader;
pub mod peers;
#[cfg(test)]
pub(crate) mod recipe;
mod send;
pub mod store;
mod upstream;

pub use adapter::{Adapter, Site};
pub use book::Limits;
pub use elsewhere::{Elsewhere, Held, Hold, Holding};
pub use error::{AcquireError, Reason, Unavailable};
pub use fetch::{Asking, Blob, FetchError, Opening, Origin, Pace, Source};
pub use lease::Lease;
pub use load::{LoadError, LoadFor};
pub use loader::{Loaded, Loader, PeftLoader, Unusable};
pub(crate) use send::send;
pub use store::{AdapterStore, News, StoreSettings, Via};
pub use upstream::Upstream;
