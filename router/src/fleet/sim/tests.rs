//! What the policy promises in a whole cluster, for every one of many seeds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::report::Routed;
use super::*;
use crate::fleet::pick::{ByAdapter, LeastQueued, NaiveAffinity, Pick, Why};

/// Enough to meet unlucky ones.
const SEEDS: Range<u64> = 0..16;

/// Shorter than what is plotted, for there are many.
fn short(scenario: Scenario) -> Scenario {
    Scenario { time: Duration::from_secs(90), ..scenario }
}

/// Runs a scenario with every seed.
fn each_seed(scenario: Scenario, mut check: impl FnMut(u64, &dyn Fn(&dyn Pick) -> Report)) {
    let scenario = short(scenario);
    SEEDS.for_each(|seed| check(seed, &|policy| run(&scenario, policy, seed)));
}

#[test]
fn a_seed_replays_a_run_exactly() {
    for scenario in [Scenario::HOT, Scenario::LEAVE].map(short) {
        let once = run(&scenario, &ByAdapter, 7);
        assert_eq!(once, run(&scenario, &ByAdapter, 7), "{}", scenario.name);
        assert_ne!(once, run(&scenario, &ByAdapter, 8), "{}", scenario.name);
    }
}

#[test]
fn every_group_is_answered_under_every_policy_even_if_its_worker_dies() {
    let mut again = 0;
    each_seed(Scenario::LEAVE, |seed, run| {
        let answered = [&ByAdapter as &dyn Pick, &LeastQueued, &NaiveAffinity].map(|policy| {
            let report = run(policy);
            assert_eq!(report.lost, 0, "seed {seed}");
            again += report.routed.len() - report.waits.len();
            report.waits.len()
        });
        assert!(answered.iter().all(|groups| *groups == answered[0]), "{answered:?} groups, seed {seed}");
    });
    assert!(again > 0, "no group was on the worker that died");
}

#[test]
fn with_far_more_adapters_than_slots_a_tenth_fewer_loads_are_needed_than_by_the_queue_alone() {
    each_seed(Scenario::MANY, |seed, run| {
        let (ours, queue, affinity) = (run(&ByAdapter), run(&LeastQueued), run(&NaiveAffinity));
        assert!(10 * ours.loads() <= 9 * queue.loads(), "{} and {} loads, seed {seed}", ours.loads(), queue.loads());
        assert!(ours.fetches < queue.fetches, "seed {seed}");
        assert!(ours.hit_rate() > affinity.hit_rate() - 0.03, "seed {seed}");
        assert!(10 * ours.wait(99.0) <= 11 * affinity.wait(99.0), "seed {seed}");
    });
}

#[test]
fn with_a_slot_for_every_adapter_few_are_loaded_twice_and_nobody_waits_for_a_crowded_worker() {
    each_seed(Scenario::WIDE, |seed, run| {
        let (ours, queue, affinity) = (run(&ByAdapter), run(&LeastQueued), run(&NaiveAffinity));
        assert!(5 * ours.loads() <= queue.loads(), "{} and {} loads, seed {seed}", ours.loads(), queue.loads());
        assert!(ours.wait(99.0) <= affinity.wait(99.0) && ours.wait(99.0) <= queue.wait(99.0), "seed {seed}");
        assert!(ours.wait(50.0) <= queue.wait(50.0), "seed {seed}");
    });
}

#[test]
fn a_hot_adapter_gets_more_workers_within_seconds_and_gives_them_back_slowly() {
    let scenario = short(Scenario::HOT);
    let (from, to) = scenario.middle();
    let hot = demand::hot_adapter(&scenario);
    each_seed(Scenario::HOT, |seed, run| {
        let (ours, affinity) = (run(&ByAdapter), run(&NaiveAffinity));
        let widths = |range: Range<Duration>| -> Vec<usize> {
            let of_hot = ours.routed.iter().filter(|routed| routed.adapter == hot && range.contains(&routed.at));
            of_hot.map(|routed| routed.width).collect()
        };
        let second = Duration::from_secs(1);
        let most = widths(from..to).into_iter().max().unwrap();
        assert!(widths(Duration::ZERO..from).iter().all(|width| *width == 1), "seed {seed}");
        assert!(widths(from..from + 5 * second).contains(&3), "not grown in 5 s, seed {seed}");
        assert!(ours.ahead > 0, "seed {seed}");
        assert!(widths(to..to + 5 * second).iter().all(|width| *width >= 3), "given up at once, seed {seed}");
        let after = widths(to + second..scenario.time);
        assert!(after.is_sorted_by(|a, b| a >= b), "{after:?}, seed {seed}");
        assert!(after.last().is_none_or(|last| *last < most), "{after:?} of {most}, seed {seed}");
        assert!(10 * ours.wait(99.0) < affinity.wait(99.0), "seed {seed}");
    });
}

#[test]
fn a_worker_that_leaves_moves_its_own_adapters_and_they_come_back_with_it() {
    let (from, to) = short(Scenario::LEAVE).middle();
    let mut moved = 0;
    each_seed(Scenario::LEAVE, |seed, run| {
        let ours = run(&ByAdapter);
        let stays = |routed: &&Routed| routed.width == 1 && routed.why != Why::Spill;
        let before = ours.routed.iter().filter(stays).filter(|routed| routed.at < from);
        let homes: BTreeMap<_, _> = before.map(|routed| (routed.adapter, routed.worker)).collect();
        for routed in ours.routed.iter().filter(stays) {
            let Some(home) = homes.get(&routed.adapter) else { continue };
            let is_away = *home == 0 && (from..to).contains(&routed.at);
            assert_eq!(routed.worker == *home, !is_away, "{routed:?} of {home}, seed {seed}");
            moved += usize::from(is_away);
        }
        assert!(ours.loads() < 2 * 200, "{} loads of 200 adapters, seed {seed}", ours.loads());
    });
    assert!(moved > 0, "nothing ever moved");
}

#[test]
fn no_load_is_ever_ordered_where_there_is_no_slot() {
    // Four slots a worker, all of them busy now and then; the simulated worker itself never holds more.
    let tight = Scenario { workers: 4, adapters: 40, slots: 4, ..Scenario::HOT };
    let mut ahead = 0;
    each_seed(tight, |seed, run| {
        let ours = run(&ByAdapter);
        assert_eq!((ours.over_budget, ours.lost), (0, 0), "seed {seed}");
        ahead += ours.ahead;
    });
    assert!(ahead > 0, "nothing was ever loaded ahead");
}
