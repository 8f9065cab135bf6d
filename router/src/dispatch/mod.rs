//! One group on its way: picks a replica, submits on a QUIC stream of its own, hands on the frames, and, when the replica is
//! lost, submits again elsewhere with what was already delivered, so that the caller sees one unbroken sequence of events.
//! Dropping a [`GroupRun`] resets its stream, which cancels the group on the worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_common::ids::{BranchIndex, Name};
use shoal_common::quic::CloseCode;
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::message::{BranchToken, GroupFailure, GroupFrame, GroupOrder, StreamOpen, Submit, TokenScore};
use tokio::sync::mpsc;

use crate::fleet::pick::{Choice, Need, Pick};
use crate::fleet::roster::OutstandingGuard;
use crate::fleet::{FleetView, Seat};

/// Submissions of one group after the first: a group that took down this many workers and one more is not given a next.
const MAX_REPLAYS: u32 = 2;

/// How long a replay waits for a fitting replica to appear: a link's idle timeout and a worker's restart fit in.
const REPLAY_WAIT: Duration = Duration::from_secs(5);

/// How long a group waits for one of the connection's streams. Without an end, requests that have some of their groups'
/// streams would wait for each other's forever.
const STREAM_WAIT: Duration = Duration::from_secs(1);

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
    /// Workers were lost one after the other.
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
}

/// A group's stream on one replica.
#[derive(Debug)]
struct Attempt {
    reader: FrameReader<quinn::RecvStream>,
    writer: ResetOnDrop,
    seat: Seat,
    /// Which of the group's branches were submitted: the open ones. The replica knows them by their index here.
    branches: Vec<BranchIndex>,
    /// Prompt scores that came in this attempt; the caller may have more from an earlier one.
    scores_seen: u32,
    _outstanding: OutstandingGuard,
}

/// Resets the stream unless it was finished: quinn's own drop would finish it, and the worker would compute on.
#[derive(Debug)]
struct ResetOnDrop(quinn::SendStream);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        // Fails only where the stream is finished or the connection is gone: nothing is left to cancel then.
        let _ = self.0.reset(CloseCode::Cancelled.into());
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
    excluded: Vec<Seat>,
    replays: u32,
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

/// How an attempt went wrong.
#[derive(Debug)]
enum Trouble {
    /// Another replica may do better.
    Replica,
    /// The replica is full.
    Full { retry_after: Duration },
    /// Any replica would say the same.
    Group(GroupFailure),
}

impl From<CodecError> for Trouble {
    fn from(_: CodecError) -> Self {
        Self::Replica
    }
}

