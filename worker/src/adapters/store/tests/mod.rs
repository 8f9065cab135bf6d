//! The store with routers and a loader that the test plays, over real files. Nothing is timed: what must wait waits at a gate
//! that the test opens.

mod play;
mod promises;
mod trouble;
