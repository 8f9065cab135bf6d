//! A group's way to its replicas: what it needs, what it met on the way, and what the caller is told when nobody is left.
//! Counts in the demand for its adapter for as long as it lives.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_common::ambient;
use shoal_common::wire::hello::{AdapterOrder, STATUS_EVERY_MS};

use super::attempt::Trouble;
use super::returning::Returning;
use super::setbacks::Loss;
use super::{DEFAULT_RETRY_AFTER, DispatchError, Dispatcher};
use crate::fleet::demand::Growth;
use crate::fleet::pick::{Access, AdapterNeed, Choice, Need, Unroutable, Why};
use crate::fleet::prefix::Overlaps;
use crate::fleet::traffic::{Profile, Traffic};
use crate::fleet::{Replica, Seat, Snapshot};

/// How long a replica is left alone that lost a part of its model, for its status to tell whether it has that again; or that is
/// full while a group waits in the middle of its answer.
const REST: Duration = Duration::from_millis(STATUS_EVERY_MS);

/// The way of one group.
#[derive(Debug)]
pub(super) struct Route {
    dispatcher: Dispatcher,
    profile: Profile,
    access: Access,
    /// Places that failed or refused it: never tried again, unless they are resting. At most one per worker that was ever
    /// tried.
    excluded: Vec<Seat>,
    /// Those of them that were full. That is over when the group is on its way again.
    full: Vec<Seat>,
    /// Those of them that are tried again once a time has come.
    resting: Vec<(Seat, tokio::time::Instant)>,
    /// The shortest wait that a full replica has told.
    busy: Option<Duration>,
    /// Whether a replica could not have the adapter.
    lacked: bool,
    /// A worker that may come back.
    returning: Option<Returning>,
}

impl Route {
    /// Sets out. If that makes the adapter worth more workers, those are told to load it.
    pub(super) fn new(dispatcher: &Dispatcher, profile: Profile, access: Access) -> Self {
        let mut route = Self {
            dispatcher: dispatcher.clone(),
            profile,
            access,
            excluded: Vec::new(),
            full: Vec::new(),
            resting: Vec::new(),
            busy: None,
            lacked: false,
            returning: None,
        };
        let snapshot = route.dispatcher.view.now();
        let growth = lock(&dispatcher.traffic).enter(&mut route.profile, &snapshot, ambient::now());
        if growth == Growth::Grew {
            route.load_ahead(&snapshot);
        }
        route
    }

    /// A replica for the next attempt; waits for one to appear, if it may.
    pub(super) async fn choose(&mut self, wait: Duration) -> Result<Choice, Unroutable> {
        if let Some(returning) = self.returning.take()
            && let Some(choice) = self.returned(&returning).await
        {
            return Ok(choice);
        }
        let mut view = self.dispatcher.view.clone();
        let mut last = Unroutable::Nobody;
        let found = tokio::time::timeout(wait, async {
            loop {
                self.end_rests();
                last = match self.pick(&view.now()) {
                    Err(passing @ (Unroutable::Nobody | Unroutable::NoRoom)) => passing,
                    settled => return Some(settled),
                };
                tokio::select! {
                    biased;
                    changed = view.changed() => if !changed {
                        return None;
                    },
                    () = rested(&self.resting) => {}
                }
            }
        });
        let found = found.await.ok().flatten();
        found.unwrap_or(Err(last))
    }

    /// The replica took the group.
    pub(super) fn taken(&self, choice: &Choice) {
        self.remembering(|traffic| traffic.sent(&self.profile, &choice.replica));
        let (worker, why) = (&choice.replica.worker, choice.why);
        tracing::debug!(model = %self.profile.model, %worker, %why, "a group was routed");
        metrics::counter!("shoal_route_total", "why" => why.label()).increment(1);
    }

    /// A replica did not take the group, or lost it. One that is full is asked again after a rest where the group is `patient`.
    pub(super) fn avoid(&mut self, seat: Seat, trouble: &Trouble, is_patient: bool) {
        let rested = tokio::time::Instant::now() + REST;
        match trouble {
            Trouble::Full { retry_after } => {
                if is_patient {
                    self.resting.push((seat, rested));
                } else {
                    self.full.push(seat);
                }
                self.busy = Some(self.busy.map_or(*retry_after, |known| known.min(*retry_after)));
            }
            Trouble::Adapter => self.lacked = true,
            Trouble::Incomplete => self.resting.push((seat, rested)),
            // Nobody is sent there until it moves, and then there is nothing against it.
            Trouble::Stuck => return,
            Trouble::Gone
            | Trouble::Replica
            | Trouble::Broken
            | Trouble::Silent
            | Trouble::Parting
            | Trouble::Group(_) => {}
        }
        self.excluded.push(seat);
    }

