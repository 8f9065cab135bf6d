//! A whole model on one worker, as requests see it: what it last reported, which adapters it has, and what this router has
//! sent it. The [`super::roster`] makes these; [`super::pick`] reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use shoal_common::ids::{Generation, Incarnation, Name};
use shoal_common::quic::CloseCode;
use shoal_common::wire::hello::{Capacity, Locality, StageReport, Status, WorkerState};

use super::adapters::Adapters;
use super::orders::Orders;
use super::pulse::{Health, Pulse, Vital};
use crate::catalogue::ServedModel;

/// What a link needs from a worker's connection: opening streams and knowing whether it is gone. A trait so that rules can
/// be tested without a socket.
pub trait Line: Send + Sync + fmt::Debug {
    /// Ends the connection: another life has the worker's place.
    fn close(&self);
    /// Whether the connection is known to be closed.
    fn is_closed(&self) -> bool;
    /// The QUIC connection; absent in tests of pure rules.
    fn connection(&self) -> Option<&quinn::Connection>;
}

impl Line for quinn::Connection {
    fn close(&self) {
        CloseCode::Shutdown.close(self);
    }

    fn is_closed(&self) -> bool {
        self.close_reason().is_some()
    }

    fn connection(&self) -> Option<&quinn::Connection> {
        Some(self)
    }
}

/// A place among the members, never given twice. A worker whose connection broke comes back in the same life, and may do
/// so before the end of its old connection is noticed: only the place tells the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat(pub u64);

/// What this router has sent to a replica. Shared by all groups on it.
#[derive(Debug, Default)]
pub struct Outstanding {
    tokens: AtomicU64,
    /// Tokens of prompts of groups that have shown no token yet.
    prompts: AtomicU64,
    /// Groups that are not finished, by adapter: as many entries as adapters are in use, so at most one per group.
    adapters: Mutex<BTreeMap<Generation, u32>>,
    /// Blocks of prompts since the worker joined; see [`super::prefix`].
    blocks: AtomicU64,
}

impl Outstanding {
    /// Tokens of groups that are not finished.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Tokens of prompts that are still to be computed, at most.
    pub fn prompts(&self) -> u64 {
        self.prompts.load(Ordering::Relaxed)
    }

    /// Adapters that groups of this router are using or waiting for there, `besides` one.
    pub fn adapters_besides(&self, besides: Generation) -> Vec<Generation> {
        self.adapters_in_use().keys().copied().filter(|generation| *generation != besides).collect()
    }

    /// Blocks of prompts sent so far.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Notes that `count` more blocks were sent; the number of the last one.
    pub(super) fn add_blocks(&self, count: u64) -> u64 {
        self.blocks.fetch_add(count, Ordering::Relaxed) + count
    }

    fn adapters_in_use(&self) -> MutexGuard<'_, BTreeMap<Generation, u32>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a group as outstanding until dropped.
#[derive(Debug)]
pub struct OutstandingGuard {
    of: Arc<Outstanding>,
    tokens: u64,
    adapter: Option<Generation>,
}

impl Drop for OutstandingGuard {
    fn drop(&mut self) {
        self.of.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
        let Some(generation) = self.adapter else { return };
        let mut adapters = self.of.adapters_in_use();
        if let Some(groups) = adapters.get_mut(&generation) {
            *groups -= 1;
            if *groups == 0 {
                adapters.remove(&generation);
            }
        }
    }
}

/// Counts a group's prompt as one that is still to be computed, until dropped: with the group's first token.
#[derive(Debug)]
pub struct PromptGuard {
    of: Arc<Outstanding>,
    tokens: u64,
}

impl Drop for PromptGuard {
    fn drop(&mut self) {
        self.of.prompts.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

/// A whole model on one worker, as last reported.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Which worker.
    pub worker: Name,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Its place, for as long as its connection lives.
    pub seat: Seat,
    /// What it serves.
    pub model: Arc<ServedModel>,
    /// What it can hold.
    pub capacity: Capacity,
    /// Its connection.
    pub line: Arc<dyn Line>,
    /// Its load; absent until the first report.
    pub status: Option<Status>,
    /// Its adapters, as far as it has told.
    pub adapters: Adapters,
    /// Orders on their way to it.
    pub orders: Arc<Orders>,
    /// What this router has sent it.
    pub outstanding: Arc<Outstanding>,
    /// Version of its binary, for people.
    pub build: String,
    /// Where it is, if it has a zone.
    pub locality: Option<Locality>,
    /// The stages that its model is split into, as it last told; none where it hosts all of it.
    pub stages: Arc<[StageReport]>,
    /// Whether its engine moves: groups on it hear when it does not.
    pub vital: Arc<Vital>,
    pub(super) pulse: Pulse,
    pub(super) heard: Instant,
}

impl Replica {
    /// Whether it may be given groups. Not before its first report: its model may be incomplete, and its adapters are not all
    /// told.
    pub fn takes_groups(&self) -> bool {
        let is_ready = self.status.is_some_and(|status| status.state == WorkerState::Ready);
        is_ready && !self.line.is_closed() && self.vital.last().health == Health::Moving
    }

    /// Whether it is this life of this worker.
    pub fn is(&self, worker: &Name, life: Incarnation) -> bool {
        self.worker == *worker && self.incarnation == life
    }

    /// When its decode loop was last seen to turn.
    pub fn advanced(&self) -> Instant {
        self.pulse.moved()
    }

    /// When it was last heard of.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Tokens that stand before a new group, at least: what it reported, or what we know we sent since.
    pub fn queued_tokens(&self) -> u64 {
        self.status.map_or(0, |status| status.queued_tokens).max(self.outstanding.tokens())
    }

    /// Counts a prompt of `tokens` as one that is still to be computed until the guard is dropped.
    pub fn expect_prompt(&self, tokens: u64) -> PromptGuard {
        self.outstanding.prompts.fetch_add(tokens, Ordering::Relaxed);
        PromptGuard { of: Arc::clone(&self.outstanding), tokens }
    }

    /// Counts a group of `tokens` as outstanding until the guard is dropped.
    pub fn reserve(&self, tokens: u64, adapter: Option<Generation>) -> OutstandingGuard {
        self.outstanding.tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(generation) = adapter {
            *self.outstanding.adapters_in_use().entry(generation).or_default() += 1;
        }
        OutstandingGuard { of: Arc::clone(&self.outstanding), tokens, adapter }
    }
}
