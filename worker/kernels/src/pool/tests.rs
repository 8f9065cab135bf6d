//! The promises of the pool.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

fn pool(threads: usize) -> Pool {
    Pool::new(NonZero::new(threads).unwrap(), Isa::PORTABLE).unwrap()
}

#[test]
fn every_item_is_done_exactly_once() {
    for threads in [1, 2, 5] {
        let mut pool = pool(threads);
        for round in 0..3000 {
            let (items, grain) = (round % 97, round % 5);
            let done: Vec<AtomicU8> = (0..items).map(|_| AtomicU8::new(0)).collect();
            pool.split(items, grain, |thread, range| {
                assert!(thread < threads && range.len() <= grain.max(1));
                range.for_each(|item| {
                    done[item].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(done.iter().all(|item| item.load(Ordering::Relaxed) == 1), "{threads} threads, round {round}");
        }
    }
}

#[test]
fn what_one_split_wrote_the_next_reads() {
    let mut pool = pool(3);
    let values: Vec<AtomicUsize> = (0..64).map(|_| AtomicUsize::new(0)).collect();
    for round in 1..2000 {
        // Each item looks at another one, which a different thread may have written a moment ago.
        let before: Vec<usize> = values.iter().map(|value| value.load(Ordering::Relaxed)).collect();
        assert!(before.iter().all(|value| *value == round - 1));
        pool.split(64, 1, |_, range| {
            range.for_each(|item| values[item].store(round, Ordering::Relaxed));
        });
    }
}

#[test]
fn work_may_wait_for_what_items_before_its_own_do() {
    for threads in [1, 2, 5] {
        let mut pool = pool(threads);
        for round in 0..500 {
            let (first, over) = (1 + round % 7, AtomicUsize::new(0));
            pool.split(first + 20, 1, |_, range| {
                for item in range {
                    if item < first {
                        over.fetch_add(1, Ordering::Release);
                    } else {
                        wait_until(|| over.load(Ordering::Acquire) == first);
                    }
                }
            });
        }
    }
}

#[test]
fn a_panic_is_told_once() {
    let mut pool = pool(3);
    for _ in 0..50 {
        let all = catch_unwind(AssertUnwindSafe(|| {
            pool.split(30, 1, |_, _| {
                thread::sleep(Duration::from_micros(50));
                panic!("every item");
            });
        }));
        assert!(all.is_err());
        pool.split(30, 1, |_, _| {});
    }
}

#[test]
fn helpers_that_slept_help_again() {
    let mut pool = pool(2);
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(5));
        let (all, helped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // Long enough for a thread to wake up within it.
        pool.split(100, 1, |thread, _| {
            thread::sleep(Duration::from_micros(100));
            all.fetch_add(1, Ordering::Relaxed);
            helped.fetch_add(thread, Ordering::Relaxed);
        });
        assert_eq!(all.into_inner(), 100);
        assert!(helped.into_inner() > 0, "the helper slept through");
    }
}

#[test]
fn a_panic_is_the_callers_and_the_pool_lives() {
    let mut pool = pool(2);
    for _ in 0..50 {
        let panics = catch_unwind(AssertUnwindSafe(|| pool.split(10, 1, |_, range| assert!(!range.contains(&7)))));
        assert!(panics.is_err());
        let done = AtomicUsize::new(0);
        pool.split(10, 1, |_, range| {
            done.fetch_add(range.len(), Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 10);
    }
}
