//! Plays a scenario: lets the cluster come together, asks and harms it, heals it, waits until it is at rest, ends it; and
//! collects what was wrong. Called by the binary and by tests.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shoal_common::ambient;
use turmoil::{Builder, Sim};

use crate::cluster::{self, Host, World};
use crate::faults::{Fault, Link, Planned, Way};
use crate::invariants::{self, Tasks};
use crate::load::{self, Book, End};
use crate::log::{Detail, Log, Seconds};
use crate::net::{Sky, Weather};
use crate::scenario::Scenario;
use crate::verdict;

/// One step of the simulation, in which each host has a turn.
const TICK: Duration = Duration::from_millis(1);
/// For a healthy cluster to come together.
const TOGETHER: Duration = Duration::from_secs(10);
/// For the streams of a greeting to be acknowledged: some round trips.
const GREETED: Duration = Duration::from_millis(500);
/// For the cluster to come to rest when all is mended: a worker's longest wait before it dials (5 s), a dial into the void
/// (2 s), a restart that is refused, and what requests that were left behind still run.
const AT_REST: Duration = Duration::from_secs(20);
/// For requests to end after the last fault is mended.
const ENDED: Duration = Duration::from_secs(60);
/// For a cluster to end in order when nothing runs, beyond what a drain may take.
const CLOSED: Duration = Duration::from_secs(15);
/// Between two looks at whether something has come true.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of which seed.
    pub seed: u64,
    /// The log's digest.
    pub digest: String,
    /// What was wrong; nothing, if the run passed.
    pub complaints: Vec<String>,
    /// What there was to be seen.
    pub figures: Figures,
}

/// Counts of a run, or of many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Virtual time in milliseconds.
    pub time_ms: u64,
    /// Requests that were answered whole.
    pub whole: u64,
    /// Requests that ended in an error, or were cut.
    pub failed: u64,
    /// Requests whose client left.
    pub left: u64,
    /// Faults that came to pass.
    pub faults: u64,
    /// Groups that went on elsewhere.
    pub replays: u64,
}

impl Figures {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        let (ours, theirs) = (self.numbers(), other.numbers());
        Self::from_numbers(std::array::from_fn(|at| ours[at] + theirs[at]))
    }

    /// In the order of the fields.
    pub fn numbers(&self) -> [u64; 6] {
        let Self { time_ms, whole, failed, left, faults, replays } = *self;
        [time_ms, whole, failed, left, faults, replays]
    }

    /// From [`numbers`](Self::numbers).
    pub fn from_numbers([time_ms, whole, failed, left, faults, replays]: [u64; 6]) -> Self {
        Self { time_ms, whole, failed, left, faults, replays }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time_ms, whole, failed, left, faults, replays } = self;
        write!(f, "{} s of virtual time, {whole} answers, {failed} errors, {left} left, ", time_ms / 1000)?;
        write!(f, "{faults} faults, {replays} replays")
    }
}

/// Plays `scenario` and writes its log to `log`. One at a time in a process: tasks are numbered over all threads, and in
/// which order a crash drops them follows from their numbers.
pub fn play(scenario: &Scenario, log: &Log, detail: Detail) -> Outcome {
    even_task_numbers();
    let _simulated = ambient::simulate(scenario.seed);
    let _listening = log.listen(detail);
    let recorder = PrometheusBuilder::new().build_recorder();
    let counts = recorder.handle();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut complaints = Vec::new();
    let mut figures = Figures::default();
    match Stage::build(scenario) {
        Err(error) => complaints.push(format!("no simulation: {error:#}")),
        Ok(mut stage) => {
            complaints.extend(stage.run());
            figures = stage.figures(&counts);
        }
    }
    for complaint in &complaints {
        tracing::error!(complaint);
    }
    Outcome { seed: scenario.seed, digest: log.digest(), complaints, figures }
}

