//! What is computed next. [`policy`] decides, from counts and hashes alone, which tokens of which groups make up a step and
//! which blocks hold their KV. Called by the engine between steps. Nothing here sees a tensor, a token id, a socket or a
//! clock.
//!
//! 1. `policy`: who comes, who goes, what a step has brought.
//! 2. `fill`: what goes into a step; `room`: blocks for it, and who is preempted when there are none.
//! 3. `group`, `sequence`: the books of what is admitted and of what runs.
//! 4. `blocks`, `lru`: the books of the pool and the prefix cache.
//! 5. `shares`: whose turn it is; [`pace`]: how much prefill the running streams bear.

mod blocks;
mod bounds;
mod fill;
mod group;
mod lru;
pub mod pace;
pub mod plan;
pub mod policy;
mod room;
mod sequence;
mod shares;

pub use bounds::Bounds;
pub use group::{GroupId, GroupShape, Hashes, Scoring};
pub use pace::Pace;
pub use plan::{BlockCopy, Draw, Drawn, Phase, PlannedSlice, Row, StepPlan};
pub use policy::{Load, Policy, Refused, Totals};
pub use sequence::SequenceId;

#[cfg(test)]
mod tests;
