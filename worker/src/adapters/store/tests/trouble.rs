//! What goes wrong stays with the adapter that it happened to.

use std::time::Duration;

use shoal_common::wire::hello::{AdapterOrder, AdapterState, AdapterTier};

use super::play::{Bench, ROOMY, Sends, bundle, generation};
use crate::adapters::disk::Quota;
use crate::adapters::error::{AcquireError, Unavailable};
use crate::adapters::store::Via;
use crate::adapters::{Lease, Limits};
use shoal_common::ids::Generation;

/// Tries until the pause after a failure is over.
async fn acquire_after_pause(via: &Via, at: Generation, failure: Unavailable) -> Lease {
    loop {
        match via.acquire(at, None).await {
            Ok(lease) => return lease,
            Err(error) => assert_eq!(error, failure.into()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_byte_that_changed_on_the_way_fails_one_attempt_of_one_adapter() {
    let bench = Bench::new(ROOMY).await;
    let [hit, beside] = ["hit", "beside"].map(bundle);
    let at = bench.shelf.put(&hit, Sends::Corrupt);
    let groups = [bench.waiting(at).await];
    let other = bench.shelf.put(&beside, Sends::Whole);
    bench.via.acquire(other, None).await.unwrap();
    for group in groups {
        assert_eq!(group.await.unwrap().unwrap_err(), Unavailable::Corrupt.into());
    }
    assert_eq!(bench.files().len(), 1, "nothing is left of it");
    bench.shelf.put(&hit, Sends::Whole);
    assert_eq!(acquire_after_pause(&bench.via, at, Unavailable::Corrupt).await.generation(), at);
}

#[tokio::test]
async fn content_of_another_length_than_announced_is_refused() {
    let bench = Bench::new(ROOMY).await;
    let content = bundle("a");
    for announced in [0, 3, content.len() as u64 - 1, content.len() as u64 + 1] {
        let at = bench.shelf.put(&[&content[..], &announced.to_le_bytes()].concat(), Sends::Length(announced));
        assert_eq!(bench.via.acquire(at, None).await.unwrap_err(), Unavailable::Corrupt.into());
    }
    assert!(bench.files().is_empty());
}

#[tokio::test]
async fn a_length_beyond_the_room_is_refused_before_a_byte_is_written() {
    let bench = Bench::with(ROOMY, Quota::of(0)).await;
    for announced in [ROOMY.disk_bytes + 1, u64::MAX] {
        let at = bench.shelf.put(&announced.to_le_bytes(), Sends::Length(announced));
        assert_eq!(bench.via.acquire(at, None).await.unwrap_err(), Unavailable::TooLarge.into());
    }
}

#[tokio::test]
async fn a_router_that_breaks_off_or_knows_nothing_is_passed_over() {
    let bench = Bench::new(ROOMY).await;
    let (other, _via) = bench.router();
    let breaks = bench.shelf.put(&bundle("breaks"), Sends::Breaks);
    assert_eq!(bench.via.acquire(breaks, None).await.unwrap_err(), Unavailable::NotFound.into());
    other.put(&bundle("breaks"), Sends::Whole);
    assert_eq!(bench.via.acquire(breaks, None).await.unwrap().generation(), breaks);
    let elsewhere = other.put(&bundle("elsewhere"), Sends::Whole);
    assert_eq!(bench.via.acquire(elsewhere, None).await.unwrap().generation(), elsewhere);
    assert_eq!(bench.shelf.asked(), [breaks, breaks, elsewhere], "the group's own router comes first");
}

#[tokio::test]
async fn without_a_router_nothing_is_to_be_had_but_what_is_here() {
    let mut bench = Bench::new(ROOMY).await;
    let at = bench.shelf.put(&bundle("a"), Sends::Whole);
    bench.via.acquire(at, None).await.unwrap();
    let unoffered = bench.store.via(bench.shelf.clone());
    bench.via = std::sync::Arc::new(unoffered);
    let other = bench.shelf.put(&bundle("b"), Sends::Whole);
    assert_eq!(bench.via.acquire(other, None).await.unwrap_err(), Unavailable::Unreachable.into());
    bench.via.acquire(at, None).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_fails_what_does_not_fit_and_nothing_else() {
    let [small, large] = [bundle("s"), bundle("much larger")];
    let bench = Bench::with(ROOMY, Quota::of(2 * small.len() as u64)).await;
    let first = bench.shelf.put(&small, Sends::Whole);
    let held = bench.via.acquire(first, None).await.unwrap();
    bench.via.order(AdapterOrder::Pin(first));
    let at = bench.shelf.put(&large, Sends::Whole);
    assert_eq!(bench.via.acquire(at, None).await.unwrap_err(), Unavailable::DiskFull.into());
    assert_eq!(bench.files().len(), 1, "what was written of it is deleted");
    let second = bench.shelf.put(&bundle("t"), Sends::Whole);
    bench.via.acquire(second, None).await.unwrap();
    bench.quota.free(large.len() as u64);
    acquire_after_pause(&bench.via, at, Unavailable::DiskFull).await;
    assert_eq!((held.generation(), bench.files().len()), (first, 3));
}

#[tokio::test]
async fn adapters_that_are_not_needed_make_way_on_a_disk_that_others_have_filled() {
    let [old, new] = [bundle("old"), bundle("new and larger")];
    let bench = Bench::with(ROOMY, Quota::of(old.len() as u64)).await;
    let idle = bench.shelf.put(&old, Sends::Whole);
    bench.via.acquire(idle, None).await.unwrap();
    let at = bench.shelf.put(&new, Sends::Whole);
    assert_eq!(bench.via.acquire(at, None).await.unwrap_err(), Unavailable::DiskFull.into());
    assert!(bench.files().is_empty(), "the old one is gone, and the new one was tried again");
    assert_eq!(bench.shelf.asked(), [idle, at, at]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_no_reason_to_fail_what_is_in_memory() {
    let mut bench = Bench::new(ROOMY).await;
    let at = bench.shelf.put(&bundle("a"), Sends::Whole);
    let held = bench.via.acquire(at, None).await.unwrap();
    std::fs::remove_dir_all(bench.directory.path()).unwrap();
    std::fs::write(bench.directory.path(), b"not a directory").unwrap();
    let other = bench.shelf.put(&bundle("b"), Sends::Whole);
    assert_eq!(bench.via.acquire(other, None).await.unwrap_err(), Unavailable::DiskFailed.into());
    assert_eq!(bench.via.acquire(at, None).await.unwrap().generation(), held.generation());
    // Nor is one that cannot be listed a reason not to start.
    bench.restart(ROOMY).await;
    assert_eq!(bench.told(at), None);
    std::fs::remove_file(bench.directory.path()).unwrap();
    bench.via.acquire(at, None).await.unwrap();
}

#[tokio::test]
async fn a_file_that_was_damaged_on_disk_is_noticed_and_fetched_again() {
    let mut bench = Bench::new(Limits { slots: 1, ..ROOMY }).await;
    let [at, other] = ["a", "b"].map(|name| bench.shelf.put(&bundle(name), Sends::Whole));
    for _ in 0..2 {
        bench.via.acquire(at, None).await.unwrap();
        let mut damaged = bundle("a");
        damaged[2] ^= 1;
        std::fs::write(bench.file(at), damaged).unwrap();
        bench.via.acquire(other, None).await.unwrap();
        bench.restart(Limits { slots: 1, ..ROOMY }).await;
    }
    bench.via.acquire(at, None).await.unwrap();
    assert_eq!(std::fs::read(bench.file(at)).unwrap(), bundle("a"));
    assert_eq!(bench.shelf.asked(), [at, other, at, at]);
    std::fs::remove_file(bench.file(at)).unwrap();
    bench.via.acquire(other, None).await.unwrap();
    bench.via.acquire(at, None).await.unwrap();
    assert_eq!(bench.shelf.asked(), [at, other, at, at, at], "one that somebody deleted, too");
}

#[tokio::test]
async fn a_bad_adapter_is_refused_with_its_reason_until_it_is_forgotten() {
    let mut bench = Bench::new(ROOMY).await;
    for content in [&b"bad"[..], b"panics"] {
        let at = bench.shelf.put(content, Sends::Whole);
        let AcquireError::Quarantined(first) = bench.via.acquire(at, None).await.unwrap_err() else {
            panic!("it is not bad luck")
        };
        let again = bench.via.acquire(at, None).await.unwrap_err();
        assert_eq!(again, AcquireError::Quarantined(first.clone()));
        let state = bench.told(at).unwrap();
        assert_eq!((state.tier, state.reason.as_deref()), (AdapterTier::Quarantined, Some(first.as_str())));
        assert!(first.as_str().len() <= AdapterState::MAX_REASON && bench.files().is_empty());
        bench.via.order(AdapterOrder::Load(at));
        assert_eq!(bench.shelf.asked().iter().filter(|asked| **asked == at).count(), 1, "it is not tried again");
        bench.via.order(AdapterOrder::Forget(at));
        assert_eq!(bench.told(at), None);
        bench.via.acquire(at, None).await.unwrap_err();
        assert_eq!(bench.shelf.asked().iter().filter(|asked| **asked == at).count(), 2);
    }
    assert_eq!(bench.told(generation(b"bad")).unwrap().reason.as_deref(), Some("its rank is wrong"));
    let good = bench.shelf.put(&bundle("a"), Sends::Whole);
    bench.via.acquire(good, None).await.unwrap();
}
