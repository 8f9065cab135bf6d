//! One group on its way: picks a replica, submits on a QUIC stream of its own, hands on the frames, and, when the replica is
//! lost, submits again elsewhere with what was already delivered, so that the caller sees one unbroken sequence of events.
//! Dropping a [`GroupRun`] resets its stream, which cancels the group on the worker.
//!
//! 1. `route`: where it may go; `attempt`: its stream on one replica; `frames`: what may come on it.
//! 2. `silence`: when nothing comes; `setbacks` and `budget`: whether it goes on elsewhere then; `returning`: whether
//!    it waits for the worker that it lost.

mod attempt;
mod budget;
mod frames;
mod returning;
mod route;
mod setbacks;
mod silence;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shoal_common::ambient;
use shoal_common::config::Limits;
use shoal_common::ids::{BranchIndex, Name};
use shoal_common::wire::codec;
use shoal_common::wire::message::{BranchToken, GroupFailure, GroupOrder, Submit, TokenScore};
use tokio::sync::mpsc;

use crate::fleet::pick::{Access, Pick};
use crate::fleet::traffic::{Profile, Traffic};
use crate::fleet::{FleetView, Replica};
use attempt::{Attempt, Trouble, loss};
use budget::{InFlight, SharedBudget};
use route::Route;
use setbacks::{Loss, Setbacks, Stay, Verdict};

/// How long a replay waits for a fitting replica to appear: a link's idle timeout and a worker's restart fit in. And how long a
/// group stays with an engine that stands still, if nobody else could take it.
const REPLAY_WAIT: Duration = Duration::from_secs(5);

/// Silence of a group that is always in order, with the default of `stall_ms` five times over: a worker's engine that stands
/// still is noticed before.
const PATIENCE: Duration = Duration::from_secs(5);

/// A worker takes a group or refuses it within this: it waits for an adapter for half a minute at most, and for nothing else.
/// What it waits for has nothing to do with `stall_ms`.
const FIRST_WORD: Duration = Duration::from_secs(60);

/// Wait that is suggested where no worker said a better one.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a group cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DispatchError {
    /// Every fitting replica is full.
    #[error("every worker of this model is full")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// No replica of the model is there.
    #[error("no worker serves this model now")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// The adapter could not be had on any worker: none could load it in time, or none has room for it.
    #[error("the adapter could not be loaded by any worker")]
    AdapterUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// Every worker has found that the adapter cannot be used.
    #[error("no worker can use the adapter")]
    AdapterRefused {
        /// What one of them said.
        reason: Option<String>,
    },
    /// The request's key may not use the adapter.
    #[error("this key may not use the adapter")]
    Forbidden,
    /// Workers were lost one after the other, or too many at once.
    #[error("the workers that served this request were lost")]
    Lost,
    /// A worker gave the group up for a reason that another one would give too.
    #[error("{0}")]
    Failed(GroupFailure),
}

/// What a group produces, each token and score once and in order, whatever happened to workers meanwhile.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupEvent {
    /// Scores of the next prompt tokens.
    PromptScores(Vec<TokenScore>),
    /// Tokens of one step.
    Tokens(Vec<BranchToken>),
}

/// What all groups of a router share.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    /// Who is there.
    pub view: FleetView,
    /// Who is chosen.
    pub policy: Arc<dyn Pick>,
    /// What is remembered of the groups that were sent: bounded by its parts.
    pub traffic: Arc<Mutex<Traffic>>,
    /// Silence on a group's stream that is always in order.
    pub patience: Duration,
    /// Silence of a worker that was sent a group and has neither taken nor refused it.
    pub first_word: Duration,
    /// How often one group goes on elsewhere, at most.
    pub replays: u32,
    /// How many groups do, over all.
    pub budget: SharedBudget,
}

