//! What holds of every policy, whatever the fleet looks like.

use proptest::prelude::*;

use super::*;
use crate::fleet::replica::{Line, OutstandingGuard};

/// One worker of a fleet that proptest makes up.
#[derive(Clone, Debug)]
struct Member {
    queued: u64,
    state: WorkerState,
    is_closed: bool,
    is_excluded: bool,
    tier: AdapterTier,
    pins: u64,
    in_use: u64,
    overlap: u64,
}

fn any_member() -> impl Strategy<Value = Member> {
    use AdapterTier::{Disk, Gone, Loading, Memory, Quarantined};
    let tier = prop::sample::select(vec![Memory, Disk, Loading, Quarantined, Gone]);
    let state = prop::sample::select(vec![WorkerState::Ready, WorkerState::Ready, WorkerState::Draining]);
    let rarely = || prop::bool::weighted(0.2);
    (0u64..3000, state, rarely(), rarely(), tier, 0u64..6, 0u64..6, prop::sample::select(vec![0u64, 16, 160, 1600]))
        .prop_map(|(queued, state, is_closed, is_excluded, tier, pins, in_use, overlap)| Member {
            queued,
            state,
            is_closed,
            is_excluded,
            tier,
            pins,
            in_use,
            overlap,
        })
}

/// A fleet of `members`, who joined in this order.
fn fleet_of(members: &[(String, Member)]) -> (Fleet, Vec<OutstandingGuard>) {
    let mut fleet = Fleet::of(members.iter().map(|(worker, _)| worker.as_str()));
    let mut groups = Vec::new();
    for (worker, member) in members {
        fleet.tell_load(worker, member.queued, member.state);
        fleet.put(worker, member.tier);
        for other in 0..member.pins {
            fleet.tell(worker, AdapterState { pinned: true, ..adapter(10 + other, AdapterTier::Memory) });
        }
        let seat = fleet.seat(worker);
        let snapshot = fleet.roster.snapshot();
        let replica = snapshot.replicas.iter().find(|replica| replica.seat == seat).unwrap();
        groups.extend((0..member.in_use).map(|other| replica.reserve(1, Some(generation(20 + other)))));
        fleet.overlaps.push((seat, member.overlap));
        fleet.excluded.extend(member.is_excluded.then_some(seat));
        if member.is_closed {
            fleet.lines[&name(worker)].close();
        }
    }
    (fleet, groups)
}

fn any_fleet() -> impl Strategy<Value = Vec<(String, Member)>> {
    let named = |members: Vec<Member>| {
        members.into_iter().enumerate().map(|(index, member)| (format!("w{index}"), member)).collect()
    };
    prop::collection::vec(any_member(), 0..7).prop_map(named)
}

proptest! {
    #[test]
    fn no_policy_ever_picks_a_replica_that_must_not_be(members in any_fleet(), width in 0usize..9, based in any::<bool>()) {
        let (fleet, _groups) = fleet_of(&members);
        let adapter = (!based).then_some(AdapterNeed { generation: generation(1), width: Width(width) });
        let may = |member: &Member| {
            let takes = member.state == WorkerState::Ready && !member.is_closed && !member.is_excluded;
            let is_there = matches!(member.tier, AdapterTier::Memory | AdapterTier::Loading);
            let has_adapter = member.tier != AdapterTier::Quarantined && (is_there || member.pins < 4);
            takes && (based || has_adapter)
        };
        for policy in policies() {
            match fleet.pick(policy, adapter) {
                Ok((worker, _)) => prop_assert!(members.iter().any(|(name, member)| *name == worker && may(member))),
                Err(_) => prop_assert!(!members.iter().any(|(_, member)| may(member)), "{:?} found nobody", policy),
            }
        }
    }

    #[test]
    fn the_same_fleet_gives_the_same_choice_in_whatever_order_its_workers_joined(
        members in any_fleet().prop_shuffle(),
        width in 1usize..9,
    ) {
        let mut sorted = members.clone();
        sorted.sort_by(|(a, _), (b, _)| b.cmp(a));
        let ((one, _groups), (other, _others)) = (fleet_of(&members), fleet_of(&sorted));
        for adapter in [None, Some(AdapterNeed { generation: generation(1), width: Width(width) })] {
            for policy in policies() {
                let choice = one.pick(policy, adapter);
                prop_assert_eq!(&choice, &one.pick(policy, adapter));
                prop_assert_eq!(&choice, &other.pick(policy, adapter));
            }
        }
    }

    #[test]
    fn another_models_replica_never_fits(members in any_fleet(), of in 2u64..9) {
        let (fleet, _groups) = fleet_of(&members);
        let model = shared_model();
        let need = Need {
            model: &model.card.name,
            fingerprint: model.card.fingerprint_with(Some(generation(of))),
            adapter: Some(AdapterNeed { generation: generation(1), width: Width(3) }),
            access: Access::Everybody,
            overlaps: &Overlaps::default(),
            excluded: &[],
        };
        let snapshot = fleet.roster.snapshot();
        for policy in policies() {
            let unnamed = Need { model: &name("other"), ..need.clone() };
            prop_assert_eq!(policy.pick(&snapshot, &need).err(), Some(Unroutable::Nobody));
            prop_assert_eq!(policy.pick(&snapshot, &unnamed).err(), Some(Unroutable::Nobody));
        }
    }
}
