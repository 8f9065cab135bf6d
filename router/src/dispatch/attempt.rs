//! One attempt of a group on one replica: its stream, what is still to be computed when it is opened, and how it can go wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_common::ambient;
use shoal_common::ids::BranchIndex;
use shoal_common::quic::{CloseCode, QuicError};
use shoal_common::wire::codec::{self, CodecError, FrameReader};
use shoal_common::wire::message::{GroupFailure, GroupFrame, StreamOpen, Submit};

use super::setbacks::{Loss, Stay};
use super::silence::Silence;
use super::{DEFAULT_RETRY_AFTER, GroupRun};
use crate::fleet::pick::Choice;
use crate::fleet::pulse::Beat;
use crate::fleet::replica::{OutstandingGuard, PromptGuard};
use crate::fleet::{FleetView, Replica};

/// How long a group waits for one of the connection's streams. Without an end, requests that have some of their groups'
/// streams would wait for each other's forever.
const STREAM_WAIT: Duration = Duration::from_secs(1);

/// A group's stream on one replica.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) reader: FrameReader<quinn::RecvStream>,
    pub(super) writer: ResetOnDrop,
    pub(super) replica: Arc<Replica>,
    /// Which of the group's branches were submitted: the open ones. The replica knows them by their index here.
    pub(super) branches: Vec<BranchIndex>,
    /// Prompt scores that came in this attempt; the caller may have more from an earlier one.
    pub(super) scores_seen: u32,
    silence: Silence,
    /// When the replica took the group, and what was seen of its engine then.
    taken: (Instant, Beat),
    /// Until the first token has come.
    prompt: Option<PromptGuard>,
    _outstanding: OutstandingGuard,
}

/// Resets the stream unless it was finished: quinn's own drop would finish it, and the worker would compute on.
#[derive(Debug)]
pub(super) struct ResetOnDrop(pub(super) quinn::SendStream);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        // Fails only where the stream is finished or the connection is gone: nothing is left to cancel then.
        let _ = self.0.reset(CloseCode::Cancelled.into());
    }
}

/// How an attempt went wrong.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The replica's connection is gone; it never had the group.
    Gone,
    /// Another replica may do better.
    Replica,
    /// A part of the replica's model was lost: another one is as good, and so is this one once it has that again.
    Incomplete,
    /// The replica's engine failed at it.
    Broken,
    /// The replica's engine stands still.
    Stuck,
    /// The replica's engine moves, but nothing comes of the group.
    Silent,
    /// The replica shuts down.
    Parting,
    /// The replica is full.
    Full { retry_after: Duration },
    /// The replica could not have the adapter in time.
    Adapter,
    /// Any replica would say the same.
    Group(GroupFailure),
}

impl From<CodecError> for Trouble {
    fn from(_: CodecError) -> Self {
        Self::Replica
    }
}

impl Attempt {
    /// The next frame, or why none comes. Cancel-safe.
    pub(super) async fn next(&mut self, view: &FleetView) -> Result<Result<GroupFrame, CodecError>, Trouble> {
        let began = tokio::time::Instant::now();
        loop {
            let allowed = self.silence.allowed(self.replica.outstanding.prompts());
            tokio::select! {
                biased;
                frame = self.reader.next::<GroupFrame>() => {
                    if let Ok(GroupFrame::Step(_)) = frame {
                        self.prompt = None;
                        self.silence.broken(began.elapsed());
                    }
                    return Ok(frame);
                }
                () = self.replica.vital.stuck() => return Err(Trouble::Stuck),
                () = tokio::time::sleep(allowed) => {
                    let replicas = &view.now().replicas;
                    let now = replicas.iter().find(|replica| replica.seat == self.replica.seat);
                    if self.silence.is_unexplained(now.and_then(|replica| replica.status.as_ref())) {
                        return Err(Trouble::Silent);
                    }
                }
            }
        }
    }

    /// How long the replica's engine has turned since it took the group.
    pub(super) fn stay(&self) -> Stay {
        let (since, before) = &self.taken;
        if self.replica.vital.last().has_gone_on(before, *since) { Stay::Long } else { Stay::Short }
    }
}

/// What `trouble` with a group says of its replica.
pub(super) fn loss(replica: &Replica, trouble: &Trouble) -> Loss {
    match trouble {
        _ if replica.vital.is_over() => Loss::Died,
        Trouble::Broken | Trouble::Stuck | Trouble::Incomplete => Loss::Broken,
        Trouble::Parting => Loss::Parted,
        _ => replica.line.connection().and_then(|line| line.close_reason()).map_or(Loss::Misbehaved, |reason| {
            match QuicError::from(reason) {
                QuicError::Closed(CloseCode::Shutdown) => Loss::Parted,
                QuicError::Closed(_) => Loss::Died,
                _ => Loss::OutOfReach,
            }
        }),
    }
}

