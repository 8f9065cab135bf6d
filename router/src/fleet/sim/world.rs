//! Moves time from one event to the next and routes each group as a router does: roster, traffic memory and policy are the
//! real ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_common::wire::hello::AdapterOrder;

use super::cast::{self, Open, name_of};
use super::demand::{self, Arrival, MAX_TOKENS};
use super::report::{Report, Routed};
use super::scenario::{Scenario, Turn};
use super::store::Asked;
use super::worker::{Job, Milestone, Worker};
use crate::fleet::adapters::LoadKind;
use crate::fleet::demand::Growth;
use crate::fleet::pick::{Access, Need, Pick};
use crate::fleet::replica::OutstandingGuard;
use crate::fleet::traffic::{Profile, Traffic};
use crate::fleet::{Offer, Roster, Seat, Snapshot};

/// Between two statuses of a worker.
const STATUS_EVERY: Duration = Duration::from_millis(250);

/// How long loads take, in milliseconds, from and to.
const READ_MS: (u64, u64) = (40, 80);
const FETCH_MS: (u64, u64) = (600, 1200);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize),
    Loaded {
        worker: usize,
        life: u64,
        adapter: usize,
    },
    /// Something is reached on a worker, unless its plan has changed since.
    Reached {
        worker: usize,
        plan: u64,
    },
    Statuses,
    Leaves(usize),
    Returns(usize),
}

/// A worker's place in the world.
struct Host {
    worker: Worker,
    /// Absent while it is gone.
    seat: Option<Seat>,
    life: u64,
    plan: u64,
}

struct World<'a> {
    scenario: &'a Scenario,
    policy: &'a dyn Pick,
    arrivals: Vec<Arrival>,
    /// By arrival: what routing knows of it, and what it holds while it runs.
    profiles: Vec<Profile>,
    guards: Vec<Option<OutstandingGuard>>,
    first: Vec<Option<Duration>>,
    hosts: Vec<Host>,
    roster: Roster,
    snapshot: Option<Arc<Snapshot>>,
    traffic: Traffic,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    numbered: u64,
    rng: StdRng,
    begin: Instant,
    report: Report,
}

