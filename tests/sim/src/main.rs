//! `shoal-sim`: plays one seed and shows its log, or many and says which fail. `scripts/sim` builds and calls it.

mod many;

use std::fs;
use std::num::NonZero;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use shoal_sim::log::{Detail, Log};
use shoal_sim::play::{Outcome, play};
use shoal_sim::scenario::Scenario;

/// The whole cluster in one thread and in virtual time, under seeded faults.
#[derive(Debug, Parser)]
#[command(name = "shoal-sim")]
struct Flags {
    /// Play this seed and show its log.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Play these seeds and say which fail; `N` stands for `0..N`.
    #[arg(long, value_name = "A..B", default_value = "0..300", value_parser = range)]
    seeds: Range<u64>,
    /// Seeds that are played at once, each in a process; one per core without.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZero<usize>>,
    /// Play each seed twice: both times must give the same log.
    #[arg(long)]
    twice: bool,
    /// Write the seed's log here and not to the screen.
    #[arg(long, value_name = "FILE", requires = "seed")]
    log: Option<PathBuf>,
    /// Leave out what befalls the cluster.
    #[arg(long, requires = "seed")]
    calm: bool,
    /// Log what a developer would want to see, too.
    #[arg(long, requires = "seed")]
    debug: bool,
    /// Play every N-th of the seeds only, from the K-th on: what one job of several does.
    #[arg(long, value_name = "K/N", hide = true, value_parser = share)]
    share: Option<Share>,
}

/// Seeds of a job: every `of`-th from the `first`.
#[derive(Clone, Copy, Debug)]
struct Share {
    first: u64,
    of: u64,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no number"));
    match text.split_once("..") {
        Some((from, to)) => Ok(number(from)?..number(to)?),
        None => Ok(0..number(text)?),
    }
}

fn share(text: &str) -> Result<Share, String> {
    let numbers = text.split_once('/').and_then(|(first, of)| Some((first.parse().ok()?, of.parse().ok()?)));
    let (first, of) = numbers.filter(|(_, of)| *of > 0).ok_or("must be K/N")?;
    Ok(Share { first, of })
}

fn main() -> anyhow::Result<ExitCode> {
    let flags = Flags::parse();
    match (flags.seed, flags.share) {
        (Some(seed), _) => one(seed, &flags),
        (None, Some(share)) => Ok(many::work(&flags, share)),
        (None, None) => many::all(&flags),
    }
}

fn one(seed: u64, flags: &Flags) -> anyhow::Result<ExitCode> {
    let (log, detail) = (Log::default(), if flags.debug { Detail::Debug } else { Detail::Facts });
    let mut scenario = Scenario::draw(seed);
    if flags.calm {
        scenario.faults.clear();
    }
    let mut outcome = play(&scenario, &log, detail);
    if flags.twice {
        outcome.complaints.extend(many::again(&scenario, &log, detail));
    }
    match &flags.log {
        Some(path) => fs::write(path, log.text()).with_context(|| format!("cannot write {}", path.display()))?,
        None => print!("{}", log.text()),
    }
    println!("seed {seed}: log {}, {}", outcome.digest, outcome.figures);
    Ok(report(&outcome))
}

/// Says what was wrong, if anything.
fn report(outcome: &Outcome) -> ExitCode {
    if outcome.complaints.is_empty() {
        return ExitCode::SUCCESS;
    }
    let lines: String = outcome.complaints.iter().map(|complaint| format!("  {complaint}\n")).collect();
    eprint!("seed {} failed; `scripts/sim --seed {}` plays it again:\n{lines}", outcome.seed, outcome.seed);
    ExitCode::FAILURE
}