impl GroupRun {
    /// Opens a stream on the chosen replica, submits, and waits for its word.
    pub(super) async fn attempt(&mut self, choice: &Choice) -> Result<Attempt, Trouble> {
        let connection = choice.replica.line.connection().ok_or(Trouble::Gone)?;
        let outstanding = choice.replica.reserve(self.work(), self.submit.adapter);
        let full = |_| Trouble::Full { retry_after: DEFAULT_RETRY_AFTER };
        let opened = tokio::time::timeout(STREAM_WAIT, connection.open_bi()).await.map_err(full)?;
        let (writer, reader) = opened.map_err(|_| Trouble::Gone)?;
        let mut writer = ResetOnDrop(writer);
        let branches = self.open_branches();
        let submit = self.remainder(&branches);
        codec::write_frame(&mut writer.0, &StreamOpen::Group(Box::new(submit))).await?;
        let mut reader = FrameReader::new(reader);
        let first = tokio::select! {
            biased;
            frame = reader.next::<GroupFrame>() => frame?,
            () = choice.replica.vital.stuck() => return Err(Trouble::Stuck),
            () = tokio::time::sleep(self.dispatcher.first_word) => return Err(Trouble::Silent),
        };
        match first {
            GroupFrame::Accepted => {}
            GroupFrame::Busy { retry_after_ms } => {
                return Err(Trouble::Full { retry_after: Duration::from_millis(retry_after_ms.into()) });
            }
            GroupFrame::Failed(failure) => return Err(judge(failure)),
            GroupFrame::PromptScores { .. } | GroupFrame::Step(_) => return Err(Trouble::Replica),
        }
        let replica = Arc::clone(&choice.replica);
        let prompt = Some(replica.expect_prompt(self.context()));
        let (scores_seen, silence) = (0, Silence::new(self.dispatcher.patience));
        let taken = (ambient::now(), replica.vital.last());
        Ok(Attempt {
            reader,
            writer,
            replica,
            branches,
            scores_seen,
            silence,
            taken,
            prompt,
            _outstanding: outstanding,
        })
    }

    fn open_branches(&self) -> Vec<BranchIndex> {
        let open = self.ended.iter().enumerate().filter(|(_, ended)| !**ended);
        open.map(|(index, _)| BranchIndex(index as u16)).collect()
    }

    /// What is still to be computed: the open branches from where they stand.
    fn remainder(&self, branches: &[BranchIndex]) -> Submit {
        let remaining = |deadline: Instant| deadline.saturating_duration_since(ambient::now()).as_millis();
        Submit {
            branches: branches.iter().map(|branch| self.submit.branches[branch.index()].clone()).collect(),
            score_prompt: self.submit.score_prompt.filter(|_| self.scores_delivered < self.scores_due()),
            deadline_ms: self.deadline.map(|deadline| u32::try_from(remaining(deadline)).unwrap_or(u32::MAX)),
            ..self.submit.clone()
        }
    }

    /// Prompt scores that the caller asked for: every token's but the first.
    pub(super) fn scores_due(&self) -> u32 {
        self.submit.score_prompt.map_or(0, |_| self.submit.prompt.0.len() as u32 - 1)
    }

    /// Tokens this group may still cost.
    fn work(&self) -> u64 {
        let output = u64::from(self.submit.end.max_tokens) * self.submit.branches.len() as u64;
        self.submit.prompt.0.len() as u64 + output.saturating_sub(self.emitted())
    }

    /// Tokens to compute before the next new one: the prompt, and what was delivered.
    pub(super) fn context(&self) -> u64 {
        self.submit.prompt.0.len() as u64 + self.emitted()
    }

    fn emitted(&self) -> u64 {
        self.submit.branches.iter().map(|branch| branch.emitted.0.len() as u64).sum()
    }
}

/// Whether another replica may do better than one that failed so.
pub(super) fn judge(failure: GroupFailure) -> Trouble {
    match failure {
        GroupFailure::WrongFingerprint => Trouble::Replica,
        GroupFailure::ShuttingDown => Trouble::Parting,
        GroupFailure::Engine => Trouble::Broken,
        GroupFailure::Incomplete => Trouble::Incomplete,
        GroupFailure::AdapterUnavailable => Trouble::Adapter,
        GroupFailure::Invalid | GroupFailure::Deadline | GroupFailure::AdapterRefused => Trouble::Group(failure),
    }
}
