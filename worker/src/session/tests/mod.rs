//! A whole worker against routers played by the test, over loopback QUIC with an authority in memory.

mod adapters;
mod promises;
mod stage;
