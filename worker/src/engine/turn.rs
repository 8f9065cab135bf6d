//! The engine's loop: what is read between two steps, and what is published after each. Everything that changes who is here
//! (submissions, cancels, stopped branches, deadlines, clogged streams, orders) happens here and nowhere else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Duration;

use shoal_common::ambient;
use shoal_common::watch;
use shoal_common::wire::hello::{Status, WorkerState};
use shoal_common::wire::message::{GroupFailure, GroupFrame};

use super::admission::Arrival;
use super::group::{LiveGroup, Parking};
use super::guarded::Guarded;
use super::overlap::Flights;
use super::rate::Rate;
use super::sink::Outbox;
use super::step::Scratch;
use super::{COMMANDS, Command, IDLE_TICK, Mode, Orders, admission};
use crate::adapters::Lease;
use crate::backend::{Backend, KvEpoch, LogitsBuffer};
use crate::metrics;
use crate::sampler::Sampler;
use crate::scheduler::{Bounds, GroupId, Pace, Policy, Refused};

/// The engine's ends of what it shares with its handles.
pub(super) struct Links {
    pub(super) inbox: Receiver<Command>,
    pub(super) publish: watch::Sender<Status>,
    pub(super) orders: Arc<Orders>,
    pub(super) wake_queued: Arc<AtomicBool>,
}

/// Everything the engine's thread owns.
pub(super) struct Engine {
    links: Links,
    pub(super) policy: Policy,
    pub(super) backend: Guarded,
    /// What all KV that can be found was computed in; absent while nothing can be computed.
    epoch: Option<KvEpoch>,
    pub(super) sampler: Sampler,
    pub(super) logits: LogitsBuffer,
    pub(super) groups: BTreeMap<GroupId, LiveGroup>,
    pub(super) outbox: Outbox,
    pub(super) rate: Rate,
    pub(super) pace: Pace,
    pub(super) scratch: Scratch,
    pub(super) flights: Flights,
    /// What the last step still takes, see [`Backend::plays_for`].
    pub(super) owed: Duration,
    /// Groups of a turn, memory used again.
    ids: Vec<GroupId>,
    next_group: u64,
    progress: u64,
}

/// What a turn found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Busy,
    Idle,
}

/// What became of the pool's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    GoesOn,
    Changed,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inbox {
    Open,
    Closed,
}

impl Engine {
    pub(super) fn new(bounds: Bounds, backend: Box<dyn Backend>, links: Links) -> Self {
        let mut policy = Policy::new(bounds);
        policy.compute_together(backend.rows_together());
        let mut backend = Guarded::new(backend);
        Self {
            epoch: backend.pin_epoch(),
            links,
            policy,
            backend,
            sampler: Sampler::new(),
            logits: LogitsBuffer::default(),
            groups: BTreeMap::new(),
            outbox: Outbox::default(),
            rate: Rate::default(),
            pace: Pace::new(bounds.slots),
            scratch: Scratch::default(),
            flights: Flights::default(),
            owed: Duration::ZERO,
            ids: Vec::new(),
            next_group: 0,
            progress: 0,
        }
    }

    /// Turns until it is told to stop, or until no handle is left.
    pub(super) fn run(mut self) {
        let mut turn = Turn::Idle;
        while self.read_commands(turn) == Inbox::Open && !self.is_stopped() {
            turn = self.work();
            thread::sleep(self.owed);
            self.tell();
        }
        self.finish();
    }

