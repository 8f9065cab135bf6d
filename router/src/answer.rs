//! Drives the groups of one request to their end: submits them, waits on all of them at once, feeds [`Merge`] and passes
//! its stop orders back. Owned by the request's future: dropping an [`Answer`] cancels every group.

use std::fmt;
use std::pin::Pin;
use std::time::Instant;

use futures_util::future::try_join_all;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};

use crate::catalogue::ServedModel;
use crate::dispatch::{DispatchError, Dispatcher, GroupEvent, GroupRun, StopHandle};
use crate::fleet::pick::Access;
use crate::http::schema::Usage;
use crate::merge::{ChoiceDelta, Merge};
use crate::plan::Plan;

type GroupStream = Pin<Box<dyn Stream<Item = (usize, Result<GroupEvent, DispatchError>)> + Send>>;

/// A request that every one of its groups has a place for.
pub struct Answer {
    merge: Merge,
    groups: SelectAll<GroupStream>,
    stops: Vec<StopHandle>,
    /// What could be told at once.
    first: Vec<ChoiceDelta>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("groups", &self.groups.len()).finish_non_exhaustive()
    }
}

/// What came next.
#[derive(Debug)]
pub enum Progress {
    /// More of some choices. May be empty: everything new is held back.
    Deltas(Vec<ChoiceDelta>),
    /// Every choice has ended.
    Done,
    /// The open choices cannot go on.
    Failed(DispatchError),
}

impl Answer {
    /// Submits every group of `plan`; resolves when all of them are accepted.
    pub async fn start(
        plan: &Plan,
        model: &ServedModel,
        dispatcher: &Dispatcher,
        deadline: Option<Instant>,
    ) -> Result<Self, DispatchError> {
        let identity = (model.card.name.clone(), model.card.vocab_size);
        let new_run = |submit| GroupRun::new(dispatcher.clone(), identity.clone(), submit, deadline, Access::Everybody);
        let runs = plan.groups.iter().map(|group| new_run(group.submit.clone()));
        let (runs, stops): (Vec<_>, Vec<_>) = runs.unzip();
        let needed = runs.into_iter().enumerate().filter(|(index, _)| plan.groups[*index].needs_worker());
        let started = try_join_all(needed.map(|(index, mut run)| async move {
            run.start().await?;
            Ok::<_, DispatchError>(group_stream(index, run))
        }));
        let groups = started.await?.into_iter().collect();
        let mut merge = Merge::new(plan);
        let first = merge.begin();
        Ok(Self { merge, groups, stops, first })
    }

    /// Waits for what comes next. Cancel-safe.
    pub async fn next(&mut self) -> Progress {
        if !self.first.is_empty() {
            return Progress::Deltas(std::mem::take(&mut self.first));
        }
        if self.merge.is_done() {
            return Progress::Done;
        }
        match self.groups.next().await {
            Some((group, Ok(event))) => {
                let output = self.merge.accept(group, event);
                for order in output.stops {
                    self.stops[order.group].stop(order.branch);
                }
                Progress::Deltas(output.deltas)
            }
            Some((_, Err(error))) => Progress::Failed(error),
            // A stream ends only after its last branch did, and then the merge is done.
            None => Progress::Failed(DispatchError::Lost),
        }
    }

    /// Whether the deltas told so far were the last.
    pub fn is_done(&self) -> bool {
        self.first.is_empty() && self.merge.is_done()
    }

    /// Ends every open choice where it stands.
    pub fn cancel(&mut self) -> Vec<ChoiceDelta> {
        let mut deltas = std::mem::take(&mut self.first);
        deltas.extend(self.merge.cancel());
        deltas
    }

    /// What was counted so far.
    pub fn usage(&self) -> Usage {
        self.merge.usage()
    }
}

fn group_stream(index: usize, run: GroupRun) -> GroupStream {
    let events = stream::unfold(Some(run), move |run| async move {
        let mut run = run?;
        match run.next().await {
            Ok(Some(event)) => Some(((index, Ok(event)), Some(run))),
            Ok(None) => None,
            Err(error) => Some(((index, Err(error)), None)),
        }
    });
    Box::pin(events)
}
