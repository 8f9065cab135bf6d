//! `[limits]`: what one request, and all of them together, may cost. Every default is the contract's.

use std::time::Duration;

/// Bounds on requests. All are inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// HTTP body in bytes.
    pub body: usize,
    /// Prompts of one request.
    pub prompts: usize,
    /// `n` and `best_of`.
    pub candidates: u16,
    /// Stop strings.
    pub stop: usize,
    /// Bytes of one stop string.
    pub stop_bytes: usize,
    /// Entries of `logit_bias`.
    pub logit_bias: usize,
    /// Alternatives of `logprobs`.
    pub logprobs: u8,
    /// Bytes of `user`.
    pub user_bytes: usize,
    /// Work of one request: prompts x best_of x (prompt tokens + max_tokens), in tokens.
    pub work: u64,
    /// Requests that are served at once over the whole router; more are answered 503.
    pub requests: usize,
    /// Times that a part of a request goes on at another worker when its own was lost.
    pub replays: u32,
    /// HTTP connections at once.
    pub connections: usize,
    /// Adapters that are registered at once.
    pub adapters: usize,
    /// Bytes of one adapter: its configuration and its weights.
    pub adapter_bytes: u64,
    /// For the headers of a request.
    pub header_timeout: Duration,
    /// For the body of a request.
    pub body_timeout: Duration,
    /// A stream whose client takes nothing for this long is cancelled.
    pub slow_reader: Duration,
    /// Between keep-alive comments on a quiet stream.
    pub sse_keep_alive: Duration,
    /// For a whole request; absent: none.
    pub deadline: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 4 << 20,
            prompts: 64,
            candidates: 16,
            stop: 16,
            stop_bytes: 256,
            logit_bias: 1024,
            logprobs: 20,
            user_bytes: 256,
            work: 1 << 20,
            requests: 1024,
            replays: 4,
            connections: 4096,
            adapters: 10_000,
            adapter_bytes: 1 << 30,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            slow_reader: Duration::from_secs(30),
            sse_keep_alive: Duration::from_secs(10),
            deadline: None,
        }
    }
}
