//! A model that is split over workers. The **head** has the first layers, the embedding and the output head; it plans, draws
//! and speaks with routers like any worker. The other **stages** have layers and KV, and serve one head each: they carry a
//! step's rows through their layers and give them back.
//!
//! - On the head: [`replica`] dials the stages and keeps them together, an epoch at a time; `line` is the connection to one;
//!   [`pipeline`] is the [`Backend`](crate::backend::Backend) that the engine sees; [`board`] is what routers are told.
//! - On a stage: [`serve`] takes heads in, one at a time; `compute` is the thread that has the layers.
//!
//! A stage that is lost, or a connection to one, ends the epoch: all KV is taken for lost, on all stages, and the head's
//! groups fail, to be replayed by their routers on whichever replica is whole.

pub mod board;
mod compute;
mod line;
mod meter;
pub mod pipeline;
pub mod replica;
mod rows;
pub mod serve;
pub mod split;
#[cfg(test)]
mod tests;

pub use board::Board;
pub use compute::Busy;
pub use pipeline::Pipeline;
pub use replica::{Dial, HeadOffer, Member, Replica, StageState};
pub use serve::{StageOffer, StageServer};
