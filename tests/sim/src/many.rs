//! Many seeds, shared among jobs. A job is a process of its own: see [`play`]. Each says at once which of its seeds fail,
//! and in the end what all of them came to, in one line of JSON for the process that started it.

use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use shoal_sim::log::{Detail, Log};
use shoal_sim::play::{Figures, play};
use shoal_sim::scenario::Scenario;

use crate::{Flags, Share, report};

/// Plays all seeds of `flags`.
pub(crate) fn all(flags: &Flags) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let jobs = flags.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get) as u64;
    let jobs = (0..jobs).map(|job| start(flags, Share { first: job, of: jobs })).collect::<Result<Vec<_>, _>>()?;
    let mut tally = Tally::default();
    for job in jobs {
        tally.add(&finish(job)?);
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

fn start(flags: &Flags, share: Share) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.arg("--seeds").arg(format!("{}..{}", flags.seeds.start, flags.seeds.end));
    command.arg("--share").arg(format!("{}/{}", share.first, share.of));
    command.args(flags.twice.then_some("--twice"));
    command.stdout(Stdio::piped()).spawn().context("a job cannot be started")
}

fn finish(mut job: Child) -> anyhow::Result<Tally> {
    let told = job.stdout.take().context("a job's output is piped")?;
    let last = BufReader::new(told).lines().last().transpose()?.unwrap_or_default();
    job.wait()?;
    serde_json::from_str(&last).ok().and_then(|told| Tally::read(&told)).context("a job broke off: its seed is above")
}

/// What one job does.
pub(crate) fn work(flags: &Flags, share: Share) -> ExitCode {
    let mut tally = Tally::default();
    for seed in flags.seeds.clone().skip(share.first as usize).step_by(share.of as usize) {
        let (scenario, log) = (Scenario::draw(seed), Log::default());
        let mut outcome = play(&scenario, &log, Detail::Facts);
        if flags.twice {
            outcome.complaints.extend(again(&scenario, &log, Detail::Facts));
        }
        let failed = u64::from(report(&outcome) == ExitCode::FAILURE);
        tally.add(&Tally { seeds: 1, failed, figures: outcome.figures });
    }
    println!("{}", tally.told());
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
