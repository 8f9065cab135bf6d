//! A book of what went wrong with workers lately: connections that were not taken, with the reason, and links that were
//! lost. The supervisor writes it, `http::cluster` shows it. Bounded: what is older is in the log.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quinn::ConnectionError;
use shoal_common::ids::Name;
use shoal_common::quic::{CloseCode, QuicError, Rejection};
use shoal_common::telemetry::Chain;
use shoal_common::wire::hello::Refusal;

use crate::link::LinkError;

/// Incidents kept. Strangers, whose handshake told no name, have half of the places at most: they cannot push out what is
/// known of the cluster's own workers.
const KEPT: usize = 64;

/// Characters kept of a reason: some come out of a worker's files.
const MAX_WHY: usize = 500;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection was not taken.
    Refused,
    /// A worker's link ended.
    Lost,
}

/// Why, as a word for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A live worker has the name.
    DuplicateName,
    /// The model of that name is another one here.
    ModelMismatch,
    /// The tokenizer cannot be used.
    BadTokenizer,
    /// Part of a model only.
    IncompleteModel,
    /// The certificate: another authority, another name or role, its dates, or none.
    Certificate,
    /// No common version of the protocol.
    Version,
    /// A rule of the protocol was broken.
    Protocol,
    /// Nothing came in time.
    Timeout,
    /// The worker ended in order.
    Shutdown,
    /// The connection broke.
    Connection,
}

impl Cause {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DuplicateName => "duplicate_name",
            Self::ModelMismatch => "model_mismatch",
            Self::BadTokenizer => "bad_tokenizer",
            Self::IncompleteModel => "incomplete_model",
            Self::Certificate => "certificate",
            Self::Version => "version",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::Shutdown => "shutdown",
            Self::Connection => "connection",
        }
    }
}

impl From<&Refusal> for Cause {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::DuplicateName => Self::DuplicateName,
            Refusal::WrongCertificate => Self::Certificate,
            Refusal::ModelMismatch { .. } => Self::ModelMismatch,
            Refusal::BadTokenizer(_) => Self::BadTokenizer,
            Refusal::IncompleteModel => Self::IncompleteModel,
        }
    }
}

impl From<&QuicError> for Cause {
    fn from(error: &QuicError) -> Self {
        match error {
            QuicError::Handshake { why: Rejection::Version, .. } => Self::Version,
            QuicError::Handshake { why: Rejection::Alert(_), .. } => Self::Protocol,
            QuicError::Handshake { .. } | QuicError::Identity(_) | QuicError::Anonymous => Self::Certificate,
            QuicError::Timeout(_) | QuicError::Lost(ConnectionError::TimedOut) => Self::Timeout,
            QuicError::Closed(CloseCode::Shutdown) => Self::Shutdown,
            QuicError::Closed(CloseCode::Protocol) => Self::Protocol,
            _ => Self::Connection,
        }
    }
}

/// One thing that went wrong, however often.
#[derive(Clone, Debug)]
pub struct Incident {
    /// What happened.
    pub event: Event,
    /// The worker, where its certificate said who it is.
    pub worker: Option<Name>,
    /// Where it came from, the last time.
    pub address: SocketAddr,
    /// Why, for programs.
    pub cause: Cause,
    /// Why, for people.
    pub why: String,
    /// What to do, where that is known.
    pub advice: Option<&'static str>,
    /// How often in a row.
    pub times: u64,
    /// The last time.
    pub last: Instant,
}

impl Incident {
    /// A connection that the handshake refused.
    pub fn unproven(address: SocketAddr, error: &QuicError, now: Instant) -> Self {
        let what = (Event::Refused, Cause::from(error), error.advice());
        Self::new(what, (None, address), Chain(error).to_string(), now)
    }

    /// A worker whose greeting failed.
    pub fn refused((worker, address): (Option<Name>, SocketAddr), error: &LinkError, now: Instant) -> Self {
        let (cause, advice) = match error {
            LinkError::Refused(refusal) => (Cause::from(refusal), Some(refusal.advice())),
            LinkError::Certificate(error) => (Cause::from(error), error.advice()),
            LinkError::Timeout => (Cause::Timeout, None),
            LinkError::Codec(_) | LinkError::Unexpected => (Cause::Protocol, Rejection::Version.advice()),
            LinkError::Connection(error) => {
                let error = QuicError::from(error.clone());
                (Cause::from(&error), error.advice())
            }
            LinkError::FleetGone => (Cause::Shutdown, None),
        };
        Self::new((Event::Refused, cause, advice), (worker, address), Chain(error).to_string(), now)
    }

    /// A worker whose link ended. `reason` is the link's own, which counts where the connection was still there.
    pub fn lost(
        (worker, address): (Name, SocketAddr),
        closed: Option<ConnectionError>,
        reason: Option<String>,
        now: Instant,
    ) -> Self {
        let (cause, why) = match closed.map(QuicError::from) {
            Some(QuicError::Lost(ConnectionError::LocallyClosed)) => {
                (Cause::Connection, "its process has ended, or another life of it has taken its place".to_owned())
            }
            None => (Cause::Protocol, reason.unwrap_or_else(|| "this router closed the connection".to_owned())),
            Some(error) => (Cause::from(&error), Chain(&error).to_string()),
        };
        Self::new((Event::Lost, cause, None), (Some(worker), address), why, now)
    }

    fn new(
        (event, cause, advice): (Event, Cause, Option<&'static str>),
        (worker, address): (Option<Name>, SocketAddr),
        mut why: String,
        now: Instant,
    ) -> Self {
        if let Some((end, _)) = why.char_indices().nth(MAX_WHY) {
            why.truncate(end);
            why.push_str(" ...");
        }
        Self { event, worker, address, cause, why, advice, times: 1, last: now }
    }

    /// Whether `other` is the same thing once more: a worker that is refused dials again every few seconds, from any port.
    fn is_again(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.event, one.cause, one.address.ip());
        of(self) == of(other) && self.worker == other.worker
    }
}

/// The book. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Incidents(Arc<Mutex<VecDeque<Incident>>>);

impl Incidents {
    /// Notes an incident: as one more of its kind, or in place of the oldest.
    pub fn note(&self, mut incident: Incident) {
        let mut book = self.book();
        if let Some(at) = book.iter().position(|known| known.is_again(&incident)) {
            incident.times += book.remove(at).map_or(0, |known| known.times);
        }
        let is_stranger = |known: &Incident| known.worker.is_none();
        let strangers = book.iter().filter(|known| is_stranger(known)).count();
        let strangers_full = strangers >= KEPT / 2;
        if book.len() >= KEPT || (strangers_full && is_stranger(&incident)) {
            let victim = if strangers_full { book.iter().position(is_stranger) } else { None };
            book.remove(victim.unwrap_or(0));
        }
        book.push_back(incident);
    }

    /// All incidents, the latest first.
    pub fn latest(&self) -> Vec<Incident> {
        self.book().iter().rev().cloned().collect()
    }

    fn book(&self) -> MutexGuard<'_, VecDeque<Incident>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
