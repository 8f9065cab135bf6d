//! Runs simulated clusters under the router's policy and under simpler ones, prints what came of it and draws it:
//!
//! ```sh
//! cargo run --release -p shoal-router --example routing-sim -- --seed 1 --plot docs/routing.svg
//! cargo run --release -p shoal-router --example routing-sim -- --adapters 1000 --workers 2 --slots 32 --zipf 1.1
//! ```
//!
//! Without a cluster's sizes the four scenarios of `docs/routing.md` are run.

use shoal_router::{catalogue, fleet, text};

mod plot;
#[path = "../../src/fleet/sim/mod.rs"]
mod sim;
mod table;

use std::time::Duration;

use anyhow::{Context, bail};
use fleet::pick::{ByAdapter, LeastQueued, NaiveAffinity, Pick};
use sim::{Report, Scenario};

/// The policies, as tables and plots name them.
const POLICIES: [(&str, &dyn Pick); 3] =
    [("by adapter", &ByAdapter), ("least queued", &LeastQueued), ("naive affinity", &NaiveAffinity)];

/// A scenario and its report under each of [`POLICIES`].
type Outcome = (Scenario, [Report; 3]);

/// What was asked for on the command line.
struct Wish {
    seed: u64,
    plot: Option<String>,
    scenarios: Vec<Scenario>,
}

fn main() -> anyhow::Result<()> {
    let wish = parse(std::env::args().skip(1))?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    for scenario in wish.scenarios {
        println!("{} (load {:.0} %, seed {})", scenario.name, 100.0 * scenario.load, wish.seed);
        println!("{}", table::HEAD);
        let reports = POLICIES.map(|(name, policy)| {
            let report = sim::run(&scenario, policy, wish.seed);
            println!("{}", table::line(name, &report));
            report
        });
        let ours = &reports[0];
        println!("by adapter: {:?}", table::reasons(ours));
        println!("{} loads ahead, {} over budget, {} groups lost\n", ours.ahead, ours.over_budget, ours.lost);
        outcomes.push((scenario, reports));
    }
    if let Some(path) = wish.plot {
        std::fs::write(&path, plot::draw(&outcomes)).with_context(|| format!("cannot write {path}"))?;
        println!("drawn to {path}");
    }
    Ok(())
}

fn parse(arguments: impl Iterator<Item = String>) -> anyhow::Result<Wish> {
    let mut wish = Wish { seed: 1, plot: None, scenarios: Vec::new() };
    let mut one = Scenario { name: "one cluster", ..Scenario::MANY };
    let mut is_one = false;
    let mut arguments = arguments;
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
        is_one |= !matches!(flag.as_str(), "--seed" | "--plot");
        match flag.as_str() {
            "--seed" => wish.seed = value.parse()?,
            "--plot" => wish.plot = Some(value),
            "--adapters" => one.adapters = value.parse()?,
            "--workers" => one.workers = value.parse()?,
            "--slots" => one.slots = value.parse()?,
            "--zipf" => one.zipf = value.parse()?,
            "--load" => one.load = value.parse()?,
            "--seconds" => one.time = Duration::from_secs(value.parse()?),
            _ => bail!("{flag} is not known; --seed --plot --adapters --workers --slots --zipf --load --seconds are"),
        }
    }
    if one.workers == 0 || one.adapters == 0 || one.slots == 0 {
        bail!("a cluster needs at least one worker, one adapter and one slot");
    }
    wish.scenarios =
        if is_one { vec![one] } else { vec![Scenario::MANY, Scenario::WIDE, Scenario::HOT, Scenario::LEAVE] };
    Ok(wish)
}
