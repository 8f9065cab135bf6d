//! Who is nearer to a worker than the router, and has what it lacks.

use proptest::prelude::*;
use shoal_common::ids::Zone;
use shoal_common::wire::blob::MAX_NEARER;
use shoal_common::wire::hello::{Lending, Locality};

use super::*;
use crate::fleet::nearer::nearer;

/// What a worker is to the one that asks.
#[derive(Clone, Copy, Debug)]
struct Player {
    zone: Option<u8>,
    lending: Lending,
    tier: Option<AdapterTier>,
    state: WorkerState,
    line: LineState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineState {
    Open,
    Closed,
}

/// One that can be fetched from in zone 1.
const HOLDER: Player = Player {
    zone: Some(1),
    lending: Lending::Workers,
    tier: Some(AdapterTier::Disk),
    state: WorkerState::Ready,
    line: LineState::Open,
};
/// One of zone 1 that lacks the adapter.
const ASKER: Player = Player { tier: None, ..HOLDER };

fn zone(of: u8) -> Zone {
    Zone::new(format!("z{of}")).unwrap()
}

/// What the first of `players` is told of adapter 1, by a router in zone `router`: numbers of players.
fn told(players: &[Player], router: Option<u8>) -> Vec<usize> {
    let (mut roster, model, now) = (Roster::default(), model(), Instant::now());
    for (number, player) in players.iter().enumerate() {
        let worker = name(&format!("w{number}"));
        let (mut offer, line) = offer(worker.as_str(), 1, &model);
        offer.hello.locality = player.zone.map(|of| Locality { zone: zone(of), lending: player.lending });
        let seat = roster.join(offer, now).unwrap();
        if let Some(tier) = player.tier {
            roster.adapter(&worker, seat, adapter(1, tier));
        }
        roster.report(&worker, seat, status(0, player.state), now);
        if player.line == LineState::Closed {
            line.close();
        }
    }
    let snapshot = roster.snapshot();
    let named = nearer(&snapshot, &name("w0"), router.map(zone).as_ref(), generation(1));
    named.iter().map(|name| name.as_str()[1..].parse().unwrap()).collect()
}

#[test]
fn a_worker_of_the_same_zone_that_has_it_is_nearer_than_a_router_of_another_or_of_none() {
    for router in [None, Some(2)] {
        assert_eq!(told(&[ASKER, HOLDER], router), [1]);
    }
    assert!(told(&[ASKER, HOLDER], Some(1)).is_empty(), "the router is as near");
    assert!(told(&[Player { zone: None, ..ASKER }, HOLDER], None).is_empty(), "nobody knows where it is");
}

#[test]
fn nobody_is_named_who_cannot_send_it() {
    for other in [
        Player { zone: Some(2), ..HOLDER },
        Player { zone: None, ..HOLDER },
        Player { lending: Lending::Nobody, ..HOLDER },
        Player { tier: None, ..HOLDER },
        Player { tier: Some(AdapterTier::Loading), ..HOLDER },
        Player { tier: Some(AdapterTier::Quarantined), ..HOLDER },
        Player { tier: Some(AdapterTier::Gone), ..HOLDER },
        Player { state: WorkerState::Draining, ..HOLDER },
        Player { line: LineState::Closed, ..HOLDER },
    ] {
        assert!(told(&[ASKER, other], None).is_empty(), "{other:?}");
    }
    let in_memory = Player { tier: Some(AdapterTier::Memory), ..HOLDER };
    assert_eq!(told(&[HOLDER, in_memory], None), [1], "one that has it itself is no answer to itself");
}

#[test]
fn askers_are_spread_over_those_who_have_it() {
    let (mut roster, model, now) = (Roster::default(), model(), Instant::now());
    for number in 0..60 {
        let worker = name(&format!("w{number}"));
        let mut offer = offer(worker.as_str(), 1, &model).0;
        offer.hello.locality = Some(Locality { zone: zone(1), lending: Lending::Workers });
        let seat = roster.join(offer, now).unwrap();
        if number < 4 {
            roster.adapter(&worker, seat, adapter(1, AdapterTier::Memory));
        }
        roster.report(&worker, seat, status(0, WorkerState::Ready), now);
    }
    let snapshot = roster.snapshot();
    let first = |number| nearer(&snapshot, &name(&format!("w{number}")), None, generation(1)).swap_remove(0);
    let asked: Vec<Name> = (4..60).map(first).collect();
    for holder in 0..4 {
        let count = asked.iter().filter(|name| name.as_str() == format!("w{holder}")).count();
        assert!((5..=28).contains(&count), "{count} of 56 ask w{holder}");
    }
}

fn player() -> impl Strategy<Value = Player> {
    use AdapterTier::{Disk, Gone, Loading, Memory, Quarantined};
    let tier = prop::option::of(prop::sample::select(vec![Disk, Gone, Loading, Memory, Quarantined]));
    let lending = prop::sample::select(vec![Lending::Nobody, Lending::Workers]);
    let state = prop::sample::select(vec![WorkerState::Ready, WorkerState::Draining, WorkerState::Incomplete]);
    let line = prop::sample::select(vec![LineState::Open, LineState::Closed]);
    (prop::option::of(0..3_u8), lending, tier, state, line).prop_map(|(zone, lending, tier, state, line)| Player {
        zone,
        lending,
        tier,
        state,
        line,
    })
}

proptest! {
    #[test]
    fn whoever_is_named_is_of_the_zone_lends_and_has_it(
        players in prop::collection::vec(player(), 1..8),
        router in prop::option::of(0..3_u8),
    ) {
        let named = told(&players, router);
        let good = |player: &Player| {
            player.zone == players[0].zone
                && player.lending == Lending::Workers
                && matches!(player.tier, Some(AdapterTier::Disk | AdapterTier::Memory))
                && player.state == WorkerState::Ready
                && player.line == LineState::Open
        };
        let is_asked = players[0].zone.is_some() && players[0].zone != router;
        let able = players[1..].iter().filter(|player| good(player)).count();
        prop_assert_eq!(named.len(), if is_asked { able.min(MAX_NEARER) } else { 0 });
        prop_assert!(named.iter().all(|at| *at != 0 && good(&players[*at])));
        prop_assert!(named.len() < 2 || named[0] != named[1]);
    }
}
