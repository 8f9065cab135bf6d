//! What befalls a cluster: faults with their beginning and end, drawn at random, and what each does to the simulation.
//! Faults of one host or one link never overlap, so that each end mends exactly what its beginning broke.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::net::Weather;
use crate::scenario::Shape;

/// Faults begin within this time of the load's beginning.
const WITHIN: Duration = Duration::from_secs(12);
/// Between two faults of one host or link.
const GAP: Duration = Duration::from_secs(1);

/// A link between a router and a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// One end.
    pub router: usize,
    /// The other.
    pub worker: usize,
}

/// Which way a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Both ways.
    Both,
    /// What the worker sends arrives.
    ToWorker,
    /// What the router sends arrives.
    ToRouter,
}

/// Something that goes wrong, and what its end mends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The worker's process is killed; it is started again.
    WorkerCrash(usize),
    /// The worker is told to end, and does so in order; it is started again.
    WorkerDrain(usize),
    /// The router's process is killed; it is started again.
    RouterCrash(usize),
    /// The router is told to end, and does so in order; it is started again.
    RouterStop(usize),
    /// Nothing arrives.
    Cut(Link, Way),
    /// Nothing arrives, and in the end all of it at once: what a worker looks like that was stopped for a while.
    Hold(Link),
    /// Datagrams are lost and doubled.
    Rough(Link, Weather),
    /// Datagrams take up to this time.
    Slow(Link, Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkerCrash(worker) => write!(f, "worker {worker} crashes"),
            Self::WorkerDrain(worker) => write!(f, "worker {worker} is told to end"),
            Self::RouterCrash(router) => write!(f, "router {router} crashes"),
            Self::RouterStop(router) => write!(f, "router {router} is told to end"),
            Self::Cut(link, way) => write!(f, "link {}-{} is cut, {way:?}", link.router, link.worker),
            Self::Hold(link) => write!(f, "link {}-{} holds everything back", link.router, link.worker),
            Self::Rough(link, Weather { loss, duplicates }) => {
                write!(f, "link {}-{} loses {loss:.3} and doubles {duplicates:.3}", link.router, link.worker)
            }
            Self::Slow(link, latency) => write!(f, "link {}-{} takes up to {latency:?}", link.router, link.worker),
        }
    }
}

/// Loss that must not be noticed.
const LIGHT_LOSS: f64 = 0.05;

impl Fault {
    /// Whether requests of `router` may find `worker` gone, or lose it, because of this.
    pub fn parts(&self, router: usize, worker: usize) -> bool {
        match *self {
            Self::WorkerCrash(who) | Self::WorkerDrain(who) => who == worker,
            Self::RouterCrash(who) | Self::RouterStop(who) => who == router,
            Self::Cut(link, _) | Self::Hold(link) => link == Link { router, worker },
            Self::Rough(link, weather) => link == Link { router, worker } && weather.loss > LIGHT_LOSS,
            Self::Slow(..) => false,
        }
    }

    /// Whether requests of `router` may break off because of this.
    pub fn breaks(&self, router: usize) -> bool {
        matches!(*self, Self::RouterCrash(who) | Self::RouterStop(who) if who == router)
    }
}

/// A fault with its time, since the load began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// From when.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
}

/// A worker that came back may have to be found dead first.
const WORKER_BACK: Duration = Duration::from_secs(2);
/// A router that came back is dialled when its workers have noticed that it was gone; so is one behind a link that was
/// mended. That takes the idle time, or three times what the transport waits for an answer, which a link that was slow or
/// silent has made long; and then the wait before the next dial.
const LINK_BACK: Duration = Duration::from_secs(6);

impl Planned {
    /// Until when it may be felt.
    pub fn felt_until(&self) -> Duration {
        let back = match self.fault {
            Fault::WorkerCrash(_) | Fault::WorkerDrain(_) => WORKER_BACK,
            _ => LINK_BACK,
        };
        self.until + back
    }
}

/// What faults have in common that must not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Worker(usize),
    Router(usize),
    Link(Link),
}

impl Fault {
    fn place(&self) -> Place {
        match *self {
            Self::WorkerCrash(worker) | Self::WorkerDrain(worker) => Place::Worker(worker),
            Self::RouterCrash(router) | Self::RouterStop(router) => Place::Router(router),
            Self::Cut(link, _) | Self::Hold(link) | Self::Rough(link, _) | Self::Slow(link, _) => Place::Link(link),
        }
    }
}

/// The faults of a run, by beginning. One run in eight has none.
pub fn draw(shape: &Shape, numbers: &mut StdRng) -> Vec<Planned> {
    let count = if numbers.random_bool(0.125) { 0 } else { numbers.random_range(1..=6) };
    let mut free_from: BTreeMap<Place, Duration> = BTreeMap::new();
    let mut planned = Vec::new();
    for _ in 0..count {
        let fault = fault(shape, numbers);
        let from = WITHIN.mul_f64(numbers.random());
        let until = from + Duration::from_millis(numbers.random_range(50..6_000));
        let free = free_from.entry(fault.place()).or_default();
        if from >= *free {
            *free = until + GAP;
            planned.push(Planned { fault, from, until });
        }
    }
    planned.sort_by_key(|fault| fault.from);
    planned
}

fn fault(shape: &Shape, numbers: &mut StdRng) -> Fault {
    let (worker, router) = (numbers.random_range(0..shape.workers), numbers.random_range(0..shape.routers));
    let link = Link { router, worker };
    let most = if numbers.random_bool(0.5) { LIGHT_LOSS } else { 0.4 };
    let weather = Weather { loss: numbers.random_range(0.0..most), duplicates: numbers.random_range(0.0..0.1) };
    match numbers.random_range(0..16) {
        0..5 => Fault::WorkerCrash(worker),
        5..7 => Fault::WorkerDrain(worker),
        7 => Fault::RouterCrash(router),
        8 => Fault::RouterStop(router),
        9 => Fault::Cut(link, Way::Both),
        10 => Fault::Cut(link, Way::ToWorker),
        11 => Fault::Cut(link, Way::ToRouter),
        12 => Fault::Hold(link),
        13..15 => Fault::Rough(link, weather),
        _ => Fault::Slow(link, Duration::from_millis(numbers.random_range(20..200))),
    }
}
