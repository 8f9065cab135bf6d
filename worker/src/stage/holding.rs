//! What the stages hold for the head's groups: [`StageAdapters`] has an adapter made ready on all of them, and the hold that it
//! gives stands for one group. An epoch's end is the end of all of its holds.

use std::time::Duration;

use futures_util::future::join_all;
use shoal_common::ids::Generation;
use shoal_common::wire::stage::StageAdapter;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::line::{Ask, Line, LineHold};
use super::replica::Current;
use crate::adapters::{AcquireError, Elsewhere, Held, Hold, Holding, Reason, Unavailable};

/// Has adapters made ready on all stages.
#[derive(Clone, Debug)]
pub struct StageAdapters(Current);

impl StageAdapters {
    pub(super) fn new(current: Current) -> Self {
        Self(current)
    }

    async fn hold_all(&self, generation: Generation, until: Instant) -> Result<Hold, AcquireError> {
        let together = tokio::time::timeout_at(until, self.0.together());
        let epoch = together.await.ok().flatten().ok_or(Unavailable::Stage)?;
        let asked = join_all(epoch.lines.iter().map(|line| hold_on(line, generation)));
        let answers = tokio::time::timeout_at(until, asked).await.map_err(|_| Unavailable::Late)?;
        // Those that do hold it are given back where others do not.
        let lines = answers.into_iter().collect::<Result<Vec<LineHold>, AcquireError>>()?;
        Ok(std::sync::Arc::new(StageHold { _lines: lines, epoch: epoch.number, current: self.0.clone() }))
    }
}

async fn hold_on(line: &Line, generation: Generation) -> Result<LineHold, AcquireError> {
    let (done, answered) = oneshot::channel();
    if !line.ask(Ask::Adapter { generation, done }).await {
        return Err(Unavailable::Stage.into());
    }
    match answered.await {
        Ok(Ok(hold)) => Ok(hold),
        Ok(Err(StageAdapter::Refused)) => Err(AcquireError::Quarantined(Reason::new("a stage cannot use it"))),
        Ok(Err(StageAdapter::Ready | StageAdapter::Unavailable)) | Err(_) => Err(Unavailable::Stage.into()),
    }
}

impl Elsewhere for StageAdapters {
    fn hold(&self, generation: Generation, within: Duration) -> Holding<'_> {
        Box::pin(self.hold_all(generation, Instant::now() + within))
    }
}

/// An adapter that all stages of an epoch hold.
#[derive(Debug)]
struct StageHold {
    _lines: Vec<LineHold>,
    epoch: u64,
    current: Current,
}

impl Held for StageHold {
    fn is_lost(&self) -> bool {
        self.current.get().is_none_or(|current| current.number != self.epoch)
    }
}
