//! Adapters on the router: which there are, where their bytes are, how they come and go.
//!
//! 1. [`book`] (one [`entry`] a name, the generations on its [`shelf`]) is what requests read: a name, and what it means now.
//! 2. [`disk`] and [`record`] are what survives: a blob for every generation, a catalogue of the names.
//! 3. [`registry`] joins the two; its blocking half is [`change`]. [`intake`] checks what comes, [`base`] finds its model.
//! 4. [`watch`] brings what the configuration and the watched directory have, by [`scan`], [`stamp`] and [`quiet`];
//!    [`keep`] sweeps, and checks again what has to be; [`allow`] says which paths a request may name.
//! 5. [`serve`] sends blobs to workers; [`spool`] holds an upload until it is judged.
//!
//! What is a usable adapter is [`shoal_common::adapter`]'s matter; what workers have of it, the fleet's.

pub mod allow;
pub mod base;
pub mod book;
pub mod change;
pub mod disk;
pub mod entry;
pub mod error;
pub mod intake;
pub mod keep;
pub mod quiet;
pub mod record;
pub mod registry;
pub mod scan;
pub mod serve;
pub mod shelf;
pub mod spool;
pub mod stamp;
pub mod watch;

use std::fmt;

pub use book::{BookError, Found, Resolved};
pub use change::Order;
pub use entry::{Listing, Origin, Source, State};
pub use error::RegisterError;
pub use registry::{Registry, Settings};
use shoal_common::ids::{Generation, Name};
use shoal_common::wire::hello::{AdapterOrder, AdapterState};

/// The workers, as far as adapters concern them. Nothing here waits.
pub trait Workers: Send + Sync + fmt::Debug {
    /// Orders every worker that serves `base`. A pin stands until it is taken back: workers that join later are told of it,
    /// too. Any other order that does not arrive is no harm.
    fn order(&self, base: &Name, order: AdapterOrder);

    /// Every worker that has told of this generation, as it last did.
    fn residency(&self, generation: Generation) -> Vec<WorkerAdapter>;
}

/// An adapter on one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerAdapter {
    /// Which worker.
    pub worker: Name,
    /// What it told.
    pub state: AdapterState,
}
