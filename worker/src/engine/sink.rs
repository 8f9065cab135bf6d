//! The way out of the engine: a [`GroupSink`] per group, and one [`StepReport`] per connection and step, so that the writer
//! of a connection sees the frames of all its groups at once. Every group ends with exactly one [`Outgoing::End`].

use std::sync::Arc;

use shoal_common::wire::message::{BranchToken, GroupFrame};
use tokio::sync::mpsc;

use super::link::{GroupLink, UNSENT_FRAMES};
use super::overlap;

/// A stream among those of its connection. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(pub u64);

/// A connection in this worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey(pub u64);

/// One thing to be said on a stream.
#[derive(Debug)]
pub enum Outgoing {
    /// A frame; `cost` goes back to the group's [`GroupLink::sent`].
    Frame {
        /// On which stream.
        stream: StreamKey,
        /// What.
        frame: GroupFrame,
        /// Bound on its bytes, encoded and in memory.
        cost: usize,
    },
    /// Nothing more comes on the stream.
    End(StreamKey),
}

/// What one step says on one connection, in order.
#[derive(Debug, Default)]
pub struct StepReport(pub Vec<Outgoing>);

/// Reports that can be unread on a connection with `streams` streams: each stream's unsent frames, its acceptance, those of the
/// steps that exceeded its bound, and its end.
pub fn report_bound(streams: usize) -> usize {
    streams * (UNSENT_FRAMES + 4 + overlap::MOST)
}

/// The engine's end of a connection's reports.
#[derive(Clone, Debug)]
pub struct Outlet {
    connection: ConnectionKey,
    reports: mpsc::Sender<StepReport>,
}

impl Outlet {
    /// `reports` has room for [`report_bound`] reports.
    pub fn new(connection: ConnectionKey, reports: mpsc::Sender<StepReport>) -> Self {
        Self { connection, reports }
    }
}

/// The engine's end of one group's stream.
#[derive(Debug)]
pub struct GroupSink {
    outlet: Outlet,
    stream: StreamKey,
    link: Arc<GroupLink>,
}

impl GroupSink {
    /// The sink of `stream` on the connection of `outlet`.
    pub fn new(outlet: Outlet, stream: StreamKey, link: Arc<GroupLink>) -> Self {
        Self { outlet, stream, link }
    }

    pub(super) fn link(&self) -> &GroupLink {
        &self.link
    }

    fn outgoing(&self, frame: GroupFrame) -> Outgoing {
        let cost = cost(&frame);
        self.link.said(cost);
        Outgoing::Frame { stream: self.stream, frame, cost }
    }

    /// Says one frame and the end, outside of any step.
    pub(super) fn refuse(self, frame: GroupFrame) {
        let report = StepReport(vec![self.outgoing(frame), Outgoing::End(self.stream)]);
        deliver(&self.outlet, report);
    }
}

/// The reports of a step in the making, one per connection.
#[derive(Debug, Default)]
pub(super) struct Outbox(Vec<(Outlet, StepReport)>);

impl Outbox {
    pub(super) fn say(&mut self, sink: &GroupSink, frame: GroupFrame) {
        let outgoing = sink.outgoing(frame);
        self.report(&sink.outlet).0.push(outgoing);
    }

    pub(super) fn end(&mut self, sink: &GroupSink) {
        self.report(&sink.outlet).0.push(Outgoing::End(sink.stream));
    }

    /// Delivers all reports; the step is over.
    pub(super) fn flush(&mut self) {
        for (outlet, report) in self.0.drain(..) {
            deliver(&outlet, report);
        }
    }

    fn report(&mut self, outlet: &Outlet) -> &mut StepReport {
        let found = self.0.iter().position(|(other, _)| other.connection == outlet.connection);
        let at = found.unwrap_or_else(|| {
            self.0.push((outlet.clone(), StepReport::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

/// A closed connection has cancelled its groups already, so that its report may be lost; a full one cannot be, see
/// [`report_bound`].
fn deliver(outlet: &Outlet, report: StepReport) {
    if let Err(mpsc::error::TrySendError::Full(_)) = outlet.reports.try_send(report) {
        tracing::error!(connection = outlet.connection.0, "a connection's reports exceed their bound");
    }
}

/// Upper bound on the bytes of a frame: a token with its logprob takes at most 24 bytes encoded, each alternative 9.
fn cost(frame: &GroupFrame) -> usize {
    let scored = |alternatives: usize| 24 + 9 * alternatives;
    let body = match frame {
        GroupFrame::PromptScores { scores, .. } => {
            scores.iter().map(|score| scored(score.alternatives.len())).sum::<usize>()
        }
        GroupFrame::Step(tokens) => {
            let alternatives = |token: &BranchToken| token.score.as_ref().map_or(0, |score| score.alternatives.len());
            tokens.iter().map(|token| 8 + scored(alternatives(token))).sum()
        }
        GroupFrame::Accepted | GroupFrame::Busy { .. } | GroupFrame::Failed(_) => 0,
    };
    32 + body
}
