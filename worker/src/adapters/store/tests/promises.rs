//! What goes well, and who may wait for what.

use std::sync::Arc;
use std::time::Duration;

use shoal_common::wire::hello::{AdapterOrder, AdapterTier};
use tokio::sync::Semaphore;

use super::play::{Bench, ROOMY, Sends, bundle};
use crate::adapters::error::{AcquireError, Unavailable};
use crate::adapters::{Lease, Limits};

fn ready(outcome: Result<Lease, AcquireError>) -> Lease {
    outcome.expect("it can be had")
}

#[tokio::test]
async fn one_fetch_serves_everybody_who_waits_and_whoever_comes_later() {
    let bench = Bench::new(ROOMY).await;
    let gate = Arc::new(Semaphore::new(0));
    let at = bench.shelf.put(&bundle("a"), Sends::Gated(gate.clone()));
    let mut groups = Vec::new();
    for _ in 0..50 {
        groups.push(bench.waiting(at).await);
    }
    assert_eq!(bench.store.waiting(), 50);
    gate.add_permits(1);
    for group in groups {
        assert_eq!(ready(group.await.unwrap()).generation(), at);
    }
    ready(bench.via.acquire(at, None).await);
    assert_eq!((bench.shelf.asked(), bench.store.waiting()), (vec![at], 0));
}

#[tokio::test]
async fn a_slow_fetch_holds_up_no_other_adapter() {
    let bench = Bench::new(ROOMY).await;
    let gate = Arc::new(Semaphore::new(0));
    let slow = bench.shelf.put(&bundle("slow"), Sends::Gated(gate.clone()));
    let group = bench.waiting(slow).await;
    for name in ["a", "b", "c"] {
        let at = bench.shelf.put(&bundle(name), Sends::Whole);
        ready(bench.via.acquire(at, None).await);
    }
    gate.add_permits(1);
    ready(group.await.unwrap());
}

#[tokio::test]
async fn a_group_waits_for_a_slot_until_another_gives_it_back() {
    let bench = Bench::new(Limits { slots: 1, ..ROOMY }).await;
    let [first, second] = ["a", "b"].map(|name| bench.shelf.put(&bundle(name), Sends::Whole));
    let held = ready(bench.via.acquire(first, None).await);
    let also_held = held.clone();
    let group = bench.waiting(second).await;
    drop(held);
    assert_eq!(bench.via.acquire(first, None).await.unwrap().generation(), first, "it is in memory while it is held");
    assert!(!group.is_finished());
    drop(also_held);
    assert_eq!(ready(group.await.unwrap()).generation(), second);
}

#[tokio::test]
async fn a_group_that_gets_no_slot_in_time_is_told() {
    let bench = Bench::new(Limits { slots: 1, ..ROOMY }).await;
    let [first, second] = ["a", "b"].map(|name| bench.shelf.put(&bundle(name), Sends::Whole));
    let held = ready(bench.via.acquire(first, None).await);
    let late = bench.via.acquire(second, Some(Duration::from_millis(20))).await;
    assert_eq!(late.unwrap_err(), Unavailable::Late.into());
    assert_eq!(bench.store.waiting(), 0);
    drop(held);
    ready(bench.via.acquire(second, None).await);
}

#[tokio::test]
async fn a_group_s_own_deadline_ends_its_wait() {
    let bench = Bench::new(ROOMY).await;
    let at = bench.shelf.put(&bundle("a"), Sends::Gated(Arc::new(Semaphore::new(0))));
    let late = bench.via.acquire(at, Some(Duration::from_millis(5))).await;
    assert_eq!(late.unwrap_err(), Unavailable::Late.into());
}

#[tokio::test]
async fn who_leaves_while_it_waits_leaves_nothing_behind_and_the_load_goes_on() {
    let bench = Bench::new(ROOMY).await;
    let gate = Arc::new(Semaphore::new(0));
    let at = bench.shelf.put(&bundle("a"), Sends::Gated(gate.clone()));
    let group = bench.waiting(at).await;
    group.abort();
    assert!(group.await.unwrap_err().is_cancelled());
    assert_eq!(bench.store.waiting(), 0);
    gate.add_permits(1);
    ready(bench.via.acquire(at, None).await);
    assert_eq!(bench.shelf.asked(), [at]);
}

