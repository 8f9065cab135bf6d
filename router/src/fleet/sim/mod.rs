//! A cluster in virtual time, to see what a routing policy does before it does it to anybody: workers with slots, loads and
//! speeds, traffic with a seed, and the router's own roster, memory and policies. No socket, no clock: a seed replays a run
//! exactly.
//!
//! Built into the tests of the crate and into the example `routing-sim`, which prints and plots a run; not into the router.
//!
//! 1. [`scenario`]: what happens; [`cast`]: who plays; [`demand`]: the groups that come.
//! 2. [`worker`] computes in [`store`]'s adapters; [`world`] moves time and routes.
//! 3. [`report`]: what came of it.

mod cast;
mod demand;
pub(crate) mod report;
pub(crate) mod scenario;
mod store;
mod worker;
mod world;

pub(crate) use report::Report;
pub(crate) use scenario::Scenario;
pub(crate) use world::run;

#[cfg(test)]
mod tests;