    /// Who has rested may be tried again.
    fn end_rests(&mut self) {
        let now = tokio::time::Instant::now();
        for (seat, _) in self.resting.extract_if(.., |(_, until)| *until <= now) {
            self.excluded.retain(|excluded| *excluded != seat);
        }
    }

    /// A replica was lost, and with it `context` tokens: what full ones said before is old. One that was only out of reach
    /// may be back soon.
    pub(super) fn lose(&mut self, replica: &Replica, loss: Loss, context: u64) {
        self.busy = None;
        let full = std::mem::take(&mut self.full);
        self.excluded.retain(|seat| !full.contains(seat));
        let others = &self.dispatcher.view.now().replicas;
        self.returning = Returning::of(replica, loss, context, others);
    }

    /// The worker that was lost, if it is back in time.
    async fn returned(&self, returning: &Returning) -> Option<Choice> {
        let mut view = self.dispatcher.view.clone();
        let back = tokio::time::timeout(returning.patience, async {
            loop {
                if let Ok(choice) = self.pick(&returning.alone(&view.now())) {
                    return Some(Choice { why: Why::Returned, ..choice });
                }
                if !view.changed().await {
                    return None;
                }
            }
        });
        back.await.ok().flatten()
    }

    /// Whether the engine of `replica`, which stands still, moves within `wait`, and before another one could take the group.
    pub(super) async fn outlasts(&self, replica: &Replica, wait: Duration) -> bool {
        let mut view = self.dispatcher.view.clone();
        let waited = tokio::time::timeout(wait, async {
            loop {
                let now = view.now();
                if !now.replicas.iter().any(|there| there.seat == replica.seat) {
                    return false;
                }
                if let Ok(choice) = self.pick(&now) {
                    return choice.replica.seat == replica.seat;
                }
                tokio::select! {
                    biased;
                    changed = view.changed() => if !changed {
                        return false;
                    },
                    () = replica.vital.moves() => return true,
                }
            }
        });
        waited.await.unwrap_or(false)
    }

    /// What the caller is told when no replica is left after `replays`.
    pub(super) fn dead_end(&self, unroutable: Unroutable, replays: u32) -> DispatchError {
        let view = &self.dispatcher.view;
        match (unroutable, self.busy) {
            (Unroutable::Forbidden, _) => DispatchError::Forbidden,
            (Unroutable::AdapterRefused { reason }, _) => DispatchError::AdapterRefused { reason },
            (_, Some(retry_after)) => DispatchError::Busy { retry_after },
            (Unroutable::NoRoom, None) => DispatchError::AdapterUnavailable { retry_after: view.expected_load() },
            (Unroutable::Nobody, None) if self.lacked => {
                DispatchError::AdapterUnavailable { retry_after: view.expected_load() }
            }
            (Unroutable::Nobody, None) if replays > 0 => DispatchError::Lost,
            (Unroutable::Nobody, None) => DispatchError::Unavailable { retry_after: DEFAULT_RETRY_AFTER },
        }
    }

    fn pick(&self, snapshot: &Snapshot) -> Result<Choice, Unroutable> {
        let (adapter, overlaps) = self.remembering(|traffic| {
            let adapter = traffic.adapter(&self.profile, snapshot, ambient::now());
            (adapter, traffic.overlaps(&self.profile, &snapshot.replicas))
        });
        self.dispatcher.policy.pick(snapshot, &self.need(adapter, &overlaps))
    }

    fn load_ahead(&self, snapshot: &Snapshot) {
        let adapter = self.remembering(|traffic| traffic.adapter(&self.profile, snapshot, ambient::now()));
        let Some(generation) = adapter.map(|adapter| adapter.generation) else { return };
        let overlaps = Overlaps::default();
        for replica in self.dispatcher.policy.ahead(snapshot, &self.need(adapter, &overlaps)) {
            tracing::debug!(%generation, worker = %replica.worker, "an adapter is loaded ahead");
            metrics::counter!("shoal_adapter_loads_ahead_total").increment(1);
            replica.orders.give(AdapterOrder::Load(generation));
        }
    }

    fn need<'a>(&'a self, adapter: Option<AdapterNeed>, overlaps: &'a Overlaps) -> Need<'a> {
        Need {
            model: &self.profile.model,
            fingerprint: self.profile.fingerprint,
            adapter,
            access: self.access,
            overlaps,
            excluded: &self.excluded,
        }
    }

    fn remembering<T>(&self, with: impl FnOnce(&mut Traffic) -> T) -> T {
        with(&mut lock(&self.dispatcher.traffic))
    }
}

/// Resolves when the first rest ends.
async fn rested(resting: &[(Seat, tokio::time::Instant)]) {
    match resting.iter().map(|(_, until)| *until).min() {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn lock(traffic: &Mutex<Traffic>) -> MutexGuard<'_, Traffic> {
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Route {
    fn drop(&mut self) {
        self.remembering(|traffic| traffic.leave(&self.profile, ambient::now()));
    }
}
