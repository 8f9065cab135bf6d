//! Many seeds, shared among jobs. A job is a process of its own: see [`play`]. It says at once which of its seeds fail, and
//! after each one what that came to, in a line of JSON for the process that started it, which adds them up and says how far
//! all are.

use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use shoal_sim::figures::Figures;
use shoal_sim::log::{Detail, Log};
use shoal_sim::play::play;
use shoal_sim::scenario::Scenario;

use crate::{Flags, Share, report};

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Tallies that wait to be added up.
const TALLIES: usize = 64;

/// Plays all seeds of `flags`.
pub(crate) fn all(flags: &Flags) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let jobs = flags.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get) as u64;
    let (tallies, told) = sync_channel(TALLIES);
    let start = |job| start(flags, Share { first: job, of: jobs }, tallies.clone());
    let jobs = (0..jobs).map(start).collect::<Result<Vec<_>, _>>()?;
    drop(tallies);
    let tally = add_up(told, flags.seeds.clone().count() as u64);
    for mut job in jobs {
        anyhow::ensure!(job.wait()?.success(), "a job broke off: one of its seeds is the reason");
    }
    let (seeds, took) = (tally.seeds, began.elapsed().as_secs_f64());
    println!(
        "{seeds} seeds in {took:.1} s ({:.1} a second), {} failed; {}",
        seeds as f64 / took,
        tally.failed,
        tally.figures
    );
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds up what comes until every job has ended, and says now and then how far they are.
fn add_up(told: Receiver<Tally>, seeds: u64) -> Tally {
    let (mut tally, mut said) = (Tally::default(), Instant::now());
    for one in told {
        tally.add(&one);
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            eprintln!("{} of {seeds} seeds, {} failed", tally.seeds, tally.failed);
        }
    }
    tally
}

fn start(flags: &Flags, share: Share, tallies: SyncSender<Tally>) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.arg("--seeds").arg(format!("{}..{}", flags.seeds.start, flags.seeds.end));
    command.arg("--share").arg(format!("{}/{}", share.first, share.of));
    command.args(flags.twice.then_some("--twice"));
    let mut job = command.stdout(Stdio::piped()).spawn().context("a job cannot be started")?;
    let lines = job.stdout.take().context("a job's output is piped")?;
    thread::spawn(move || listen(lines, &tallies));
    Ok(job)
}

fn listen(lines: ChildStdout, tallies: &SyncSender<Tally>) {
    let read = |line: String| Tally::read(&serde_json::from_str(&line).ok()?);
    for tally in BufReader::new(lines).lines().map_while(Result::ok).filter_map(read) {
        // Fails only where nobody adds up any more.
        let _ = tallies.send(tally);
    }
}

/// What one job does.
pub(crate) fn work(flags: &Flags, share: Share) -> ExitCode {
    for seed in flags.seeds.clone().skip(share.first as usize).step_by(share.of as usize) {
        let (scenario, log) = (Scenario::draw(seed), Log::default());
        let mut outcome = play(&scenario, &log, Detail::Facts);
        if flags.twice {
            outcome.complaints.extend(again(&scenario, &log, Detail::Facts));
        }
        let failed = u64::from(report(&outcome) == ExitCode::FAILURE);
        println!("{}", Tally { seeds: 1, failed, figures: outcome.figures }.told());
    }
    ExitCode::SUCCESS
}

/// Plays `scenario` again and says where its log is another than `first`.
pub(crate) fn again(scenario: &Scenario, first: &Log, detail: Detail) -> Option<String> {
    let second = Log::default();
    play(scenario, &second, detail);
    if second.digest() == first.digest() {
        return None;
    }
    let (first, second) = (first.text(), second.text());
    let parted = first.lines().zip(second.lines()).find(|(first, second)| first != second);
    let (first, second) = parted.unwrap_or(("the one is longer", "than the other"));
    Some(format!("it has another log the second time:\n    {first}\n    {second}"))
}

/// What many runs came to.
#[derive(Default)]
struct Tally {
    seeds: u64,
    failed: u64,
    figures: Figures,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.failed += other.failed;
        self.figures = self.figures.and(other.figures);
    }

    fn told(&self) -> Value {
        json!({ "seeds": self.seeds, "failed": self.failed, "figures": self.figures.numbers() })
    }

    fn read(told: &Value) -> Option<Self> {
        let numbers: Vec<u64> = told["figures"].as_array()?.iter().filter_map(Value::as_u64).collect();
        let figures = Figures::from_numbers(numbers.try_into().ok()?);
        Some(Self { seeds: told["seeds"].as_u64()?, failed: told["failed"].as_u64()?, figures })
    }
}
