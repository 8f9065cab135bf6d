//! The control stream of one connection: the worker says who it is, which adapters and stages it has and how it is doing; the router
//! welcomes or refuses it and may order a drain, take that back, and order adapters. Owned by the connection's session.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use shoal_common::wire::codec::{self, FrameReader};
use shoal_common::wire::hello::{Hello, RouterControl, STATUS_EVERY_MS, Status, WorkerControl, WorkerState};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::SessionEnd;
use super::connection::Shared;

/// Between two looks at the engine's status: a change waits no longer, and a step's changes are told together.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Between two statuses at most: half of what the protocol allows, so that a late timer breaks nothing.
const TELL_EVERY: Duration = Duration::from_millis(STATUS_EVERY_MS / 2);

/// Whether the router of this connection has ordered a drain, and not taken that back. Other routers' connections are not
/// touched by it, and it ends with the connection: a router gives it again to a worker that comes back.
#[derive(Debug, Default)]
pub(super) struct DrainOrder(watch::Sender<bool>);

impl DrainOrder {
    fn give(&self) {
        self.0.send_replace(true);
    }

    fn take_back(&self) {
        self.0.send_replace(false);
    }

    pub(super) fn is_given(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once it is given.
    pub(super) async fn given(&self) {
        // Its sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|given| *given).await;
    }
}

/// The control stream after the welcome.
pub(super) struct Control {
    /// For statuses.
    pub(super) send: SendStream,
    /// The router's orders.
    pub(super) orders: FrameReader<RecvStream>,
}

/// Opens the control stream, says hello and waits for the welcome.
pub(super) async fn introduce(connection: &Connection, hello: Hello) -> Result<Control, SessionEnd> {
    let (mut send, recv) = connection.open_bi().await.map_err(|error| SessionEnd::Lost(error.into()))?;
    let mut orders = FrameReader::new(recv);
    codec::write_frame(&mut send, &WorkerControl::Hello(Box::new(hello))).await?;
    match orders.next().await? {
        RouterControl::Welcome { router } => {
            tracing::info!(%router, address = %connection.remote_address(), "welcomed by a router");
            Ok(Control { send, orders })
        }
        RouterControl::Refused(refusal) => Err(SessionEnd::Refused(refusal)),
        RouterControl::Drain | RouterControl::Undrain | RouterControl::Adapter(_) => Err(SessionEnd::Protocol),
    }
}

/// Tells the adapters' news and the status until the stream breaks or the engine is gone without having been told to.
pub(super) async fn tell(mut send: SendStream, shared: &Shared) -> SessionEnd {
    let (engine, adapters) = (shared.engine.status(), shared.adapters.store());
    let mut news = adapters.news();
    let mut stages = shared.stages.as_ref().map(|board| board.teller(std::time::Instant::now()));
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<(Status, Instant)> = None;
    loop {
        looks.tick().await;
        let has_ended = engine.has_changed().is_err();
        let mut status = *engine.borrow();
        if has_ended {
            return match status.state {
                // It has ended as it was told to. What it said last is still on its way, and the order to close follows.
                WorkerState::Draining => std::future::pending().await,
                WorkerState::Ready | WorkerState::Incomplete => SessionEnd::EngineGone,
            };
        }
        if shared.drain.is_given() {
            status.state = WorkerState::Draining;
        }
        status.waiting = status.waiting.saturating_add(adapters.waiting());
        for state in news.take() {
            if let Err(error) = codec::write_frame(&mut send, &WorkerControl::Adapter(state)).await {
                return error.into();
            }
        }
        if let Some(reports) = stages.as_mut().and_then(|stages| stages.news(std::time::Instant::now()))
            && let Err(error) = codec::write_frame(&mut send, &WorkerControl::Stages(reports)).await
        {
            return error.into();
        }
        let is_due = told.is_none_or(|(before, at)| at.elapsed() >= TELL_EVERY || matters(&before, &status));
        if is_due {
            if let Err(error) = codec::write_frame(&mut send, &WorkerControl::Status(status)).await {
                return error.into();
            }
            told = Some((status, Instant::now()));
        }
    }
}

/// Whether a router would do something else.
fn matters(before: &Status, now: &Status) -> bool {
    (before.state, before.running, before.waiting) != (now.state, now.running, now.waiting)
}

/// Reads the router's orders until the stream ends or breaks.
pub(super) async fn obey(mut orders: FrameReader<RecvStream>, shared: &Shared) -> SessionEnd {
    loop {
        match orders.next().await {
            Ok(RouterControl::Drain) => shared.drain.give(),
            Ok(RouterControl::Undrain) => shared.drain.take_back(),
            Ok(RouterControl::Adapter(order)) => shared.adapters.order(order),
            Ok(RouterControl::Welcome { .. } | RouterControl::Refused(_)) => return SessionEnd::Protocol,
            Err(error) => return error.into(),
        }
    }
}