impl Dispatcher {
    /// A dispatcher that remembers nothing yet, with the default limit of replays.
    pub fn new(view: FleetView, policy: Arc<dyn Pick>) -> Self {
        let (traffic, budget) = Default::default();
        let (replays, patience, first_word) = (Limits::default().replays, PATIENCE, FIRST_WORD);
        Self { view, policy, traffic, patience, first_word, replays, budget }
    }
}

/// A group from submission to its last token.
#[derive(Debug)]
pub struct GroupRun {
    dispatcher: Dispatcher,
    model: Name,
    vocab_size: u32,
    submit: Submit,
    ended: Vec<bool>,
    scores_delivered: u32,
    stop_orders: mpsc::Receiver<BranchIndex>,
    deadline: Option<Instant>,
    access: Access,
    /// Made at the first submission: a group that needs no worker has none.
    route: Option<Route>,
    in_flight: Option<InFlight>,
    setbacks: Setbacks,
    attempt: Option<Attempt>,
}

/// Ends branches of a running group: a stop string matched.
#[derive(Clone, Debug)]
pub struct StopHandle(mpsc::Sender<BranchIndex>);

impl StopHandle {
    /// Ends `branch`. The queue holds one order per branch, so it never fills.
    pub fn stop(&self, branch: BranchIndex) {
        let _ = self.0.try_send(branch);
    }
}

impl GroupRun {
    /// A group that is not submitted yet. `submit.branches` may carry tokens that were already delivered.
    pub fn new(
        dispatcher: Dispatcher,
        (model, vocab_size): (Name, u32),
        submit: Submit,
        deadline: Option<Instant>,
        access: Access,
    ) -> (Self, StopHandle) {
        let (orders, stop_orders) = mpsc::channel(submit.branches.len().max(1));
        let run = Self {
            dispatcher,
            model,
            vocab_size,
            ended: vec![false; submit.branches.len()],
            submit,
            scores_delivered: 0,
            stop_orders,
            deadline,
            access,
            route: None,
            in_flight: None,
            setbacks: Setbacks::default(),
            attempt: None,
        };
        (run, StopHandle(orders))
    }

    /// Submits until a replica accepts. The first submission does not wait for replicas to appear.
    pub async fn start(&mut self) -> Result<(), DispatchError> {
        let mut route = self.route.take().unwrap_or_else(|| {
            let profile = Profile::of(&self.submit, &self.model);
            self.in_flight = Some(self.dispatcher.budget.enter());
            Route::new(&self.dispatcher, profile, self.access)
        });
        let started = self.submit_along(&mut route).await;
        self.route = Some(route);
        started
    }

    async fn submit_along(&mut self, route: &mut Route) -> Result<(), DispatchError> {
        let replays = self.setbacks.replays();
        let mut wait = if replays > 0 { REPLAY_WAIT } else { Duration::ZERO };
        let began = tokio::time::Instant::now();
        loop {
            let choice = route.choose(wait).await.map_err(|none| route.dead_end(none, replays))?;
            match self.attempt(&choice).await {
                Ok(attempt) => {
                    route.taken(&choice);
                    self.attempt = Some(attempt);
                    return Ok(());
                }
                Err(Trouble::Group(failure)) => return Err(DispatchError::Failed(failure)),
                Err(trouble) => {
                    if matches!(trouble, Trouble::Stuck) {
                        // It had the group: to wait until it moves, or somebody else is there, beats a refusal.
                        wait = REPLAY_WAIT;
                    }
                    route.avoid(choice.replica.seat, &trouble, began.elapsed() < wait);
                    self.blame(&choice.replica, &trouble)?;
                }
            }
        }
    }

    /// A worker may die of a group before it could say that it has it. That is no replay, but it counts against the group.
    fn blame(&mut self, replica: &Replica, trouble: &Trouble) -> Result<(), DispatchError> {
        if !matches!(trouble, Trouble::Replica) || self.setbacks.unheard(loss(replica, trouble)) != Verdict::Poisonous {
            return Ok(());
        }
        give_up(&self.model, replica, "poison");
        Err(DispatchError::Lost)
    }