/// Runs `scenario` under `policy`. Equal seeds meet equal groups, and give equal reports.
pub(crate) fn run(scenario: &Scenario, policy: &dyn Pick, seed: u64) -> Report {
    let mut world = World::new(scenario, policy, seed);
    while let Some(Reverse((now, _, event))) = world.events.pop() {
        world.handle(now, event);
    }
    let waits = world.first.iter().zip(&world.arrivals).filter_map(|(first, arrival)| Some((*first)? - arrival.at));
    world.report.waits = waits.collect();
    world.report.waits.sort_unstable();
    world.report
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, policy: &'a dyn Pick, seed: u64) -> Self {
        let arrivals = demand::arrivals(scenario, seed);
        let hosts = |_| Host { worker: Worker::new(scenario.slots), seat: None, life: 0, plan: 0 };
        let mut world = Self {
            scenario,
            policy,
            profiles: cast::profiles(&arrivals),
            guards: arrivals.iter().map(|_| None).collect(),
            first: vec![None; arrivals.len()],
            hosts: (0..scenario.workers).map(hosts).collect(),
            arrivals,
            roster: Roster::default(),
            snapshot: None,
            traffic: Traffic::default(),
            events: BinaryHeap::new(),
            numbered: 0,
            rng: StdRng::seed_from_u64(seed ^ 0x5eed),
            begin: Instant::now(),
            report: Report::default(),
        };
        (0..scenario.workers).for_each(|index| world.join(index, Duration::ZERO));
        world.plan_events();
        world
    }

    fn plan_events(&mut self) {
        for group in 0..self.arrivals.len() {
            self.at(self.arrivals[group].at, Event::Arrives(group));
        }
        self.at(STATUS_EVERY, Event::Statuses);
        if self.scenario.turn == Turn::Leave {
            let (from, to) = self.scenario.middle();
            self.at(from, Event::Leaves(0));
            self.at(to, Event::Returns(0));
        }
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.numbered += 1;
        self.events.push(Reverse((time, self.numbered, event)));
    }

    fn handle(&mut self, now: Duration, event: Event) {
        match event {
            Event::Arrives(group) => {
                let snapshot = self.snapshot();
                let grew = self.traffic.enter(&mut self.profiles[group], &snapshot, self.begin + now);
                if grew == Growth::Grew {
                    self.load_ahead(group, now);
                }
                self.route(group, now);
            }
            Event::Loaded { worker, life, adapter } if self.hosts[worker].life == life => {
                self.advance(worker, now);
                self.hosts[worker].worker.store.loaded(adapter, now);
                self.settle(worker, now);
            }
            Event::Reached { worker, plan } if self.hosts[worker].plan == plan => {
                self.advance(worker, now);
                self.settle(worker, now);
            }
            Event::Loaded { .. } | Event::Reached { .. } => {}
            Event::Statuses => self.tell_statuses(now),
            Event::Leaves(worker) => self.leave(worker, now),
            Event::Returns(worker) => self.join(worker, now),
        }
    }

    /// Sends a group where the policy says.
    fn route(&mut self, group: usize, now: Duration) {
        let snapshot = self.snapshot();
        let profile = &self.profiles[group];
        let adapter = self.traffic.adapter(profile, &snapshot, self.begin + now);
        let overlaps = self.traffic.overlaps(profile, &snapshot.replicas);
        let need = Need {
            model: &profile.model,
            fingerprint: profile.fingerprint,
            adapter,
            access: Access::Everybody,
            overlaps: &overlaps,
            excluded: &[],
        };
        let Ok(choice) = self.policy.pick(&snapshot, &need) else {
            self.report.lost += 1;
            self.traffic.leave(profile, self.begin + now);
            return;
        };
        self.traffic.sent(profile, &choice.replica);
        let arrival = self.arrivals[group];
        let tokens = u64::from(arrival.prompt + MAX_TOKENS);
        self.guards[group] = Some(choice.replica.reserve(tokens, profile.adapter));
        let worker = self.hosts.iter().position(|host| host.seat == Some(choice.replica.seat));
        let worker = worker.expect("only hosts are members");
        let width = adapter.map_or(0, |adapter| adapter.width.0);
        self.report.routed.push(Routed { at: now, adapter: arrival.adapter, width, worker, why: choice.why });
        self.put(group, worker, now);
    }

    fn put(&mut self, group: usize, worker: usize, now: Duration) {
        self.advance(worker, now);
        let arrival = self.arrivals[group];
        let blocks = self.profiles[group].blocks.clone();
        let job = Job::new(group, arrival.adapter, (arrival.prompt, arrival.answer), blocks);
        let asked = self.hosts[worker].worker.take(job, now);
        self.report.hits += usize::from(asked == Asked::There);
        self.begin_load(worker, arrival.adapter, asked, now);
        self.settle(worker, now);
    }

    /// Has an adapter loaded where it is worth it, before a group needs it there.
    fn load_ahead(&mut self, group: usize, now: Duration) {
        let snapshot = self.snapshot();
        let profile = &self.profiles[group];
        let need = Need {
            model: &profile.model,
            fingerprint: profile.fingerprint,
            adapter: self.traffic.adapter(profile, &snapshot, self.begin + now),
            access: Access::Everybody,
            overlaps: &Default::default(),
            excluded: &[],
        };
        let adapter = self.arrivals[group].adapter;
        let ahead = self.policy.ahead(&snapshot, &need);
        ahead.iter().for_each(|replica| replica.orders.give(AdapterOrder::Load(cast::generation(adapter))));
        for worker in 0..self.hosts.len() {
            let orders = ahead.iter().find(|replica| Some(replica.seat) == self.hosts[worker].seat);
            if orders.and_then(|replica| replica.orders.take()).is_some() {
                let asked = self.hosts[worker].worker.store.ask(adapter, now);
                self.report.ahead += usize::from(matches!(asked, Asked::Begins(_)));
                self.report.over_budget += usize::from(asked == Asked::NoSlot);
                self.begin_load(worker, adapter, asked, now);
                self.tell_news(worker);
            }
        }
    }

    fn begin_load(&mut self, worker: usize, adapter: usize, asked: Asked, now: Duration) {
        let Asked::Begins(kind) = asked else { return };
        let (from, to) = match kind {
            LoadKind::Read => READ_MS,
            LoadKind::Fetch => FETCH_MS,
        };
        match kind {
            LoadKind::Read => self.report.reads += 1,
            LoadKind::Fetch => self.report.fetches += 1,
        }
        let takes = Duration::from_millis(self.rng.random_range(from..=to));
        let life = self.hosts[worker].life;
        self.at(now + takes, Event::Loaded { worker, life, adapter });
    }

    /// Brings a worker up to `now`.
    fn advance(&mut self, worker: usize, now: Duration) {
        for milestone in self.hosts[worker].worker.compute(now) {
            match milestone {
                Milestone::First(group) => {
                    self.first[group].get_or_insert(now);
                }
                Milestone::Done(group) => {
                    self.guards[group] = None;
                    self.traffic.leave(&self.profiles[group], self.begin + now);
                }
            }
        }
    }

    /// Starts what can start on a worker, and plans what is reached next.
    fn settle(&mut self, worker: usize, now: Duration) {
        // First those whose adapters are there: nothing may be evicted under them.
        self.hosts[worker].worker.start(now);
        for (adapter, asked) in self.hosts[worker].worker.ask_again(now) {
            self.begin_load(worker, adapter, asked, now);
        }
        let host = &mut self.hosts[worker];
        host.plan += 1;
        let (plan, next) = (host.plan, host.worker.next());
        self.tell_news(worker);
        if let Some(next) = next {
            // At least a nanosecond on, or rounding could hold time still.
            self.at(next.max(now + Duration::from_nanos(1)), Event::Reached { worker, plan });
        }
    }

    fn tell_news(&mut self, worker: usize) {
        let Some(seat) = self.hosts[worker].seat else { return };
        let news = self.hosts[worker].worker.store.news();
        self.snapshot = self.snapshot.take().filter(|_| news.is_empty());
        news.into_iter().for_each(|state| self.roster.adapter(&name_of(worker), seat, state));
    }

    fn tell_status(&mut self, worker: usize, seat: Seat, now: Duration) {
        let status = self.hosts[worker].worker.status(now.as_millis() as u64);
        self.roster.report(&name_of(worker), seat, status, self.begin + now);
    }

    fn tell_statuses(&mut self, now: Duration) {
        for worker in 0..self.hosts.len() {
            let Some(seat) = self.hosts[worker].seat else { continue };
            self.advance(worker, now);
            self.settle(worker, now);
            self.tell_status(worker, seat, now);
        }
        self.snapshot = None;
        if now < self.scenario.time {
            self.at(now + STATUS_EVERY, Event::Statuses);
        }
    }

    /// A worker dies: its groups go elsewhere.
    fn leave(&mut self, worker: usize, now: Duration) {
        self.advance(worker, now);
        let Some(seat) = self.hosts[worker].seat.take() else { return };
        self.roster.leave(&name_of(worker), seat);
        self.snapshot = None;
        let host = &mut self.hosts[worker];
        (host.life, host.plan) = (host.life + 1, host.plan + 1);
        for group in host.worker.restart() {
            self.guards[group] = None;
            self.route(group, now);
        }
    }

    fn join(&mut self, worker: usize, now: Duration) {
        let hello = cast::hello(worker, self.scenario, self.hosts[worker].life);
        let asked = self.begin + now;
        let offer = Offer { hello, model: cast::model(), line: Arc::new(Open), asked };
        let seat = self.roster.join(offer, asked).expect("nobody else has this name");
        self.snapshot = None;
        self.hosts[worker].seat = Some(seat);
        self.advance(worker, now);
        self.hosts[worker].worker.store.introduce();
        self.tell_news(worker);
        self.tell_status(worker, seat, now);
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        Arc::clone(self.snapshot.get_or_insert_with(|| Arc::new(self.roster.snapshot())))
    }
}
