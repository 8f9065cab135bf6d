//! The rules of routing, each as a promise.

mod any;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Instant;

use shoal_common::wire::hello::{AdapterState, AdapterTier, WorkerState};

use super::*;
use crate::catalogue::ServedModel;
use crate::fleet::Roster;
use crate::fleet::tests::{FakeLine, adapter, generation, name, offer, status};

/// Read in 100 ms, fetched in 1 s, as long as nothing is measured: what these workers work off meanwhile of their queues.
const READ: u64 = 400;
const FETCH: u64 = 4000;

fn shared_model() -> Arc<ServedModel> {
    static MODEL: OnceLock<Arc<ServedModel>> = OnceLock::new();
    Arc::clone(MODEL.get_or_init(crate::testing::model))
}

/// A fleet of one model.
struct Fleet {
    roster: Roster,
    lines: BTreeMap<Name, Arc<FakeLine>>,
    overlaps: Vec<(Seat, u64)>,
    excluded: Vec<Seat>,
    access: Access,
}

impl Fleet {
    fn of<'a>(workers: impl IntoIterator<Item = &'a str>) -> Self {
        let mut fleet = Self {
            roster: Roster::default(),
            lines: BTreeMap::new(),
            overlaps: Vec::new(),
            excluded: Vec::new(),
            access: Access::Everybody,
        };
        workers.into_iter().for_each(|worker| fleet.join(worker));
        fleet
    }

    fn join(&mut self, worker: &str) {
        let (offer, line) = offer(worker, 1, &shared_model());
        self.roster.join(offer, Instant::now()).unwrap();
        self.lines.insert(name(worker), line);
        self.tell_load(worker, 0, WorkerState::Ready);
    }

    fn seat(&self, worker: &str) -> Seat {
        let snapshot = self.roster.snapshot();
        snapshot.replicas.iter().find(|replica| replica.worker.as_str() == worker).unwrap().seat
    }

    fn tell_load(&mut self, worker: &str, queued: u64, state: WorkerState) {
        self.roster.report(&name(worker), self.seat(worker), status(queued, state), Instant::now());
    }

    fn queue(&mut self, worker: &str, queued: u64) {
        self.tell_load(worker, queued, WorkerState::Ready);
    }

    fn tell(&mut self, worker: &str, state: AdapterState) {
        self.roster.adapter(&name(worker), self.seat(worker), state);
    }

    fn put(&mut self, worker: &str, tier: AdapterTier) {
        self.tell(worker, adapter(1, tier));
    }

    fn pick(&self, policy: &dyn Pick, adapter: Option<AdapterNeed>) -> Result<(String, Why), Unroutable> {
        let model = shared_model();
        let need = Need {
            model: &model.card.name,
            fingerprint: model.card.fingerprint_with(adapter.map(|adapter| adapter.generation)),
            adapter,
            access: self.access,
            overlaps: &Overlaps::new(self.overlaps.clone()),
            excluded: &self.excluded,
        };
        policy.pick(&self.roster.snapshot(), &need).map(|choice| (choice.replica.worker.to_string(), choice.why))
    }

    /// For adapter 1.
    fn routed(&self, width: usize) -> Result<(String, Why), Unroutable> {
        self.pick(&ByAdapter, Some(AdapterNeed { generation: generation(1), width: Width(width) }))
    }

    fn ahead(&self, width: usize) -> Vec<String> {
        let model = shared_model();
        let adapter = AdapterNeed { generation: generation(1), width: Width(width) };
        let need = Need {
            model: &model.card.name,
            fingerprint: model.card.fingerprint_with(Some(adapter.generation)),
            adapter: Some(adapter),
            access: self.access,
            overlaps: &Overlaps::default(),
            excluded: &[],
        };
        let ahead = ByAdapter.ahead(&self.roster.snapshot(), &need);
        ahead.iter().map(|replica| replica.worker.to_string()).collect()
    }
}

/// The names of these workers in the order of adapter `of`.
fn in_order<'a>(of: u64, workers: &[&'a str]) -> Vec<&'a str> {
    let mut workers = workers.to_vec();
    workers.sort_by_key(|worker| std::cmp::Reverse(rendezvous::weight(generation(of), &name(worker))));
    workers
}

fn to(worker: &str, why: Why) -> Result<(String, Why), Unroutable> {
    Ok((worker.to_owned(), why))
}

#[test]
fn an_adapter_without_much_traffic_stays_at_the_first_worker_of_its_order() {
    let workers = ["a", "b", "c", "d"];
    let [first, second, ..] = in_order(1, &workers)[..] else { panic!() };
    let mut fleet = Fleet::of(workers);
    assert_eq!(fleet.routed(1), to(first, Why::Fetch));
    fleet.put(first, AdapterTier::Loading);
    assert_eq!(fleet.routed(1), to(first, Why::Loading));
    fleet.put(first, AdapterTier::Memory);
    fleet.queue(first, READ);
    assert_eq!(fleet.routed(1), to(first, Why::Resident));
    fleet.excluded.push(fleet.seat(first));
    assert_eq!(fleet.routed(1), to(second, Why::Fetch), "the next in the order takes over");
}