    /// The next event; `None` after the last. Cancel-safe only as a whole: a dropped `next` must not be called again.
    pub async fn next(&mut self) -> Result<Option<GroupEvent>, DispatchError> {
        loop {
            let Some(attempt) = self.attempt.as_mut() else {
                self.in_flight.iter_mut().for_each(InFlight::ended_well);
                return Ok(None);
            };
            let outcome = tokio::select! {
                biased;
                Some(branch) = self.stop_orders.recv() => self.stop_branch(branch).await,
                frame = attempt.next(&self.dispatcher.view) => frame.and_then(|frame| self.take(frame)),
            };
            match outcome {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
                Err(Trouble::Group(failure)) => return Err(DispatchError::Failed(failure)),
                Err(trouble) => {
                    if !(matches!(trouble, Trouble::Stuck) && self.moves_again().await) {
                        self.replay(&trouble).await?;
                    }
                }
            }
        }
    }

    /// Whether the engine that stands still moves again while nobody else could take the group. Leaving it would help nobody
    /// then, and cost what it has computed: a machine may only have been busy with something else.
    async fn moves_again(&self) -> bool {
        match (&self.attempt, &self.route) {
            (Some(attempt), Some(route)) => route.outlasts(&attempt.replica, REPLAY_WAIT).await,
            _ => false,
        }
    }

    /// Submits what is left elsewhere. A worker that could not have the adapter is not lost, so that does not count.
    async fn replay(&mut self, trouble: &Trouble) -> Result<(), DispatchError> {
        let context = self.context();
        let (Some(lost), Some(route)) = (self.attempt.take(), &mut self.route) else { return Err(DispatchError::Lost) };
        route.avoid(lost.replica.seat, trouble, false);
        if matches!(trouble, Trouble::Adapter) {
            return self.start().await;
        }
        let loss = loss(&lost.replica, trouble);
        route.lose(&lost.replica, loss, context);
        let (model, worker) = (&self.model, &lost.replica.worker);
        if let Err(why) = may_go_on(&mut self.setbacks, (loss, lost.stay()), &self.dispatcher) {
            give_up(model, &lost.replica, why);
            return Err(DispatchError::Lost);
        }
        let replay = self.setbacks.replays();
        metrics::counter!("shoal_replays_total").increment(1);
        tracing::warn!(%model, %worker, ?loss, replay, "a worker was lost; the group goes on elsewhere");
        drop(lost);
        self.start().await
    }

    async fn stop_branch(&mut self, branch: BranchIndex) -> Result<Option<GroupEvent>, Trouble> {
        if std::mem::replace(&mut self.ended[branch.index()], true) {
            return Ok(None);
        }
        if self.ended.iter().all(|ended| *ended) {
            self.attempt = None;
        } else if let Some(attempt) = &mut self.attempt {
            let submitted = attempt.branches.iter().position(|known| *known == branch).ok_or(Trouble::Replica)?;
            let order = GroupOrder::StopBranch(BranchIndex(submitted as u16));
            codec::write_frame(&mut attempt.writer.0, &order).await?;
        }
        Ok(None)
    }
}

/// Tells that a group does not go on elsewhere, and why.
fn give_up(model: &Name, replica: &Replica, why: &'static str) {
    let worker = &replica.worker;
    metrics::counter!("shoal_replays_refused_total", "why" => why).increment(1);
    tracing::warn!(%model, %worker, why, "a worker was lost; the group is given up");
}

/// Whether a group goes on elsewhere after `loss`, or why not.
fn may_go_on(setbacks: &mut Setbacks, (loss, stay): (Loss, Stay), dispatcher: &Dispatcher) -> Result<(), &'static str> {
    match setbacks.suffer(loss, stay, dispatcher.replays) {
        Verdict::Poisonous => Err("poison"),
        Verdict::Exhausted => Err("attempts"),
        Verdict::Replay if dispatcher.budget.allows_replay(ambient::now()) => Ok(()),
        Verdict::Replay => Err("budget"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
