//! What router and worker both know, and nothing else: no engine, no HTTP, no actors, no tokenizer.
//!
//! 1. [`ids`]: newtypes for everything that is named or counted across a process border.
//! 2. [`sampling`]: the sampling parameters of a request, in types that cannot be out of range.
//! 3. [`wire`]: the messages between router and worker and the codec that bounds them.
//! 4. [`fingerprint`]: the hash behind `system_fingerprint`; [`block_hash`]: the names of blocks of KV.
//! 5. [`adapter`]: PEFT adapters: what is one, whether it fits a model, how it travels.
//! 6. [`quic`] and [`pki`]: the transport, its settings and the certificates that say who may play which role.
//! 7. [`config`]: `cluster.toml`, every fault of it reported together.
//! 8. [`telemetry`] and [`shutdown`]: logging set-up and the one signal that ends a process cleanly.
//! 9. [`ambient`]: time, chance and spare threads, which a simulation replaces; [`watch`]: a value whose changes are waited for.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]
#![warn(missing_docs)]

pub mod adapter;
pub mod ambient;
pub mod block_hash;
pub mod config;
pub mod fingerprint;
pub mod ids;
pub mod pki;
pub mod quic;
pub mod sampling;
pub mod shutdown;
pub mod telemetry;
pub mod watch;
pub mod wire;