#[test]
fn among_the_workers_that_an_adapter_is_worth_tier_and_queue_are_weighed_in_tokens() {
    let workers = ["a", "b", "c"];
    let [one, two, three] = in_order(1, &workers)[..] else { panic!() };
    let mut fleet = Fleet::of(workers);
    assert_eq!(fleet.routed(3), to(one, Why::Fetch));
    fleet.put(three, AdapterTier::Disk);
    assert_eq!(fleet.routed(3), to(three, Why::Disk));
    fleet.put(two, AdapterTier::Memory);
    assert_eq!(fleet.routed(3), to(two, Why::Resident));
    fleet.queue(two, READ - 1);
    assert_eq!(fleet.routed(3), to(two, Why::Resident));
    fleet.queue(two, READ + 1);
    assert_eq!(fleet.routed(3), to(three, Why::Disk));
    fleet.queue(three, FETCH);
    fleet.queue(two, FETCH + 1);
    assert_eq!(fleet.routed(3), to(one, Why::Fetch));
}

#[test]
fn a_group_spills_only_where_the_wait_is_longer_than_the_load() {
    let workers = ["a", "b", "c"];
    let [first, second, third] = in_order(1, &workers)[..] else { panic!() };
    let mut fleet = Fleet::of(workers);
    fleet.put(first, AdapterTier::Memory);
    fleet.queue(first, FETCH);
    assert_eq!(fleet.routed(1), to(first, Why::Resident));
    fleet.queue(first, FETCH + 1);
    assert_eq!(fleet.routed(1), to(second, Why::Spill));
    fleet.queue(second, 2);
    assert_eq!(fleet.routed(1), to(third, Why::Spill), "it spilled to where it would wait longer");
    fleet.queue(second, 0);
    fleet.put(third, AdapterTier::Memory);
    assert_eq!(fleet.routed(1), to(second, Why::Spill), "spills go to the next in the order, not to the cheapest");
    fleet.put(second, AdapterTier::Memory);
    fleet.queue(first, READ);
    assert_eq!(fleet.routed(1), to(first, Why::Resident), "a copy that is there is not used for a short wait");
}

#[test]
fn where_nobody_has_the_adapter_a_short_queue_is_no_reason_to_leave_its_first_worker() {
    let workers = ["a", "b"];
    let [first, second] = in_order(1, &workers)[..] else { panic!() };
    let mut fleet = Fleet::of(workers);
    fleet.queue(first, FETCH - 1);
    assert_eq!(fleet.routed(1), to(first, Why::Fetch));
    fleet.queue(first, FETCH + 1);
    assert_eq!(fleet.routed(1), to(second, Why::Spill));
}

#[test]
fn a_prompt_goes_where_its_beginning_is_until_that_costs_more_than_it_saves() {
    let mut fleet = Fleet::of(["a", "b"]);
    fleet.overlaps = vec![(fleet.seat("b"), 320)];
    assert_eq!(fleet.pick(&ByAdapter, None), to("b", Why::Prefix));
    fleet.queue("b", 319);
    assert_eq!(fleet.pick(&ByAdapter, None), to("b", Why::Prefix));
    fleet.queue("b", 321);
    assert_eq!(fleet.pick(&ByAdapter, None), to("a", Why::LeastQueued));
    fleet.queue("a", 400);
    assert_eq!(fleet.pick(&ByAdapter, None), to("b", Why::LeastQueued), "it would have gone there anyway");
}

#[test]
fn a_worker_that_would_have_to_evict_pays_for_the_load_that_follows() {
    let workers = ["a", "b"];
    let [first, second] = in_order(1, &workers)[..] else { panic!() };
    let mut fleet = Fleet::of(workers);
    for other in 10..14 {
        fleet.tell(first, adapter(other, AdapterTier::Memory));
    }
    assert_eq!(fleet.routed(2), to(second, Why::Fetch));
    fleet.queue(second, FETCH - 1);
    assert_eq!(fleet.routed(2), to(second, Why::Fetch));
    fleet.queue(second, FETCH + 1);
    assert_eq!(fleet.routed(2), to(first, Why::Fetch));
}

#[test]
fn an_adapter_for_which_all_slots_are_in_use_goes_where_one_is_free() {
    let workers = ["a", "b"];
    let [first, second] = in_order(1, &workers)[..] else { panic!() };
    let mut fleet = Fleet::of(workers);
    fleet.queue(second, FETCH);
    let snapshot = fleet.roster.snapshot();
    let replica = snapshot.replicas.iter().find(|replica| replica.worker.as_str() == first).unwrap();
    let groups: Vec<_> = (10..14).map(|other| replica.reserve(1, Some(generation(other)))).collect();
    assert_eq!(fleet.routed(1), to(second, Why::Spill));
    drop(groups);
    assert_eq!(fleet.routed(1), to(first, Why::Fetch));
}

