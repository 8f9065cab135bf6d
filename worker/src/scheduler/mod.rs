//! What is computed next. [`policy`] decides, from counts alone, which tokens of which groups make up a step; `sequence`
//! keeps the books of one group, `budget` those of slots and KV, `shares` the turn of the users. Called by the engine
//! between steps. Nothing here sees a tensor, a token id, a socket or a clock.

mod budget;
pub mod plan;
pub mod policy;
mod sequence;
mod shares;

pub use budget::Bounds;
pub use plan::{Draw, Drawn, Feed, Fork, Freed, PlannedSlice, Row, StepPlan};
pub use policy::{Load, Policy, Refused};
pub use sequence::{GroupId, GroupShape, Scoring, SequenceId};

#[cfg(test)]
mod tests;
