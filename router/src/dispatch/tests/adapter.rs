//! Groups with an adapter, and what routing remembers of groups.

use shoal_common::ids::{Digest, Generation};
use shoal_common::wire::hello::AdapterOrder;

use super::*;
use crate::fleet::demand::Width;
use crate::fleet::pick::Unroutable;
use crate::fleet::pick::scripted::Scripted;

const ADAPTER: Generation = Generation(Digest([7; 32]));

/// As [`submission`], with the adapter.
fn adapted(branches: u16) -> Submit {
    let fingerprint = model().card.fingerprint_with(Some(ADAPTER));
    Submit { adapter: Some(ADAPTER), fingerprint, ..submission(branches, None) }
}

/// A stage whose groups go to these workers, one after the other, and then to nobody.
fn scripted(to: &[&str]) -> (Stage, Arc<Scripted>) {
    let policy = Scripted::new(to.iter().map(|worker| Ok(Name::new(*worker).unwrap())));
    let mut stage = Stage::new();
    stage.dispatcher.policy = Arc::<Scripted>::clone(&policy);
    (stage, policy)
}

fn lacks() -> GroupFrame {
    GroupFrame::Failed(GroupFailure::AdapterUnavailable)
}

#[tokio::test]
async fn a_worker_that_cannot_have_the_adapter_is_passed_over_and_is_no_loss() {
    let (mut stage, policy) = scripted(&["a", "b", "c", "d", "e"]);
    let mut workers = Vec::new();
    for worker in ["a", "b", "c", "d", "e"] {
        workers.push(stage.worker(worker).await);
    }
    let (mut run, _stop) = stage.run(adapted(1));
    let plays = async {
        let mut kept = Vec::new();
        for worker in &workers[..4] {
            // The first says so at once; the others have taken the group and waited in vain.
            let mut group = worker.group().await;
            assert_eq!(group.submit.adapter, Some(ADAPTER));
            if !kept.is_empty() {
                group.send(GroupFrame::Accepted).await;
            }
            group.send(lacks()).await;
            kept.push(group);
        }
        let mut group = workers[4].accepts().await;
        group.tokens(0, 0..6).await;
        group.writer.finish().unwrap();
        kept.push(group);
        kept
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
    let excluded: Vec<_> = policy.asked().iter().map(|asked| asked.excluded.len()).collect();
    assert_eq!(excluded, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn an_adapter_that_no_worker_can_have_now_is_a_matter_of_time() {
    let (mut stage, _) = scripted(&["a", "b"]);
    let workers = [stage.worker("a").await, stage.worker("b").await];
    let (mut run, _stop) = stage.run(adapted(1));
    let plays = async {
        let mut kept = Vec::new();
        for worker in &workers {
            let mut group = worker.group().await;
            group.send(lacks()).await;
            kept.push(group);
        }
        kept
    };
    let (_kept, started) = tokio::join!(plays, run.start());
    let Err(DispatchError::AdapterUnavailable { retry_after }) = started else { panic!("{started:?}") };
    assert!(retry_after >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_adapter_that_is_broken_is_tried_on_no_other_worker() {
    let (mut stage, policy) = scripted(&["a", "a"]);
    let worker = stage.worker("a").await;
    let (mut run, _stop) = stage.run(adapted(1));
    let plays = async {
        let mut group = worker.group().await;
        group.send(GroupFrame::Failed(GroupFailure::AdapterRefused)).await;
        group
    };
    let (_kept, started) = tokio::join!(plays, run.start());
    assert!(matches!(started, Err(DispatchError::Failed(GroupFailure::AdapterRefused))), "{started:?}");
    assert_eq!(policy.asked().len(), 1);
}

#[tokio::test]
async fn what_the_policy_refuses_for_good_is_told_at_once_and_with_its_reason() {
    let reason = Some("rank 0".to_owned());
    let refused = Unroutable::AdapterRefused { reason: reason.clone() };
    let mut stage = Stage::new();
    stage.dispatcher.policy = Scripted::new([Err(refused), Err(Unroutable::Forbidden), Err(Unroutable::NoRoom)]);
    let start = async |submit| stage.run(submit).0.start().await.unwrap_err();
    assert!(matches!(start(adapted(1)).await, DispatchError::AdapterRefused { reason: told } if told == reason));
    assert!(matches!(start(adapted(1)).await, DispatchError::Forbidden));
    assert!(matches!(start(adapted(1)).await, DispatchError::AdapterUnavailable { .. }));
    assert!(matches!(start(adapted(1)).await, DispatchError::Unavailable { .. }));
}

#[tokio::test]
async fn an_adapter_that_becomes_worth_another_worker_is_loaded_ahead_once() {
    // Eight slots a worker: four sequences of one adapter are worth one.
    let (mut stage, policy) = scripted(&[]);
    let _workers = (stage.worker("a").await, stage.worker("b").await);
    let ordered = |stage: &Stage| -> Vec<_> {
        stage.dispatcher.view.now().replicas.iter().filter_map(|replica| replica.orders.take()).collect()
    };
    let mut runs = Vec::new();
    let mut widths = Vec::new();
    for branches in [4, 1, 1] {
        let mut run = stage.run(adapted(branches));
        run.0.start().await.unwrap_err();
        runs.push(run);
        let width = policy.asked().last().unwrap().adapter.unwrap().width;
        widths.push((width, ordered(&stage)));
    }
    let load = AdapterOrder::Load(ADAPTER);
    assert_eq!(widths, [(Width(1), vec![]), (Width(2), vec![load, load]), (Width(2), vec![])]);
    // Those that have ended are forgotten, in time.
    let profile = Profile::of(&adapted(1), &model().card.name);
    let snapshot = stage.dispatcher.view.now();
    let later = Instant::now() + Duration::from_secs(3600);
    let width = |stage: &Stage, at| stage.dispatcher.traffic.lock().unwrap().adapter(&profile, &snapshot, at);
    assert_eq!(width(&stage, later).unwrap().width, Width(2));
    drop(runs);
    assert_eq!(width(&stage, later + Duration::from_secs(3600)).unwrap().width, Width(1));
}

#[tokio::test]
async fn where_a_prompt_was_taken_is_remembered_for_the_next_one_that_can_use_it() {
    let (mut stage, policy) = scripted(&["a", "a", "a"]);
    let worker = stage.worker("a").await;
    let long = |score_prompt| {
        let prompt = PromptIds((0..40).map(TokenId).collect());
        Submit { prompt, ..submission(1, score_prompt) }
    };
    for submit in [long(None), long(None), long(Some(0))] {
        let (mut run, _stop) = stage.run(submit);
        let (_kept, started) = tokio::join!(worker.accepts(), run.start());
        started.unwrap();
    }
    let overlaps: Vec<_> = policy.asked().iter().map(|asked| asked.overlap).collect();
    assert_eq!(overlaps, [0, 32, 0], "scored prompts are computed anew");
}
