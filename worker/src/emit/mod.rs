//! The writer of one connection: takes the engine's step reports and puts each frame on its group's stream, all streams of a
//! step back to back, so that they leave in as few datagrams as they fit. It never waits for a blocked stream: what does not
//! fit stays in the group's buffer, whose size the engine bounds by not scheduling a group that has too much unsent
//! ([`UNSENT_FRAMES`](crate::engine::link::UNSENT_FRAMES), [`UNSENT_BYTES`](crate::engine::link::UNSENT_BYTES)). Started by
//! the session; dropped with it, and then every group of the connection is cancelled.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use shoal_common::telemetry::Chain;
use shoal_common::wire::codec;
use shoal_common::wire::message::GroupFrame;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use crate::engine::link::GroupLink;
use crate::engine::sink::{Outgoing, StepReport, StreamKey};

/// Streams announced to the writer and not yet taken over.
pub const OPENINGS: usize = 64;
/// Reports taken at once.
const BATCH: usize = 64;

/// A group's stream, handed to the writer before the group is submitted.
#[derive(Debug)]
pub struct Opening<W> {
    /// Under which key the engine speaks of it.
    pub stream: StreamKey,
    /// Where its frames go.
    pub transport: W,
    /// Gets its credit back, or is cancelled when the transport fails.
    pub link: Arc<GroupLink>,
}

/// The writer, a future that ends when nobody can report any more and all is sent.
#[derive(Debug)]
pub struct Writer<W> {
    openings: mpsc::Receiver<Opening<W>>,
    reports: mpsc::Receiver<StepReport>,
    lines: BTreeMap<StreamKey, Line<W>>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// A writer of what comes on these channels.
    pub fn new(openings: mpsc::Receiver<Opening<W>>, reports: mpsc::Receiver<StepReport>) -> Self {
        Self { openings, reports, lines: BTreeMap::new() }
    }

    /// Takes in what was reported; ready when nothing can come any more.
    fn poll_reports(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut batch = Vec::new();
            let reports = self.reports.poll_recv_many(cx, &mut batch, BATCH);
            // After the reports: a stream is announced before its group is submitted, so whoever is spoken of is known.
            while let Some(opening) = self.next_opening(cx) {
                self.lines.insert(opening.stream, Line::new(opening.transport, opening.link));
            }
            match reports {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => return Poll::Ready(()),
                Poll::Ready(_) => batch.into_iter().flat_map(|report| report.0).for_each(|said| self.take(said)),
            }
        }
    }

    /// A stream that was announced. Polling tells a task that has used up its turn of the runtime that there is none, and what
    /// is said on a stream that is not known would be dropped: so whatever it says, the channel is looked into.
    fn next_opening(&mut self, cx: &mut Context<'_>) -> Option<Opening<W>> {
        match self.openings.poll_recv(cx) {
            Poll::Ready(opening) => opening,
            Poll::Pending => self.openings.try_recv().ok(),
        }
    }

    /// A stream that is gone has cancelled its group: what comes late is dropped.
    fn take(&mut self, said: Outgoing) {
        match said {
            Outgoing::Frame { stream, frame, cost } => {
                if let Some(line) = self.lines.get_mut(&stream) {
                    line.push(&frame, cost);
                }
            }
            Outgoing::End(stream) => {
                if let Some(line) = self.lines.get_mut(&stream) {
                    line.ending = Ending::Due;
                }
            }
        }
    }

    fn poll_lines(&mut self, cx: &mut Context<'_>) {
        self.lines.retain(|_, line| match line.poll_send(cx) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(_gone)) => {
                line.link.cancel();
                false
            }
        });
    }
}

impl<W: AsyncWrite + Unpin> Future for Writer<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let reports = self.poll_reports(cx);
        self.poll_lines(cx);
        if reports.is_ready() && self.lines.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<W> Drop for Writer<W> {
    fn drop(&mut self) {
        self.lines.values().for_each(|line| line.link.cancel());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// More may come.
    Open,
    /// The buffer is the last of it.
    Due,
}

/// A frame that is not sent whole.
#[derive(Debug)]
struct Unsent {
    bytes: Vec<u8>,
    cost: usize,
}

/// One stream with what waits for it.
#[derive(Debug)]
struct Line<W> {
    transport: W,
    link: Arc<GroupLink>,
    unsent: VecDeque<Unsent>,
    /// Bytes of the first unsent frame that are sent.
    sent: usize,
    ending: Ending,
}

impl<W: AsyncWrite + Unpin> Line<W> {
    fn new(transport: W, link: Arc<GroupLink>) -> Self {
        Self { transport, link, unsent: VecDeque::new(), sent: 0, ending: Ending::Open }
    }

    fn push(&mut self, frame: &GroupFrame, cost: usize) {
        let mut bytes = Vec::with_capacity(cost);
        match codec::encode_frame(frame, &mut bytes) {
            Ok(()) => self.unsent.push_back(Unsent { bytes, cost }),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "a frame cannot be sent");
                self.link.cancel();
            }
        }
    }

    /// Sends what the transport takes; ready when the stream is over.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.link.is_cancelled() && self.ending == Ending::Due {
            return Poll::Ready(Ok(()));
        }
        while let Some(frame) = self.unsent.front() {
            match ready!(Pin::new(&mut self.transport).poll_write(cx, &frame.bytes[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.sent += bytes,
            }
            if self.sent == frame.bytes.len() {
                self.link.sent(frame.cost);
                self.unsent.pop_front();
                self.sent = 0;
            }
        }
        match self.ending {
            Ending::Open => Poll::Pending,
            Ending::Due => Pin::new(&mut self.transport).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
