//! The members of the fleet and the rules by which they join, report and leave. Pure: time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_common::config::Timers;
use shoal_common::ids::Name;
use shoal_common::wire::hello::{AdapterOrder, AdapterState, Hello, Refusal, StageReport, Status};

use super::Snapshot;
use super::adapters::{Adapters, News};
use super::orders::{Orders, Pins};
use super::pulse::{Health, Pulse, Vital};
use super::replica::{Line, Replica, Seat};
use crate::catalogue::ServedModel;

/// A worker of the same name that was heard of within this time is taken for alive, and a second one is refused: four
/// status intervals.
pub(super) const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// A worker that asks to serve.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its own words.
    pub hello: Hello,
    /// What it serves, with a tokenizer that was fetched and checked.
    pub model: Arc<ServedModel>,
    /// Its connection.
    pub line: Arc<dyn Line>,
    /// When it asked first, which is the last that was heard of it.
    pub asked: Instant,
}

/// The members.
#[derive(Debug)]
pub struct Roster {
    /// How long an engine may stand still, at least.
    patience: Duration,
    replicas: BTreeMap<Name, Replica>,
    models: BTreeMap<Name, Arc<ServedModel>>,
    pins: Pins,
    next_seat: u64,
}

impl Default for Roster {
    fn default() -> Self {
        Self::new(Timers::default().stall)
    }
}

impl Roster {
    /// Nobody yet. An engine that stands still for longer than `patience`, and than its steps let expect, is stuck.
    pub fn new(patience: Duration) -> Self {
        let (replicas, models, pins) = Default::default();
        Self { patience, replicas, models, pins, next_seat: 0 }
    }

    /// Takes a worker in, or says why not. A new life of a known worker replaces the old one unless that one is alive; a
    /// new connection of the same life replaces the old one in any case, for the worker itself has given that up.
    pub fn join(&mut self, offer: Offer, now: Instant) -> Result<Seat, Refusal> {
        let Offer { hello, model, line, asked } = offer;
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
        let orders = Arc::new(Orders::default());
        self.pins.of(&model.card.name).for_each(|generation| orders.give(AdapterOrder::Pin(generation)));
        let replica = Replica {
            worker: hello.worker.clone(),
            incarnation: hello.incarnation,
            seat,
            model,
            capacity: hello.capacity,
            line,
            status: None,
            adapters: Adapters::default(),
            orders,
            outstanding: Arc::default(),
            build: hello.build,
            locality: hello.locality,
            stages: Arc::default(),
            vital: Arc::new(Vital::new(now)),
            pulse: Pulse::new(self.patience, now),
            heard: asked,
        };
        let old = self.replicas.insert(hello.worker, replica);
        if let Some(old) = old.filter(|old| old.incarnation != hello.incarnation) {
            // Nothing comes of that life any more: groups on it go on at once, and not only when its silence is noticed.
            old.line.close();
        }
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

    /// Notes a worker's load; says so if its engine got stuck with that, or moves again. A report from a place that was given
    /// up is dropped.
    pub fn report(&mut self, worker: &Name, seat: Seat, status: Status, now: Instant) -> Option<Health> {
        let replica = self.seated(worker, seat)?;
        replica.status = Some(status);
        replica.heard = now;
        let beat = replica.pulse.hear(&status, replica.outstanding.prompts(), now);
        replica.vital.note(beat).then_some(beat.health)
    }

    /// Notes what became of an adapter. Words from a place that was given up are dropped.
    pub fn adapter(&mut self, worker: &Name, seat: Seat, state: AdapterState) {
        if let Some(replica) = self.seated(worker, seat) {
            // A worker tells what it has before it first tells its load.
            let news = if replica.status.is_none() { News::Introduction } else { News::Change };
            replica.adapters.note(state, news);
        }
    }

    /// Gives an order to the workers of `model`, or to all. A pin stands until it is taken back: workers that join later
    /// get it too.
    pub fn order(&mut self, model: Option<&Name>, order: AdapterOrder) {
        self.pins.note(model, order);
        let of_model = |replica: &&Replica| model.is_none_or(|name| replica.model.card.name == *name);
        self.replicas.values().filter(of_model).for_each(|replica| replica.orders.give(order));
    }

    /// Notes a head's stages. Words from a place that was given up are dropped.
    pub fn stages(&mut self, worker: &Name, seat: Seat, stages: Arc<[StageReport]>) {
        if let Some(replica) = self.seated(worker, seat) {
            replica.stages = stages;
        }
    }

    /// Forgets a worker and its adapters; its stages, if it had any. A leave from a place that was given up is dropped.
    pub fn leave(&mut self, worker: &Name, seat: Seat) -> Arc<[StageReport]> {
        let left = self.seated(worker, seat).is_some().then(|| self.replicas.remove(worker)).flatten();
        left.map_or_else(Arc::default, |replica| replica.stages)
    }

    /// The member of this name.
    pub fn member(&self, worker: &Name) -> Option<&Replica> {
        self.replicas.get(worker)
    }

    /// Where the orders to a worker wait.
    pub fn orders(&self, worker: &Name) -> Option<Arc<Orders>> {
        self.replicas.get(worker).map(|replica| Arc::clone(&replica.orders))
    }

    /// The members as requests see them.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { replicas: self.replicas.values().cloned().map(Arc::new).collect(), models: self.models.clone() }
    }

    fn seated(&mut self, worker: &Name, seat: Seat) -> Option<&mut Replica> {
        self.replicas.get_mut(worker).filter(|replica| replica.seat == seat)
    }
}

fn is_alive(replica: &Replica, now: Instant) -> bool {
    !replica.line.is_closed() && now.saturating_duration_since(replica.heard) < ALIVE_WITHIN
}
