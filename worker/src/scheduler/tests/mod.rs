//! The promises of the policy and of its parts.

mod blocks;
mod pace;
mod policy;
mod preemption;
mod prefixes;
mod random;
mod shares;
mod world;
