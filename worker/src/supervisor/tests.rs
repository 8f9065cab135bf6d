//! How a worker parts with its engine.

use std::thread;

use super::*;
use crate::engine::tests::bench::{Bench, ROOMY};

#[tokio::test]
async fn a_step_that_hangs_does_not_hold_up_a_shutdown() {
    let status = Bench::new(ROOMY).handle.status();
    let (publish, status) = watch::channel(*status.borrow());
    let (step, hangs) = std::sync::mpsc::sync_channel::<()>(0);
    let engine = thread::spawn(move || {
        let _ = hangs.recv();
        drop(publish);
    });
    let joined = join(EngineRun::Thread(engine), status, Duration::from_millis(10)).await;
    assert!(matches!(joined, Err(WorkerError::EngineHangs)));
    drop(step);
}

#[tokio::test]
async fn an_engine_that_ends_is_joined_and_its_panic_is_told() {
    for panics in [false, true] {
        let status = Bench::new(ROOMY).handle.status();
        let engine = thread::spawn(move || assert!(!panics, "on order"));
        let joined = join(EngineRun::Thread(engine), status, Duration::from_secs(60)).await;
        assert_eq!(matches!(joined, Err(WorkerError::EngineGone)), panics);
        assert_eq!(joined.is_ok(), !panics);
    }
}
