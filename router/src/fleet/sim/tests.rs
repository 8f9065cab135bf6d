//! What the policy promises in a whole cluster, over many seeds.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::fleet::pick::{ByAdapter, LeastQueued, NaiveAffinity, Why};

/// Enough to meet unlucky ones.
const SEEDS: std::ops::Range<u64> = 0..24;

struct Compared {
    ours: Report,
    least_queued: Report,
    affinity: Report,
}

fn compare(scenario: &Scenario, seed: u64) -> Compared {
    Compared {
        ours: run(scenario, &ByAdapter, seed),
        least_queued: run(scenario, &LeastQueued, seed),
        affinity: run(scenario, &NaiveAffinity, seed),
    }
}

#[test]
fn print() {
    for scenario in [Scenario::MANY, Scenario::WIDE, Scenario::HOT, Scenario::LEAVE] {
        for seed in 0..3 {
            let all = compare(&scenario, seed);
            println!("{} seed {seed}\n{}", scenario.name, Report::HEAD);
            println!(
                "{}\n{}\n{}",
                all.ours.line("by adapter"),
                all.least_queued.line("least"),
                all.affinity.line("affinity")
            );
            println!("{:?} ahead {}", all.ours.reasons(), all.ours.ahead);
        }
    }
}