    /// Whether the loop is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.links.orders.mode() == Mode::Stop
    }

    /// One turn after the commands were read.
    #[cfg(test)]
    pub(super) fn turn(&mut self) -> Turn {
        let turn = self.work();
        self.tell();
        turn
    }

    /// The turn's work: what it says waits in the outbox.
    pub(super) fn work(&mut self) -> Turn {
        self.heed_links();
        self.heed_epoch();
        // Before the step: a router must not wait for a prefill to learn that its group was taken.
        self.outbox.flush();
        self.step()
    }

    /// The end of a turn, once the step has taken its time.
    pub(super) fn tell(&mut self) {
        self.outbox.flush();
        self.publish();
    }

    /// After the last turn.
    pub(super) fn finish(mut self) {
        self.fail_all(GroupFailure::ShuttingDown);
        self.publish();
    }

    /// Sleeps when idle, then takes what has come, at most as much as the channel holds.
    pub(super) fn read_commands(&mut self, turn: Turn) -> Inbox {
        if turn == Turn::Idle {
            match self.links.inbox.recv_timeout(IDLE_TICK) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Inbox::Closed,
            }
        }
        for _ in 0..COMMANDS {
            if self.try_command().is_err() {
                break;
            }
        }
        Inbox::Open
    }

    /// Takes a command without waiting for one.
    pub(super) fn try_command(&mut self) -> Result<(), TryRecvError> {
        let command = self.links.inbox.try_recv()?;
        self.obey(command);
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(arrival) => self.admit(*arrival),
            // A swap and not a store: who finds a wake-up queued has written what it is for, and only a read of the same
            // flag makes that visible here.
            Command::Wake => {
                self.links.wake_queued.swap(false, Ordering::AcqRel);
            }
        }
    }

    fn admit(&mut self, arrival: Arrival) {
        let Arrival { submit, hashes, sink, .. } = &arrival;
        let id = GroupId(self.next_group);
        self.next_group += 1;
        if submit.end.max_tokens == 0 && submit.score_prompt.is_none() {
            self.outbox.say(sink, GroupFrame::Accepted);
            return self.outbox.end(sink);
        }
        let is_lost = self.epoch.is_none() || arrival.adapter.as_ref().is_some_and(Lease::is_lost);
        let refusal = if self.links.orders.mode() != Mode::Serve {
            Some(self.busy())
        } else if is_lost {
            Some(GroupFrame::Failed(GroupFailure::Incomplete))
        } else {
            match self.policy.admit(id, admission::shape(submit, hashes)) {
                Ok(()) => None,
                Err(Refused::Full) => Some(self.busy()),
                Err(Refused::TooLong) => Some(GroupFrame::Failed(GroupFailure::Invalid)),
            }
        };
        match refusal {
            None => {
                self.outbox.say(sink, GroupFrame::Accepted);
                self.groups.insert(id, LiveGroup::new(arrival));
            }
            Some(frame) => {
                self.outbox.say(sink, frame);
                self.outbox.end(sink);
            }
        }
    }

    fn busy(&self) -> GroupFrame {
        busy(self.rate.expected_wait(self.policy.load().queued_tokens))
    }

    /// When the life of the pool's content has ended, forgets all that was computed in it. Who had a part in that must begin
    /// anew, here or elsewhere; and while no other life has begun, nobody does well to wait here.
    pub(super) fn heed_epoch(&mut self) -> Life {
        let now = self.backend.pin_epoch();
        let before = std::mem::replace(&mut self.epoch, now);
        if now == before {
            return Life::GoesOn;
        }
        tracing::info!(?before, ?now, "another life of the kv");
        let is_lost = |(id, group): &(&GroupId, &LiveGroup)| {
            now.is_none() || self.policy.has_begun(**id) || group.has_lost_adapter()
        };
        let ids: Vec<_> = self.groups.iter().filter(is_lost).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.fail(id, GroupFailure::Incomplete));
        self.flights.clear();
        self.policy.forget_kv();
        Life::Changed
    }

    /// Reads every group's link: who is gone, which branches ended, who is too late, who does not drain.
    fn heed_links(&mut self) {
        let now = ambient::now();
        let mut ids = std::mem::take(&mut self.ids);
        ids.extend(self.groups.keys());
        for id in ids.drain(..) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if group.sink.link().is_cancelled() {
                self.drop_group(id);
            } else if group.deadline.is_some_and(|deadline| now >= deadline) {
                self.fail(id, GroupFailure::Deadline);
            } else {
                self.heed_stream(id);
            }
        }
        self.ids = ids;
    }

    fn heed_stream(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let is_clogged = group.sink.link().is_clogged();
        match (group.parking, is_clogged) {
            (Parking::Scheduled, true) => {
                group.parking = Parking::Parked;
                self.policy.park(id);
            }
            (Parking::Parked, false) => {
                group.parking = Parking::Scheduled;
                self.policy.unpark(id);
            }
            _ => {}
        }
        for branch in group.sink.link().take_stopped() {
            group.stop_branch(branch);
            if self.policy.stop_branch(id, branch).is_some() {
                return self.end(id);
            }
        }
    }

    /// The group ends with a failure.
    pub(super) fn fail(&mut self, id: GroupId, failure: GroupFailure) {
        if let Some(group) = self.groups.get(&id) {
            self.outbox.say(&group.sink, GroupFrame::Failed(failure));
            metrics::group_failed(failure);
        }
        self.drop_group(id);
    }

    fn drop_group(&mut self, id: GroupId) {
        self.policy.cancel(id);
        self.end(id);
    }

    /// The group is over; so is its stream.
    pub(super) fn end(&mut self, id: GroupId) {
        if let Some(group) = self.groups.remove(&id) {
            self.outbox.end(&group.sink);
        }
    }

    fn fail_all(&mut self, failure: GroupFailure) {
        while self.try_command().is_ok() {}
        let ids: Vec<_> = self.groups.keys().copied().collect();
        ids.into_iter().for_each(|id| self.fail(id, failure));
        self.outbox.flush();
    }

    pub(super) fn publish(&mut self) {
        self.progress += 1;
        let (load, totals) = (self.policy.load(), self.policy.totals());
        let state = match (self.links.orders.mode(), self.epoch) {
            (Mode::Drain | Mode::Stop, _) => WorkerState::Draining,
            (Mode::Serve, None) => WorkerState::Incomplete,
            (Mode::Serve, Some(_)) => WorkerState::Ready,
        };
        let status = Status {
            state,
            progress: self.progress,
            running: u32::try_from(load.running).unwrap_or(u32::MAX),
            waiting: u32::try_from(load.waiting).unwrap_or(u32::MAX),
            queued_tokens: load.queued_tokens,
            kv_used: load.kv_used,
            tokens_per_second: self.rate.tokens_per_second(),
            looked_up_tokens: totals.looked_up_tokens,
            cached_tokens: totals.cached_tokens,
            preemptions: totals.preemptions,
        };
        self.links.publish.send_replace(status);
    }
}

/// No room for `wait`.
pub(super) fn busy(wait: Duration) -> GroupFrame {
    GroupFrame::Busy { retry_after_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX) }
}