impl GroupRun {
    /// A group that is not submitted yet. `submit.branches` may carry tokens that were already delivered.
    pub fn new(
        dispatcher: Dispatcher,
        (model, vocab_size): (Name, u32),
        submit: Submit,
        deadline: Option<Instant>,
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
            excluded: Vec::new(),
            replays: 0,
            attempt: None,
        };
        (run, StopHandle(orders))
    }

    /// Submits until a replica accepts. The first submission does not wait for replicas to appear.
    pub async fn start(&mut self) -> Result<(), DispatchError> {
        let mut busy: Option<Duration> = None;
        loop {
            let Some(choice) = self.choose().await else {
                return Err(self.nobody(busy));
            };
            match self.attempt(&choice).await {
                Ok(attempt) => {
                    metrics::counter!("shoal_route_total", "why" => choice.why.to_string()).increment(1);
                    self.attempt = Some(attempt);
                    return Ok(());
                }
                Err(Trouble::Full { retry_after }) => {
                    busy = Some(busy.map_or(retry_after, |known| known.min(retry_after)));
                    self.excluded.push(choice.replica.seat);
                }
                Err(Trouble::Replica) => self.excluded.push(choice.replica.seat),
                Err(Trouble::Group(failure)) => return Err(DispatchError::Failed(failure)),
            }
        }
    }

    /// The next event; `None` after the last. Cancel-safe only as a whole: a dropped `next` must not be called again.
    pub async fn next(&mut self) -> Result<Option<GroupEvent>, DispatchError> {
        loop {
            let Some(attempt) = self.attempt.as_mut() else { return Ok(None) };
            let outcome = tokio::select! {
                Some(branch) = self.stop_orders.recv() => self.stop_branch(branch).await,
                frame = attempt.reader.next::<GroupFrame>() => self.take(frame),
            };
            match outcome {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
                Err(Trouble::Group(failure)) => return Err(DispatchError::Failed(failure)),
                Err(Trouble::Replica | Trouble::Full { .. }) => self.replay().await?,
            }
        }
    }

    fn nobody(&self, busy: Option<Duration>) -> DispatchError {
        match busy {
            Some(retry_after) => DispatchError::Busy { retry_after },
            None if self.replays > 0 => DispatchError::Lost,
            None => DispatchError::Unavailable { retry_after: DEFAULT_RETRY_AFTER },
        }
    }

    /// A replica for the next attempt; a replay waits a while for one.
    async fn choose(&self) -> Option<Choice> {
        let wait = if self.replays > 0 { REPLAY_WAIT } else { Duration::ZERO };
        let mut view = self.dispatcher.view.clone();
        let found = tokio::time::timeout(wait, async {
            loop {
                let snapshot = view.now();
                let need = Need { model: &self.model, fingerprint: self.submit.fingerprint, excluded: &self.excluded };
                if let Some(choice) = self.dispatcher.policy.pick(&snapshot, &need) {
                    return Some(choice);
                }
                if !view.changed().await {
                    return None;
                }
            }
        });
        found.await.ok().flatten()
    }

    /// Opens a stream on the chosen replica, submits, and waits for its word.
    async fn attempt(&mut self, choice: &Choice) -> Result<Attempt, Trouble> {
        let connection = choice.replica.line.connection().ok_or(Trouble::Replica)?;
        let outstanding = choice.replica.reserve(self.work());
        let full = |_| Trouble::Full { retry_after: DEFAULT_RETRY_AFTER };
        let opened = tokio::time::timeout(STREAM_WAIT, connection.open_bi()).await.map_err(full)?;
        let (writer, reader) = opened.map_err(|_| Trouble::Replica)?;
        let mut writer = ResetOnDrop(writer);
        let branches = self.open_branches();
        let submit = self.remainder(&branches);
        codec::write_frame(&mut writer.0, &StreamOpen::Group(Box::new(submit))).await?;
        let mut reader = FrameReader::new(reader);
        match reader.next::<GroupFrame>().await? {
            GroupFrame::Accepted => {}
            GroupFrame::Busy { retry_after_ms } => {
                return Err(Trouble::Full { retry_after: Duration::from_millis(retry_after_ms.into()) });
            }
            GroupFrame::Failed(failure) => return Err(judge(failure)),
            GroupFrame::PromptScores { .. } | GroupFrame::Step(_) => return Err(Trouble::Replica),
        }
        let seat = choice.replica.seat;
        Ok(Attempt { reader, writer, seat, branches, scores_seen: 0, _outstanding: outstanding })
    }

    fn open_branches(&self) -> Vec<BranchIndex> {
        let open = self.ended.iter().enumerate().filter(|(_, ended)| !**ended);
        open.map(|(index, _)| BranchIndex(index as u16)).collect()
    }

    /// What is still to be computed: the open branches from where they stand.
    fn remainder(&self, branches: &[BranchIndex]) -> Submit {
        let remaining = |deadline: Instant| deadline.saturating_duration_since(Instant::now()).as_millis();
        Submit {
            branches: branches.iter().map(|branch| self.submit.branches[branch.index()].clone()).collect(),
            score_prompt: self.submit.score_prompt.filter(|_| self.scores_delivered < self.scores_due()),
            deadline_ms: self.deadline.map(|deadline| u32::try_from(remaining(deadline)).unwrap_or(u32::MAX)),
            ..self.submit.clone()
        }
    }

    /// Prompt scores that the caller asked for: every token's but the first.
    fn scores_due(&self) -> u32 {
        self.submit.score_prompt.map_or(0, |_| self.submit.prompt.0.len() as u32 - 1)
    }

    /// Tokens this group may still cost.
    fn work(&self) -> u64 {
        let emitted: usize = self.submit.branches.iter().map(|branch| branch.emitted.0.len()).sum();
        let output = u64::from(self.submit.end.max_tokens) * self.submit.branches.len() as u64;
        self.submit.prompt.0.len() as u64 + output.saturating_sub(emitted as u64)
    }

    async fn replay(&mut self) -> Result<(), DispatchError> {
        if let Some(lost) = self.attempt.take() {
            self.excluded.push(lost.seat);
        }
        if self.replays == MAX_REPLAYS {
            return Err(DispatchError::Lost);
        }
        self.replays += 1;
        metrics::counter!("shoal_replays_total").increment(1);
        tracing::warn!(model = %self.model, replay = self.replays, "a worker was lost; the group goes on elsewhere");
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

    /// Checks a frame against what may come now and turns it into an event.
    fn take(&mut self, frame: Result<GroupFrame, CodecError>) -> Result<Option<GroupEvent>, Trouble> {
        match frame {
            Ok(GroupFrame::Step(tokens)) => self.take_tokens(tokens),
            Ok(GroupFrame::PromptScores { first, scores }) => self.take_scores(first, scores),
            Ok(GroupFrame::Failed(failure)) => Err(judge(failure)),
            Ok(GroupFrame::Busy { .. } | GroupFrame::Accepted) => Err(Trouble::Replica),
            Err(CodecError::Ended) if self.is_complete() => {
                self.attempt = None;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the worker may end the stream: every branch ended and every score came.
    fn is_complete(&self) -> bool {
        self.ended.iter().all(|ended| *ended) && self.scores_delivered == self.scores_due()
    }

    fn take_scores(&mut self, first: u32, mut scores: Vec<TokenScore>) -> Result<Option<GroupEvent>, Trouble> {
        let known = scores.iter().all(|score| self.is_known(score));
        let due = self.scores_due();
        let attempt = self.attempt.as_mut().ok_or(Trouble::Replica)?;
        let (seen, count) = (attempt.scores_seen, scores.len() as u32);
        if !known || first != seen + 1 || count > due - seen {
            return Err(Trouble::Replica);
        }
        attempt.scores_seen += count;
        scores.drain(..self.scores_delivered.saturating_sub(seen).min(count) as usize);
        self.scores_delivered += scores.len() as u32;
        Ok((!scores.is_empty()).then_some(GroupEvent::PromptScores(scores)))
    }

    /// Takes all tokens of a step or, where one of them is wrong, none: what is not handed on must be computed again.
    fn take_tokens(&mut self, mut tokens: Vec<BranchToken>) -> Result<Option<GroupEvent>, Trouble> {
        if self.scores_delivered < self.scores_due() {
            return Err(Trouble::Replica);
        }
        let submitted = &self.attempt.as_ref().ok_or(Trouble::Replica)?.branches;
        for token in &mut tokens {
            token.branch = *submitted.get(token.branch.index()).ok_or(Trouble::Replica)?;
        }
        // Tokens of a branch that was stopped meanwhile were on their way already.
        tokens.retain(|token| !self.ended[token.branch.index()]);
        let each_once =
            tokens.iter().enumerate().all(|(at, token)| tokens[..at].iter().all(|one| one.branch != token.branch));
        if !each_once || !tokens.iter().all(|token| self.comes_next(token)) {
            return Err(Trouble::Replica);
        }
        for token in &tokens {
            self.submit.branches[token.branch.index()].emitted.0.push(token.token);
            self.ended[token.branch.index()] = token.end.is_some();
        }
        Ok((!tokens.is_empty()).then_some(GroupEvent::Tokens(tokens)))
    }

    /// Whether the token goes on where its branch stands.
    fn comes_next(&self, token: &BranchToken) -> bool {
        let emitted = self.submit.branches[token.branch.index()].emitted.0.len();
        let in_place = emitted == token.position as usize && token.position < self.submit.end.max_tokens;
        let as_asked = token.score.is_some() == self.submit.score_tokens.is_some()
            && token.score.as_ref().is_none_or(|score| score.token == token.token && self.is_known(score));
        in_place && token.token.0 < self.vocab_size && as_asked
    }

    fn is_known(&self, score: &TokenScore) -> bool {
        score.token.0 < self.vocab_size && score.alternatives.iter().all(|(token, _)| token.0 < self.vocab_size)
    }
}

/// Whether another replica may do better than one that failed so.
fn judge(failure: GroupFailure) -> Trouble {
    match failure {
        GroupFailure::WrongFingerprint
        | GroupFailure::ShuttingDown
        | GroupFailure::Engine
        | GroupFailure::AdapterUnavailable => Trouble::Replica,
        GroupFailure::Invalid | GroupFailure::Deadline | GroupFailure::AdapterRefused => Trouble::Group(failure),
    }
}

#[cfg(test)]
pub(crate) mod tests;
