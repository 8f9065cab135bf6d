//! What becomes of a group whose worker dies of it, stands still or leaves.

use shoal_common::ids::Name;
use shoal_common::wire::hello::{Status, WorkerState};
use tokio::sync::Notify;

use super::*;
use crate::fleet::pulse::Health;
use crate::fleet::tests::status;

impl Stage {
    /// A worker tells its status until that is news of its engine's health.
    fn tells(&mut self, worker: &str, progress: u64, news: Health) {
        let worker = Name::new(worker).unwrap();
        let seat = self.roster.snapshot().replicas.iter().find(|replica| replica.worker == worker).unwrap().seat;
        let told = Status { progress, running: 1, ..status(0, WorkerState::Ready) };
        let begin = Instant::now();
        let mut at = (1..100).map(|quarter| begin + quarter * Duration::from_millis(250));
        assert_eq!(at.find_map(|now| self.roster.report(&worker, seat, told, now)), Some(news));
        self.published.send_replace(Arc::new(self.roster.snapshot()));
    }

    fn gets_stuck(&mut self, worker: &str) {
        self.tells(worker, 7, Health::Stuck);
    }
}

/// Plays on until the end; tells of each event.
async fn ending(run: &mut GroupRun, seen: &Notify) -> Result<(), DispatchError> {
    run.start().await?;
    while run.next().await?.is_some() {
        seen.notify_one();
    }
    Ok(())
}

impl Played {
    /// Takes the group of `run`, which has its first two tokens then.
    async fn has_said_two_tokens(&self, run: &mut GroupRun) -> PlayedGroup {
        let (mut group, started) = tokio::join!(self.accepts(), run.start());
        started.unwrap();
        group.tokens(0, 0..2).await;
        for _ in 0..2 {
            run.next().await.unwrap();
        }
        group
    }

    /// Takes the next group and dies once the router has a token of it.
    async fn dies_of_the_next(&self, position: u32, seen: &Notify) {
        let mut group = self.accepts().await;
        group.tokens(0, position..position + 1).await;
        seen.notified().await;
        self.die();
    }
}

#[tokio::test]
async fn a_group_that_two_workers_died_of_is_not_given_to_a_third() {
    let mut stage = Stage::new();
    let workers = [stage.worker("a").await, stage.worker("b").await, stage.worker("c").await];
    let (mut run, _stop) = stage.group(1, None);
    let seen = Notify::new();
    let plays = async {
        workers[0].dies_of_the_next(0, &seen).await;
        workers[1].dies_of_the_next(1, &seen).await;
    };
    let ((), outcome) = tokio::join!(plays, ending(&mut run, &seen));
    assert!(matches!(outcome, Err(DispatchError::Lost)), "{outcome:?}");
    let third = tokio::time::timeout(Duration::from_millis(50), workers[2].group()).await;
    assert!(third.is_err(), "a third worker was given the group");
}

#[tokio::test]
async fn a_group_whose_step_fails_on_two_workers_is_not_given_to_a_third() {
    let mut stage = Stage::new();
    let workers = [stage.worker("a").await, stage.worker("b").await, stage.worker("c").await];
    let (mut run, _stop) = stage.group(1, None);
    let client = async {
        run.start().await.unwrap();
        rest(&mut run).await
    };
    let plays = async {
        let mut first = workers[0].accepts().await;
        first.send(GroupFrame::Failed(GroupFailure::Engine)).await;
        let mut second = workers[1].accepts().await;
        second.send(GroupFrame::Failed(GroupFailure::Engine)).await;
        (first, second)
    };
    let (_kept, outcome) = tokio::join!(plays, client);
    assert!(matches!(outcome, Err(DispatchError::Lost)), "{outcome:?}");
}

#[tokio::test]
async fn a_group_goes_on_elsewhere_when_its_worker_s_engine_stands_still_and_late_tokens_are_not_used() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let stuck = first.has_said_two_tokens(&mut run).await;
    stage.gets_stuck("a");
    let plays = async {
        let mut resumed = second.accepts().await;
        assert_eq!(resumed.submit.branches[0].emitted.0.len(), 2);
        // The first wakes up and says another token than the one that is right.
        assert_eq!(stuck.writer.stopped().await.unwrap(), Some(0u32.into()), "the stream was not given up");
        resumed.tokens(0, 2..6).await;
        resumed.writer.finish().unwrap();
        resumed
    };
    let (_kept, seen) = tokio::join!(plays, rest(&mut run));
    assert_eq!(seen.unwrap(), tokens_of(0)[2..]);
}

