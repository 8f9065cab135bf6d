//! The whole cluster in one thread: routers, workers with the scripted engine, ractor inside, quinn over turmoil's UDP, in
//! virtual time, under seeded faults. A seed plays the same run again, to the last line of its log.
//!
//! 1. [`scenario`] draws what a seed plays: the cluster's shape, the [`requests`] and the [`faults`].
//! 2. [`cluster`] starts routers and workers as hosts on the simulated [`net`]work, with certificates of [`pki`].
//! 3. [`load`] is the clients; [`heard`] reads what they are answered.
//! 4. [`play`] runs it all, step by step, writes the [`log`] and counts the [`figures`].
//! 5. [`verdict`] judges each request against the [`oracle`], [`invariants`] the cluster when it is at rest.

pub mod cluster;
pub mod faults;
pub mod figures;
pub mod heard;
pub mod invariants;
pub mod load;
pub mod log;
pub mod net;
pub mod oracle;
pub mod pki;
pub mod play;
pub mod requests;
pub mod scenario;
mod token;
pub mod verdict;