/// Tasks of a runtime are kept in a few lists, by their number, and dropped list by list: so that a number stands for the
/// same list in every run, the next task's is a multiple of how many lists there may be.
fn even_task_numbers() {
    const LISTS: u64 = 64;
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers needs nothing");
    let number = async || tokio::spawn(async {}).id().to_string().parse::<u64>().expect("a task's id is its number");
    runtime.block_on(async { while !(number().await + 1).is_multiple_of(LISTS) {} });
}

/// The play goes no further.
struct Stuck(String);

struct Stage<'a> {
    scenario: &'a Scenario,
    sim: Sim<'a>,
    world: Rc<World>,
    sky: Sky,
    book: Book,
    /// When the load began.
    began: Duration,
    /// Faults that came to pass, with the end that they had.
    past: Vec<Planned>,
    /// Hosts that are down and stay so until a fault ends.
    down: BTreeSet<Host>,
}

impl<'a> Stage<'a> {
    fn build(scenario: &'a Scenario) -> anyhow::Result<Self> {
        let mut sim = Builder::new()
            .rng_seed(scenario.seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(scenario.shape.latency)
            .udp_capacity(1 << 14)
            .build();
        let sky = Sky::new(scenario.seed);
        let world = Rc::new(World::new(scenario.shape.clone(), sky.clone())?);
        cluster::start(&mut sim, &world);
        Ok(Self {
            scenario,
            sim,
            world,
            sky,
            book: Book::default(),
            began: Duration::ZERO,
            past: Vec::new(),
            down: BTreeSet::new(),
        })
    }

    /// The whole play; what was wrong.
    fn run(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        let acts = self.come_together().and_then(|before| {
            self.load()?;
            self.rest(&before)?;
            self.close()
        });
        if let Err(Stuck(why)) = acts {
            complaints.push(why);
        }
        let told = self.book.borrow();
        complaints.extend(told.iter().filter_map(|told| verdict::judge(told, self.scenario, &self.past)));
        complaints
    }

    fn step(&mut self) -> Result<(), Stuck> {
        match self.sim.step() {
            Ok(_) => Ok(()),
            Err(error) => Err(Stuck(format!("a host failed: {error}"))),
        }
    }

    /// Steps until nothing is amiss, `within` some time.
    fn until(&mut self, within: Duration, amiss: impl Fn(&Self) -> Vec<String>) -> Result<(), Stuck> {
        let end = self.sim.elapsed() + within;
        loop {
            let look = self.sim.elapsed() + LOOK_EVERY;
            while self.sim.elapsed() < look {
                self.step()?;
            }
            let wrong = amiss(self);
            if wrong.is_empty() {
                return Ok(());
            }
            if self.sim.elapsed() >= end {
                return Err(Stuck(format!("after {within:?} still: {}", wrong.join("; "))));
            }
        }
    }

    fn unrest(&self) -> Vec<String> {
        let books = self.world.books.borrow();
        let mut unrest = invariants::unrest(&books, self.scenario.shape.workers);
        let missing = cluster::hosts(&self.scenario.shape).filter(|host| !books.lives.contains_key(host));
        unrest.extend(missing.map(|host| format!("{} does not run", host.name())));
        unrest
    }

    /// Every worker is a member with every router.
    fn come_together(&mut self) -> Result<Tasks, Stuck> {
        self.until(TOGETHER, Self::unrest)?;
        // For the tasks of the greeting to end.
        let greeted = self.sim.elapsed() + GREETED;
        self.until(
            TOGETHER,
            |stage| if stage.sim.elapsed() < greeted { vec!["greetings".to_owned()] } else { Vec::new() },
        )?;
        Ok(invariants::tasks(&self.world.books.borrow()))
    }

    /// Clients ask, faults come and go.
    fn load(&mut self) -> Result<(), Stuck> {
        self.began = self.sim.elapsed();
        self.say(format_args!("the load begins"));
        let addresses = cluster::http_addresses(&self.sim, &self.scenario.shape);
        let (requests, book) = (self.scenario.requests.clone(), Rc::clone(&self.book));
        self.sim.client("clients", async move {
            load::run(requests, addresses, book).await;
            Ok(())
        });
        let mut coming = self.scenario.faults.iter().peekable();
        let mut under_way: Vec<Planned> = Vec::new();
        let mut end = self.began + ENDED;
        loop {
            let now = self.sim.elapsed() - self.began;
            while let Some(planned) = coming.next_if(|planned| planned.from <= now) {
                self.begin(planned.fault);
                under_way.push(*planned);
                end = self.began + planned.until + ENDED;
            }
            for over in under_way.extract_if(.., |planned| planned.until <= now) {
                self.end(over.fault);
                self.past.push(over);
            }
            self.restart(now);
            self.step()?;
            let is_over = self.book.borrow().len() == self.scenario.requests.len();
            if is_over && under_way.is_empty() && self.down.is_empty() {
                return Ok(());
            }
            if is_over {
                // What was still to come would befall nobody.
                coming = [].iter().peekable();
            }
            if self.sim.elapsed() > end {
                return Err(Stuck(self.hanging()));
            }
        }
    }

    fn hanging(&self) -> String {
        let book = self.book.borrow();
        let ended: BTreeSet<usize> = book.iter().map(|told| told.id).collect();
        let open: Vec<usize> = (0..self.scenario.requests.len()).filter(|id| !ended.contains(id)).collect();
        format!("requests {open:?} have no end, and these are down: {:?}", self.down)
    }

    fn begin(&mut self, fault: Fault) {
        self.say(format_args!("{fault}"));
        match fault {
            Fault::WorkerCrash(worker) => self.crash(Host::Worker(worker)),
            Fault::RouterCrash(router) => self.crash(Host::Router(router)),
            Fault::WorkerDrain(worker) => self.stop(Host::Worker(worker)),
            Fault::RouterStop(router) => self.stop(Host::Router(router)),
            Fault::Cut(link, way) => {
                let (router, worker) = names(link);
                match way {
                    Way::Both => self.sim.partition(router, worker),
                    Way::ToWorker => self.sim.partition_oneway(router, worker),
                    Way::ToRouter => self.sim.partition_oneway(worker, router),
                }
            }
            Fault::Hold(link) => {
                let (router, worker) = names(link);
                self.sim.hold(router, worker);
            }
            Fault::Rough(link, weather) => self.set_weather(link, weather),
            Fault::Slow(link, latency) => self.set_latency(link, latency),
        }
    }

    fn end(&mut self, fault: Fault) {
        self.say(format_args!("no more: {fault}"));
        match fault {
            Fault::WorkerCrash(worker) | Fault::WorkerDrain(worker) => {
                self.down.insert(Host::Worker(worker));
            }
            Fault::RouterCrash(router) | Fault::RouterStop(router) => {
                self.down.insert(Host::Router(router));
            }
            Fault::Cut(link, Way::Both) => {
                let (router, worker) = names(link);
                self.sim.repair(router, worker);
            }
            Fault::Cut(link, Way::ToWorker) => {
                let (router, worker) = names(link);
                self.sim.repair_oneway(router, worker);
            }
            Fault::Cut(link, Way::ToRouter) => {
                let (router, worker) = names(link);
                self.sim.repair_oneway(worker, router);
            }
            Fault::Hold(link) => {
                let (router, worker) = names(link);
                self.sim.release(router, worker);
            }
            Fault::Rough(link, _) => self.set_weather(link, Weather::default()),
            Fault::Slow(link, _) => self.set_latency(link, self.scenario.shape.latency),
        }
    }

    fn crash(&mut self, host: Host) {
        // It may have been about to start again after a drain that lasted.
        self.down.remove(&host);
        // First: what the books hold of it must not outlive it.
        self.world.books.borrow_mut().lives.remove(&host);
        self.sim.crash(host.name());
    }

    fn stop(&mut self, host: Host) {
        self.down.remove(&host);
        if let Some(life) = self.world.books.borrow().lives.get(&host) {
            life.trigger.fire();
        }
    }

    /// Starts what is down and may run again, once it has ended.
    fn restart(&mut self, now: Duration) {
        for host in std::mem::take(&mut self.down) {
            if self.sim.is_host_running(host.name()) {
                self.down.insert(host);
                continue;
            }
            self.say(format_args!("{} is started again", host.name()));
            self.sim.bounce(host.name());
            // A drain may have lasted longer than was planned.
            let its = |fault: Fault| match fault {
                Fault::WorkerDrain(worker) => host == Host::Worker(worker),
                Fault::RouterStop(router) => host == Host::Router(router),
                _ => false,
            };
            if let Some(planned) = self.past.iter_mut().rev().find(|planned| its(planned.fault)) {
                planned.until = planned.until.max(now);
            }
        }
    }

    fn set_weather(&self, Link { router, worker }: Link, weather: Weather) {
        let at = |host: Host| self.sim.lookup(host.name());
        let (router, worker) = (at(Host::Router(router)), at(Host::Worker(worker)));
        self.sky.set(router, worker, weather);
        self.sky.set(worker, router, weather);
    }

    fn set_latency(&self, link: Link, latency: Duration) {
        let (router, worker) = names(link);
        self.sim.set_link_max_message_latency(router, worker, latency);
    }

    /// Everything is healed: the cluster comes to rest, with as many tasks as before.
    fn rest(&mut self, before: &Tasks) -> Result<(), Stuck> {
        self.say(format_args!("all is mended"));
        self.until(AT_REST, |stage| {
            let mut unrest = stage.unrest();
            if unrest.is_empty() {
                unrest = invariants::leftover_tasks(&stage.world.books.borrow(), before);
            }
            unrest
        })
    }

    /// Routers end, then workers, as when a cluster is taken down; nothing is left.
    fn close(&mut self) -> Result<(), Stuck> {
        let (routers, workers): (Vec<_>, Vec<_>) =
            cluster::hosts(&self.scenario.shape).partition(|host| matches!(host, Host::Router(_)));
        for hosts in [routers, workers] {
            hosts.iter().for_each(|host| self.stop(*host));
            self.until(self.scenario.shape.timers.drain + CLOSED, |stage| {
                let books = stage.world.books.borrow();
                let alive = hosts.iter().filter(|host| books.lives.contains_key(host));
                alive.map(|host| format!("{} has not ended", host.name())).collect()
            })?;
        }
        self.until(CLOSED, |stage| stage.lingering())?;
        let leaks = self.world.books.borrow().leaks.clone();
        let told: Vec<_> = leaks.iter().map(|(host, tasks)| format!("{} left {tasks} tasks", host.name())).collect();
        if told.is_empty() { Ok(()) } else { Err(Stuck(told.join("; "))) }
    }

    fn lingering(&self) -> Vec<String> {
        // A look at whether software runs takes the simulation for itself.
        let books = self.world.books.borrow();
        books.lives.keys().map(|host| format!("{} lingers", host.name())).collect()
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        tracing::info!("{} {what}", Seconds(self.sim.elapsed()));
    }

    fn figures(&self, counts: &PrometheusHandle) -> Figures {
        let book = self.book.borrow();
        let count = |test: fn(&End) -> bool| book.iter().filter(|told| test(&told.end)).count() as u64;
        let whole = count(|end| matches!(end, End::Answered(heard) if heard.error.is_none()));
        let left = count(|end| matches!(end, End::Left));
        Figures {
            time_ms: self.sim.elapsed().as_millis() as u64,
            whole,
            failed: book.len() as u64 - whole - left,
            left,
            faults: self.past.len() as u64,
            replays: counter(&counts.render(), "shoal_replays_total"),
        }
    }
}

/// The value of a counter without labels, as `/metrics` would show it.
fn counter(metrics: &str, name: &str) -> u64 {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}

fn names(link: Link) -> (String, String) {
    (Host::Router(link.router).name(), Host::Worker(link.worker).name())
}
