//! Plays a scenario: lets the cluster come together, asks and harms it, heals it, waits until it is at rest, ends it; and
//! collects what was wrong. Called by the binary and by tests.

mod befall;

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use shoal_common::ambient;
use turmoil::{Builder, Sim};

use crate::cluster::{self, Host, World};
use crate::faults::Planned;
use crate::figures::{Figures, counter};
use crate::invariants::{self, Tasks};
use crate::load::{self, Book, End};
use crate::log::{Detail, Log, Seconds};
use crate::net::Sky;
use crate::scenario::Scenario;
use crate::verdict;

/// One step of the simulation, in which each host has a turn.
const TICK: Duration = Duration::from_millis(1);
/// For a healthy cluster to come together.
const TOGETHER: Duration = Duration::from_secs(10);
/// No task comes or goes for so long when a greeting is over: some round trips.
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
        // A greeting's streams end after it: whoever is asked for the tokenizer has one more for a few round trips, and a
        // later life of it, which is not asked, never has.
        let (mut tasks, mut since) = (self.tasks(), self.sim.elapsed());
        let end = since + TOGETHER;
        while self.sim.elapsed() < since + GREETED {
            self.step()?;
            if self.tasks() != tasks {
                (tasks, since) = (self.tasks(), self.sim.elapsed());
            }
            if self.sim.elapsed() > end {
                return Err(Stuck("tasks come and go, and nothing was asked".to_owned()));
            }
        }
        Ok(tasks)
    }

    fn tasks(&self) -> Tasks {
        invariants::tasks(&self.world.books.borrow())
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