#[test]
fn a_worker_full_of_pinned_adapters_is_never_asked_for_another() {
    let mut fleet = Fleet::of(["a", "b"]);
    for (worker, other) in ["a", "b"].into_iter().flat_map(|worker| (10..14).map(move |other| (worker, other))) {
        assert!(fleet.routed(2).is_ok());
        fleet.tell(worker, AdapterState { pinned: true, ..adapter(other, AdapterTier::Memory) });
    }
    assert_eq!(fleet.routed(2), Err(Unroutable::NoRoom));
    assert!(fleet.ahead(2).is_empty(), "an order over budget");
    assert!(fleet.pick(&ByAdapter, None).is_ok(), "the base model needs no slot");
}

#[test]
fn a_file_that_is_larger_than_a_worker_s_memory_for_adapters_is_tried_for_it_may_be_smaller_there() {
    let mut fleet = Fleet::of(["a"]);
    let larger = |tier| AdapterState { bytes: 5 << 20, ..adapter(1, tier) };
    fleet.tell("a", larger(AdapterTier::Disk));
    assert_eq!(fleet.routed(1).map(|(worker, _)| worker), Ok("a".to_owned()));
    let mut fleet = Fleet::of(["a", "b"]);
    fleet.tell("b", larger(AdapterTier::Memory));
    fleet.tell_load("b", 0, WorkerState::Draining);
    assert_eq!(fleet.routed(1), Err(Unroutable::NoRoom), "what it takes of memory is known");
}

#[test]
fn an_adapter_that_no_worker_can_use_is_refused_with_a_reason() {
    let broken = || AdapterState { reason: Some("rank 0".to_owned()), ..adapter(1, AdapterTier::Quarantined) };
    let mut fleet = Fleet::of(["a", "b"]);
    fleet.tell("a", broken());
    assert_eq!(fleet.routed(2), to("b", Why::OnlyOne));
    fleet.excluded = vec![fleet.seat("b")];
    assert_eq!(fleet.routed(2), Err(Unroutable::Nobody), "a worker that was tried could have used it");
    fleet.tell("b", broken());
    fleet.tell_load("b", 0, WorkerState::Draining);
    let refused = Unroutable::AdapterRefused { reason: Some("rank 0".to_owned()) };
    for policy in policies() {
        let adapter = AdapterNeed { generation: generation(1), width: Width::ONE };
        assert_eq!(fleet.pick(policy, Some(adapter)), Err(refused.clone()), "{policy:?}");
        assert!(fleet.pick(policy, None).is_ok());
    }
}

#[test]
fn a_key_that_may_not_use_it_is_routed_nowhere_by_any_policy() {
    let mut fleet = Fleet::of(["a", "b"]);
    fleet.access = Access::Denied;
    for policy in policies() {
        assert_eq!(fleet.pick(policy, None), Err(Unroutable::Forbidden), "{policy:?}");
    }
}

#[test]
fn an_adapter_that_grew_is_loaded_ahead_where_it_lacks() {
    let workers = ["a", "b", "c", "d"];
    let [first, second, third, _] = in_order(1, &workers)[..] else { panic!() };
    let mut fleet = Fleet::of(workers);
    fleet.put(first, AdapterTier::Memory);
    assert_eq!(fleet.ahead(3), [second, third]);
    fleet.put(second, AdapterTier::Loading);
    fleet.put(third, AdapterTier::Disk);
    assert_eq!(fleet.ahead(3), [third]);
    assert_eq!(fleet.ahead(1), [""; 0]);
}

#[test]
fn a_worker_that_leaves_moves_its_own_adapters_and_no_others() {
    let workers: Vec<String> = (0..8).map(|index| format!("worker-{index}")).collect();
    let all: Vec<&str> = workers.iter().map(String::as_str).collect();
    let first = |of, workers: &[&str]| in_order(of, workers)[0].to_owned();
    let homes: Vec<String> = (0..1000).map(|of| first(of, &all)).collect();
    for gone in &all {
        let rest: Vec<&str> = all.iter().copied().filter(|worker| worker != gone).collect();
        let mut moved = BTreeMap::<String, u32>::new();
        for (of, home) in homes.iter().enumerate() {
            let now = first(of as u64, &rest);
            assert!(home == gone || now == *home, "adapter {of} moved from {home} to {now} when {gone} left");
            if home == gone {
                *moved.entry(now).or_default() += 1;
            }
        }
        assert_eq!(moved.len(), 7, "all of them went to a few: {moved:?}");
        let total: u32 = moved.values().sum();
        assert!((90..160).contains(&total), "{gone} had {total} of 1,000 adapters");
    }
}

fn policies() -> [&'static dyn Pick; 3] {
    [&ByAdapter, &LeastQueued, &NaiveAffinity]
}