#[tokio::test]
async fn a_group_stays_with_an_engine_that_stands_still_for_a_while_if_nobody_else_could_take_it() {
    let mut stage = Stage::new();
    let only = stage.worker("a").await;
    let (mut run, _stop) = stage.group(1, None);
    let mut group = only.has_said_two_tokens(&mut run).await;
    stage.gets_stuck("a");
    let plays = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.tells("a", 8, Health::Moving);
        group.tokens(0, 2..6).await;
        group.writer.finish().unwrap();
        group
    };
    let (_kept, seen) = tokio::join!(plays, rest(&mut run));
    assert_eq!(seen.unwrap(), tokens_of(0)[2..]);
    assert_eq!(run.setbacks.replays(), 0, "it was computed again");
}

#[tokio::test]
async fn a_group_leaves_an_engine_that_stands_still_as_soon_as_another_could_take_it() {
    let mut stage = Stage::new();
    let first = stage.worker("a").await;
    let (mut run, _stop) = stage.group(1, None);
    let _stuck = first.has_said_two_tokens(&mut run).await;
    stage.gets_stuck("a");
    let plays = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let second = stage.worker("b").await;
        (second.goes_on_to_the_end(2).await, second)
    };
    let (_kept, seen) = tokio::join!(plays, rest(&mut run));
    assert_eq!(seen.unwrap(), tokens_of(0)[2..]);
}

#[tokio::test]
async fn a_group_that_waits_for_the_only_engine_s_word_waits_until_it_moves() {
    let mut stage = Stage::new();
    let only = stage.worker("a").await;
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let silent = only.group().await;
        stage.gets_stuck("a");
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.tells("a", 8, Health::Moving);
        (silent, only.goes_on_to_the_end(0).await)
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
}

#[tokio::test]
async fn a_group_that_is_forgotten_on_a_worker_whose_engine_moves_goes_on_elsewhere() {
    let mut stage = Stage::new();
    stage.dispatcher.patience = Duration::from_millis(50);
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let _forgotten = first.has_said_two_tokens(&mut run).await;
    // While somebody waits there, it may be the group itself.
    let told = Status { running: 1, waiting: 1, ..status(0, WorkerState::Ready) };
    let seat = stage.roster.snapshot().replicas[0].seat;
    stage.roster.report(&Name::new("a").unwrap(), seat, told, Instant::now());
    stage.published.send_replace(Arc::new(stage.roster.snapshot()));
    let waited = tokio::time::timeout(Duration::from_millis(400), run.next()).await;
    assert!(waited.is_err(), "it was given up: {waited:?}");
    stage.roster.report(&Name::new("a").unwrap(), seat, Status { waiting: 0, ..told }, Instant::now());
    stage.published.send_replace(Arc::new(stage.roster.snapshot()));
    let (_kept, seen) = tokio::join!(second.goes_on_to_the_end(2), rest(&mut run));
    assert_eq!(seen.unwrap(), tokens_of(0)[2..]);
}

#[tokio::test]
async fn a_group_that_waits_for_a_stuck_engine_s_word_is_given_to_another() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let silent = first.group().await;
        stage.gets_stuck("a");
        let group = second.goes_on_to_the_end(0).await;
        (silent, group)
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
}

#[tokio::test]
async fn a_group_that_a_worker_neither_takes_nor_refuses_is_given_to_another() {
    let mut stage = Stage::new();
    stage.dispatcher.first_word = Duration::from_millis(600);
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let silent = first.group().await;
        let group = second.goes_on_to_the_end(0).await;
        assert_eq!(silent.writer.stopped().await.unwrap(), Some(0u32.into()), "the stream was not given up");
        (silent, group)
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
}

#[tokio::test]
async fn a_worker_that_was_full_when_a_group_came_may_take_it_when_its_first_worker_is_lost() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let mut full = first.group().await;
        full.send(GroupFrame::Busy { retry_after_ms: 9_000 }).await;
        let mut group = second.accepts().await;
        group.tokens(0, 0..2).await;
        second.dies_after(group).await;
        (full, first.goes_on_to_the_end(2).await)
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
}

