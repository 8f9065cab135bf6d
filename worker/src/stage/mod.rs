//! A model that is split over workers. The **head** has the first layers, the embedding and the output head; it plans, draws
//! and speaks with routers like any worker. The other **stages** have layers and KV, and serve one head each: they carry a
//! step's rows through their layers and give them back.
//!
//! - On the head: [`replica`] dials the stages and keeps them together, an epoch at a time; `line` is the connection to one;
//!   [`pipeline`] is the [`Backend`](crate::backend::Backend) that the engine sees. A step is handed from line to line
//!   (`journey`); `ring` says how many are worth being under way; [`board`] is what routers are told.
//! - On a stage: [`serve`] takes heads in, one at a time; `talk` is what the two say; `compute` is the thread that has the
//!   layers.
//! - Adapters: `holding` has the stages hold what a group needs, and `holds` keeps the books of it for a line; `lend` sends them
//!   the files.
//!
//! A stage that is lost, or a connection to one, ends the epoch: all KV is taken for lost, on all stages, and the head's
//! groups fail, to be replayed by their routers on whichever replica is whole.

pub mod board;
mod compute;
mod holding;
mod holds;
mod journey;
mod lend;
mod line;
mod meter;
pub mod pipeline;
pub mod replica;
mod ring;
mod rows;
pub mod serve;
pub mod split;
mod talk;
#[cfg(test)]
mod tests;

pub use board::Board;
pub use compute::Busy;
pub use holding::StageAdapters;
pub use pipeline::Pipeline;
pub use replica::{Dial, HeadOffer, Member, Replica, StageState};
pub use serve::{StageOffer, StageServer};
