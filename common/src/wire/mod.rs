//! What travels between router and worker: one enum per direction and stream kind, plain data only. Framing, bounds and
//! the byte format belong to [`codec`] alone.
//!
//! A worker dials a router. On the connection:
//! - the worker opens the **control stream** and speaks [`hello::WorkerControl`]; the router answers [`hello::RouterControl`];
//! - the router opens one bidirectional stream per **group** or **blob** and begins it with a [`message::StreamOpen`];
//! - the worker opens one per **blob** that it lacks and begins it with a [`message::WorkerOpen`], and one before it where it
//!   wants to know who has the blob and is nearer.
//!
//! A worker dials another one for a blob, and opens one such stream there.
//!
//! Where a model is split over workers, the one with the first layers dials the others and speaks [`stage`].

pub mod blob;
mod bounded;
pub mod codec;
pub mod hello;
pub mod message;
pub mod stage;

#[cfg(test)]
mod round_trip_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;