#[tokio::test]
async fn what_was_evicted_from_memory_comes_back_from_disk() {
    let mut bench = Bench::new(Limits { slots: 1, ..ROOMY }).await;
    let [first, second] = ["a", "b"].map(|name| bench.shelf.put(&bundle(name), Sends::Whole));
    for at in [first, second, first] {
        ready(bench.via.acquire(at, None).await);
    }
    assert_eq!(bench.shelf.asked(), [first, second]);
    assert_eq!(bench.told_in(second, AdapterTier::Disk).await.unwrap().bytes, bundle("b").len() as u64);
}

#[tokio::test]
async fn a_worker_that_comes_back_finds_its_files_and_fetches_nothing() {
    let mut bench = Bench::new(ROOMY).await;
    let at = bench.shelf.put(&bundle("a"), Sends::Whole);
    ready(bench.via.acquire(at, None).await);
    bench.restart(ROOMY).await;
    assert_eq!(bench.told(at).unwrap().tier, AdapterTier::Disk);
    ready(bench.via.acquire(at, None).await);
    assert_eq!(bench.shelf.asked(), [at]);
    bench.restart(Limits { disk_bytes: 1, ..ROOMY }).await;
    assert_eq!((bench.told(at), bench.files().len()), (None, 0), "a smaller limit holds from the start");
}

#[tokio::test]
async fn files_make_room_for_files_and_the_oldest_go_first() {
    let two = 2 * bundle("a").len() as u64;
    let bench = Bench::new(Limits { disk_bytes: two, ..ROOMY }).await;
    let all = ["a", "b", "c"].map(|name| bench.shelf.put(&bundle(name), Sends::Whole));
    for at in all {
        ready(bench.via.acquire(at, None).await);
    }
    assert!(!bench.file(all[0]).exists() && bench.file(all[1]).exists() && bench.file(all[2]).exists());
    assert_eq!(bench.files().len(), 2);
}

#[tokio::test]
async fn orders_are_carried_out_and_what_comes_of_them_is_told() {
    let mut bench = Bench::new(Limits { slots: 1, ..ROOMY }).await;
    let gate = Arc::new(Semaphore::new(0));
    let at = bench.shelf.put(&bundle("a"), Sends::Gated(gate.clone()));
    bench.via.order(AdapterOrder::Load(at));
    assert_eq!(bench.told(at).unwrap().tier, AdapterTier::Loading);
    gate.add_permits(1);
    let state = bench.told_in(at, AdapterTier::Memory).await.unwrap();
    assert_eq!((state.bytes, state.rank, state.pinned), (bundle("a").len() as u64, 4, false));
    assert!(state.load_ms.is_some() && state.idle_ms.is_none());
    bench.via.order(AdapterOrder::Pin(at));
    assert!(bench.told(at).unwrap().pinned);
    let other = bench.shelf.put(&bundle("b"), Sends::Whole);
    let group = bench.waiting(other).await;
    bench.told_in(other, AdapterTier::Loading).await;
    bench.via.order(AdapterOrder::Unpin(at));
    ready(group.await.unwrap());
    assert_eq!(bench.told_in(at, AdapterTier::Disk).await.unwrap().idle_ms, None);
}

#[tokio::test]
async fn a_removed_adapter_goes_once_nothing_runs_with_it() {
    let mut bench = Bench::new(ROOMY).await;
    let at = bench.shelf.put(&bundle("a"), Sends::Whole);
    let held = ready(bench.via.acquire(at, None).await);
    bench.via.order(AdapterOrder::Forget(at));
    bench.via.order(AdapterOrder::Forget(at));
    assert_eq!(bench.told(at).unwrap().tier, AdapterTier::Memory);
    assert!(bench.file(at).exists());
    drop(held);
    bench.told_in(at, AdapterTier::Gone).await;
    while bench.file(at).exists() {
        tokio::task::yield_now().await;
    }
    ready(bench.via.acquire(at, None).await);
    assert_eq!(bench.shelf.asked(), [at, at], "it was not to be had from here");
}

#[tokio::test]
async fn a_router_that_connects_is_told_everything_that_is_here() {
    let bench = Bench::new(ROOMY).await;
    let mut all = ["a", "b", "c"].map(|name| bench.shelf.put(&bundle(name), Sends::Whole));
    for at in all {
        ready(bench.via.acquire(at, None).await);
    }
    let mut news = bench.store.news();
    let mut told: Vec<_> = news.take().iter().map(|state| (state.generation, state.tier)).collect();
    told.sort_unstable_by_key(|(at, _)| *at);
    all.sort_unstable();
    assert_eq!(told, all.map(|at| (at, AdapterTier::Memory)));
    assert!(news.take().is_empty());
}
