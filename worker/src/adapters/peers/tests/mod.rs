//! Workers that fetch adapters from each other, over real QUIC on loopback. The router is played: what it names and what it sends
//! is the test's.

mod counts;
mod lending;
mod play;
mod promises;
