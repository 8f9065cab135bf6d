//! The members of the fleet and the rules by which they join, report and leave. Pure: time is an argument.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shoal_common::ids::{Incarnation, Name};
use shoal_common::wire::hello::{Capacity, Hello, Refusal, Status, WorkerState};

use super::Snapshot;
use crate::catalogue::ServedModel;

/// A worker of the same name that was heard of within this time is taken for alive, and a second one is refused: four
/// status intervals.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// What a link needs from a worker's connection: opening streams and knowing whether it is gone. A trait so that rules can
/// be tested without a socket.
pub trait Line: Send + Sync + fmt::Debug {
    /// Whether the connection is known to be closed.
    fn is_closed(&self) -> bool;
    /// The QUIC connection; absent in tests of pure rules.
    fn connection(&self) -> Option<&quinn::Connection>;
}

impl Line for quinn::Connection {
    fn is_closed(&self) -> bool {
        self.close_reason().is_some()
    }

    fn connection(&self) -> Option<&quinn::Connection> {
        Some(self)
    }
}

/// A place among the members, never given twice. A worker whose connection broke comes back in the same life, and may do
/// so before the end of its old connection is noticed: only the place tells the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat(pub u64);

/// A worker that asks to serve.
#[derive(Debug)]
pub struct Offer {
    /// Its own words.
    pub hello: Hello,
    /// What it serves, with a tokenizer that was fetched and checked.
    pub model: Arc<ServedModel>,
    /// Its connection.
    pub line: Arc<dyn Line>,
}

/// Tokens this router has sent to a replica and that are not finished. Shared by all groups on it.
#[derive(Debug, Default)]
pub struct Outstanding(AtomicU64);

impl Outstanding {
    /// Tokens outstanding.
    pub fn tokens(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts a group's tokens as outstanding until dropped.
#[derive(Debug)]
pub struct OutstandingGuard {
    of: Arc<Outstanding>,
    tokens: u64,
}

impl Drop for OutstandingGuard {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.tokens, Ordering::Relaxed);
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
    /// Its connection.
    pub line: Arc<dyn Line>,
    /// Its load; absent until the first report.
    pub status: Option<Status>,
    /// What this router has sent it.
    pub outstanding: Arc<Outstanding>,
    /// What it can hold.
    pub capacity: Capacity,
    /// Version of its binary, for people.
    pub build: String,
    /// When its decode loop was last seen to turn.
    pub advanced: Instant,
    heard: Instant,
}

impl Replica {
    /// Whether it may be given groups.
    pub fn takes_groups(&self) -> bool {
        !self.line.is_closed() && self.status.is_none_or(|status| status.state == WorkerState::Ready)
    }

    /// When it was last heard of.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Tokens that stand before a new group, at least: what it reported, or what we know we sent since.
    pub fn queued_tokens(&self) -> u64 {
        self.status.map_or(0, |status| status.queued_tokens).max(self.outstanding.tokens())
    }

    /// Counts `tokens` as outstanding until the guard is dropped.
    pub fn reserve(&self, tokens: u64) -> OutstandingGuard {
        self.outstanding.0.fetch_add(tokens, Ordering::Relaxed);
        OutstandingGuard { of: Arc::clone(&self.outstanding), tokens }
    }
}

/// The members.
#[derive(Debug, Default)]
pub struct Roster {
    replicas: BTreeMap<Name, Replica>,
    models: BTreeMap<Name, Arc<ServedModel>>,
    next_seat: u64,
}

impl Roster {
    /// Takes a worker in, or says why not. A new life of a known worker replaces the old one unless that one is alive; a
    /// new connection of the same life replaces the old one in any case, for the worker itself has given that up.
    pub fn join(&mut self, offer: Offer, now: Instant) -> Result<Seat, Refusal> {
        let Offer { hello, model, line } = offer;
        if hello.model.layers.begin != 0 || hello.model.layers.end != hello.model.layer_count {
            return Err(Refusal::IncompleteModel);
        }
        let is_other = |old: &Replica| old.incarnation != hello.incarnation && is_alive(old, now);
        if self.replicas.get(&hello.worker).is_some_and(is_other) {
            return Err(Refusal::DuplicateName);
        }
        let model = self.admit_model(model)?;
        let seat = Seat(self.next_seat);
        self.next_seat += 1;
        let replica = Replica {
            worker: hello.worker.clone(),
            incarnation: hello.incarnation,
            seat,
            model,
            line,
            status: None,
            outstanding: Arc::default(),
            capacity: hello.capacity,
            build: hello.build,
            advanced: now,
            heard: now,
        };
        self.replicas.insert(hello.worker, replica);
        Ok(seat)
    }

    /// The entry of `model`'s name: the one known, if it is the same content; a new one if nobody serves the old.
    fn admit_model(&mut self, model: Arc<ServedModel>) -> Result<Arc<ServedModel>, Refusal> {
        let name = model.card.name.clone();
        let Some(known) = self.models.get(&name) else {
            self.models.insert(name, Arc::clone(&model));
            return Ok(model);
        };
        if known.card.fingerprint == model.card.fingerprint && known.card.tokenizer == model.card.tokenizer {
            return Ok(Arc::clone(known));
        }
        if self.replicas.values().any(|replica| replica.model.card.name == name && !replica.line.is_closed()) {
            let (expected, got) = (known.card.weights, model.card.weights);
            return Err(Refusal::ModelMismatch { model: name, expected, got });
        }
        self.models.insert(name, Arc::clone(&model));
        Ok(model)
    }

    /// Notes a worker's load. A report from a place that was given up is dropped.
    pub fn report(&mut self, worker: &Name, seat: Seat, status: Status, now: Instant) {
        if let Some(replica) = self.replicas.get_mut(worker).filter(|replica| replica.seat == seat) {
            if replica.status.is_none_or(|before| before.progress != status.progress) {
                replica.advanced = now;
            }
            replica.status = Some(status);
            replica.heard = now;
        }
    }

    /// Forgets a worker. A leave from a place that was given up is dropped.
    pub fn leave(&mut self, worker: &Name, seat: Seat) {
        if self.replicas.get(worker).is_some_and(|replica| replica.seat == seat) {
            self.replicas.remove(worker);
        }
    }

    /// Whether a worker of this name is a member.
    pub fn has(&self, worker: &Name) -> bool {
        self.replicas.contains_key(worker)
    }

    /// The members as requests see them.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { replicas: self.replicas.values().cloned().map(Arc::new).collect(), models: self.models.clone() }
    }
}

fn is_alive(replica: &Replica, now: Instant) -> bool {
    !replica.line.is_closed() && now.saturating_duration_since(replica.heard) < ALIVE_WITHIN
}
