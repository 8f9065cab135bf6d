//! `shoal status` and `shoal drain`: what an operator asks of a running router, and orders it. Called by `main`; the router's
//! side is `http::cluster`.
//!
//! 1. `client`: the requests.
//! 2. `document`: what comes back, as far as it is used here.
//! 3. `table`: the answer for people, and as lines for scripts.

mod client;
mod document;
mod table;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use shoal_common::ids::Name;

use client::Router;
pub(crate) use client::{OperateError, Order};
use document::Cluster;

/// Between two looks at a worker that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How `shoal status` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A table.
    Table,
    /// One line for each thing, its fields apart by tabs.
    Lines,
}

/// The cluster as the router at `url` sees it.
pub(crate) fn status(url: &str, form: Form) -> Result<String, OperateError> {
    let cluster = Router::new(url)?.cluster()?;
    Ok(match form {
        Form::Table => table::table(&cluster),
        Form::Lines => table::lines(&cluster),
    })
}

/// Orders a worker; returns what to tell.
pub(crate) fn order(url: &str, worker: &Name, order: Order) -> Result<String, OperateError> {
    Router::new(url)?.order(worker, order)?;
    Ok(match order {
        Order::Drain => format!("{worker} gets no more requests of this router"),
        Order::Undrain => format!("{worker} gets requests again"),
    })
}

/// Waits until nothing of the router at `url` runs on `worker` any more; returns what to tell.
pub(crate) fn wait_drained(url: &str, worker: &Name, within: Duration) -> Result<String, OperateError> {
    let (router, began) = (Router::new(url)?, Instant::now());
    let mut life = None;
    loop {
        match progress(&router.cluster()?, worker, &mut life) {
            Progress::Drained => return Ok(format!("{worker} is drained")),
            Progress::Left => return Ok(format!("{worker} has left: nothing runs on it any more")),
            Progress::Serving => return Err(OperateError::NotDraining(worker.clone())),
            Progress::Running if began.elapsed() > within => {
                return Err(OperateError::StillRunning { worker: worker.clone(), within });
            }
            Progress::Running => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Running,
    Drained,
    /// Its connection is gone, or another life has its place.
    Left,
    /// Somebody took the order back.
    Serving,
}

/// `life` is the incarnation that was seen first.
fn progress(cluster: &Cluster, worker: &Name, life: &mut Option<String>) -> Progress {
    let Some(found) = cluster.workers.iter().find(|found| found.name == worker.as_str()) else { return Progress::Left };
    if life.get_or_insert_with(|| found.incarnation.clone()) != &found.incarnation {
        return Progress::Left;
    }
    match found.state.as_str() {
        "drained" => Progress::Drained,
        "gone" => Progress::Left,
        "ready" => Progress::Serving,
        _ => Progress::Running,
    }
}