#[tokio::test]
async fn a_group_in_the_middle_of_its_answer_waits_for_room_on_a_worker_that_is_full() {
    let mut stage = Stage::new();
    let (first, second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        let mut group = first.accepts().await;
        group.tokens(0, 0..2).await;
        first.dies_after(group).await;
        let mut full = second.group().await;
        full.send(GroupFrame::Busy { retry_after_ms: 9_000 }).await;
        (full, second.goes_on_to_the_end(2).await)
    };
    let (_kept, seen) = tokio::join!(plays, whole(&mut run));
    assert_eq!(seen, tokens_of(0));
}

#[tokio::test]
async fn a_worker_whose_engine_stands_still_is_given_nothing_until_it_moves() {
    let mut stage = Stage::new();
    let worker = stage.worker("a").await;
    stage.gets_stuck("a");
    let (mut run, _stop) = stage.group(1, None);
    assert!(matches!(run.start().await, Err(DispatchError::Unavailable { .. })));
    stage.tells("a", 8, Health::Moving);
    let (mut run, _stop) = stage.group(1, None);
    let (_kept, started) = tokio::join!(worker.accepts(), run.start());
    started.unwrap();
}

#[tokio::test]
async fn a_worker_that_parts_in_order_is_no_death_of_the_group() {
    let mut stage = Stage::new();
    let workers = [stage.worker("a").await, stage.worker("b").await, stage.worker("c").await];
    let (mut run, _stop) = stage.group(1, None);
    let seen = Notify::new();
    let plays = async {
        let mut first = workers[0].accepts().await;
        first.send(GroupFrame::Failed(GroupFailure::ShuttingDown)).await;
        workers[1].dies_of_the_next(0, &seen).await;
        let last = workers[2].goes_on_to_the_end(1).await;
        (first, last)
    };
    let (_kept, outcome) = tokio::join!(plays, ending(&mut run, &seen));
    outcome.unwrap();
}

#[tokio::test]
async fn no_group_goes_on_elsewhere_more_often_than_the_setting_says() {
    let mut stage = Stage::new();
    stage.dispatcher.replays = 0;
    let (first, _second) = (stage.worker("a").await, stage.worker("b").await);
    let (mut run, _stop) = stage.group(1, None);
    let seen = Notify::new();
    let plays = async { first.dies_of_the_next(0, &seen).await };
    let ((), outcome) = tokio::join!(plays, ending(&mut run, &seen));
    assert!(matches!(outcome, Err(DispatchError::Lost)), "{outcome:?}");
}

#[tokio::test]
async fn a_worker_that_was_only_out_of_reach_gets_its_group_back() {
    let (keep_alive, idle) = (Duration::from_millis(50), Duration::from_millis(500));
    let mut stage = Stage::with(Timers { keep_alive, idle, ..Timers::default() });
    let life = Incarnation(7);
    let lost = stage.life_of("b", life).await;
    let (mut run, _stop) = stage.group(1, None);
    let _group = lost.has_said_two_tokens(&mut run).await;
    // Another one, which would be chosen, and the same one again on another way; the old way leads nowhere any more.
    let _other = stage.worker("a").await;
    let back = stage.life_of("b", life).await;
    let nowhere = std::net::UdpSocket::bind("[::1]:0").unwrap();
    lost.endpoint.rebind(nowhere).unwrap();
    let (_kept, seen) = tokio::join!(back.goes_on_to_the_end(2), rest(&mut run));
    assert_eq!(seen.unwrap(), tokens_of(0)[2..]);
}

#[tokio::test]
async fn a_group_that_two_workers_died_of_before_they_could_say_a_word_is_not_given_to_a_third() {
    let mut stage = Stage::new();
    let workers = [stage.worker("a").await, stage.worker("b").await, stage.worker("c").await];
    let (mut run, _stop) = stage.group(1, None);
    let plays = async {
        for worker in &workers[..2] {
            let _silent = worker.group().await;
            worker.die();
        }
    };
    let ((), started) = tokio::join!(plays, run.start());
    assert!(matches!(started, Err(DispatchError::Lost)), "{started:?}");
    let third = tokio::time::timeout(Duration::from_millis(50), workers[2].group()).await;
    assert!(third.is_err(), "a third worker was given the group");
}
