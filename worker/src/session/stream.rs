//! One stream that the router has opened: a group or a blob. A group waits here for its adapter, if it names one. Its frames
//! are written by the connection's writer ([`crate::emit`]); here its orders are read and its end is noticed, whichever side
//! it comes from.

use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use shoal_common::ambient;
use shoal_common::quic::CloseCode;
use shoal_common::wire::blob::{BLOB_PRIORITY, BlobHeader, BlobRequest};
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::hello::WorkerState;
use shoal_common::wire::message::{GroupFailure, GroupFrame, GroupOrder, StreamOpen, Submit};

use super::connection::Shared;
use crate::adapters::Lease;
use crate::emit::Opening;
use crate::engine::GroupSink;
use crate::engine::link::GroupLink;
use crate::metrics;

/// For the first frame of a stream: it carries the whole prompt, on a link that is fast or of no use.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Told to a router that has ordered a drain and sends a group all the same.
const BUSY_DRAINING: GroupFrame = GroupFrame::Busy { retry_after_ms: 1000 };
/// Told when as many groups wait for their adapters as may wait for anything.
const RETRY_AFTER_CROWD_MS: u32 = 1000;

/// What a stream's end means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// Delivered, cancelled or broken: the stream's own matter.
    Over,
    /// The router broke a rule of the protocol.
    Protocol,
}

impl From<CodecError> for StreamEnd {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::TooLong { .. } | CodecError::Malformed(_) | CodecError::Trailing(_) => Self::Protocol,
            CodecError::Ended | CodecError::Io(_) | CodecError::Encode(_) => Self::Over,
        }
    }
}

/// Serves one stream to its end.
pub(super) async fn serve(shared: Arc<Shared>, mut send: SendStream, recv: RecvStream) -> StreamEnd {
    let mut frames = FrameReader::new(recv);
    match tokio::time::timeout(OPEN_WITHIN, frames.next()).await {
        Err(_late) => {
            // Fails only on a stream that is closed.
            let _ = send.reset(CloseCode::Protocol.into());
            StreamEnd::Over
        }
        Ok(Err(error)) => error.into(),
        Ok(Ok(StreamOpen::Blob(request))) => serve_blob(&shared, request, send).await,
        Ok(Ok(StreamOpen::Group(submit))) => serve_group(&shared, submit, send, frames).await,
    }
}

async fn serve_blob(shared: &Shared, request: BlobRequest, mut send: SendStream) -> StreamEnd {
    // A closed stream is noticed by the first write.
    let _ = send.set_priority(BLOB_PRIORITY);
    let found = request.digest == shared.offer.hello.model.tokenizer;
    let bytes: &[u8] = if found { &shared.offer.bundle } else { &[] };
    let header = if found { BlobHeader::Found { len: bytes.len() as u64 } } else { BlobHeader::NotFound };
    if codec::write_frame(&mut send, &header).await.is_ok() && send.write_all(bytes).await.is_ok() {
        // Until the router has it all; `finish` fails only on a stream that is closed.
        let _ = send.finish();
        let _ = send.stopped().await;
    }
    StreamEnd::Over
}

/// Cancels the group when the stream's task ends, however it ends. After the group's own end that means nothing.
struct CancelOnDrop(Arc<GroupLink>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn serve_group(
    shared: &Shared,
    mut submit: Box<Submit>,
    send: SendStream,
    mut orders: FrameReader<RecvStream>,
) -> StreamEnd {
    if shared.drain.is_given() {
        return refuse(send, BUSY_DRAINING).await;
    }
    let guard = CancelOnDrop(shared.engine.link());
    let link = guard.0.clone();
    let delivered_or_stopped = send.stopped();
    tokio::pin!(delivered_or_stopped);
    let adapter = tokio::select! {
        biased;
        adapter = adapter_of(shared, &mut submit) => adapter,
        _ = &mut delivered_or_stopped => return StreamEnd::Over,
        end = read_orders(&mut orders, &link) => return end,
    };
    let adapter = match adapter {
        Ok(adapter) => adapter,
        Err(refusal) => return refuse(send, refusal).await,
    };
    let stream = shared.next_stream();
    if shared.openings.send(Opening { stream, transport: send, link: link.clone() }).await.is_err() {
        return StreamEnd::Over;
    }
    shared.engine.submit(*submit, adapter, GroupSink::new(shared.outlet.clone(), stream, link.clone()));
    tokio::select! {
        biased;
        _ = delivered_or_stopped => StreamEnd::Over,
        end = read_orders(&mut orders, &link) => end,
    }
}

/// Answers a group that never came to the engine.
async fn refuse(mut send: SendStream, frame: GroupFrame) -> StreamEnd {
    if codec::write_frame(&mut send, &frame).await.is_ok() && send.finish().is_ok() {
        let _ = send.stopped().await;
    }
    StreamEnd::Over
}

/// The adapter that `submit` names, as soon as it is here; its deadline goes on meanwhile. The frame to refuse it with where
/// it cannot be had, and where a drain begins first: it has no place yet, and another worker may have one.
async fn adapter_of(shared: &Shared, submit: &mut Submit) -> Result<Option<Lease>, GroupFrame> {
    let Some(generation) = submit.adapter else { return Ok(None) };
    // Whoever asks for another model is not to make this one fetch anything.
    shared.engine.check(submit).map_err(GroupFrame::Failed)?;
    if shared.adapters.store().waiting() >= shared.offer.hello.capacity.groups {
        return Err(GroupFrame::Busy { retry_after_ms: RETRY_AFTER_CROWD_MS });
    }
    let began = ambient::now();
    let deadline = submit.deadline_ms.map(|millis| Duration::from_millis(millis.into()));
    let acquired = tokio::select! {
        biased;
        acquired = shared.adapters.acquire(generation, deadline) => acquired,
        () = draining(shared) => return Err(BUSY_DRAINING),
    };
    let waited = u32::try_from(ambient::since(began).as_millis()).unwrap_or(u32::MAX);
    submit.deadline_ms = submit.deadline_ms.map(|millis| millis.saturating_sub(waited));
    acquired.map(Some).map_err(|error| {
        let failure = GroupFailure::from(&error);
        metrics::group_failed(failure);
        GroupFrame::Failed(failure)
    })
}

/// Resolves once the router or the worker's own shutdown has begun a drain.
async fn draining(shared: &Shared) {
    let mut status = shared.engine.status();
    tokio::select! {
        biased;
        () = shared.drain.given() => {}
        // An engine that is gone takes nothing either.
        _ = status.wait_for(|status| status.state == WorkerState::Draining) => {}
    }
}

/// Passes orders on until the stream breaks. A router that has nothing more to order may finish its side.
async fn read_orders(orders: &mut FrameReader<RecvStream>, link: &GroupLink) -> StreamEnd {
    loop {
        match orders.next().await {
            Ok(GroupOrder::StopBranch(branch)) => link.stop_branch(branch),
            Err(CodecError::Ended) => std::future::pending().await,
            Err(error) => return error.into(),
        }
    }
}
