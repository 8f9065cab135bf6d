//! What must hold of a cluster in which nothing happens any more: every worker is a member once, holds nothing for anybody,
//! and no task is left of all that was. Pure, over what `cluster`'s books show.

use std::collections::BTreeMap;

use shoal_common::wire::hello::WorkerState;
use shoal_router::fleet::{Replica, Snapshot};

use crate::cluster::{Books, Host};

/// Tasks of each process, before anything was asked.
pub type Tasks = BTreeMap<Host, usize>;

/// Tasks of each process that runs.
pub fn tasks(books: &Books) -> Tasks {
    books.lives.iter().map(|(host, life)| (*host, life.runtime.metrics().num_alive_tasks())).collect()
}

/// What is not at rest, in words.
pub fn unrest(books: &Books, workers: usize) -> Vec<String> {
    let mut unrest = Vec::new();
    let mut lives = BTreeMap::new();
    for (host, life) in &books.lives {
        let Some(view) = &life.view else { continue };
        let snapshot = view.now();
        unrest.extend(membership(&snapshot, workers).map(|wrong| format!("{}: {wrong}", host.name())));
        for replica in &snapshot.replicas {
            let burden = burden(replica);
            unrest.extend(burden.map(|wrong| format!("{}: {}: {wrong}", host.name(), replica.worker)));
            let life = *lives.entry(replica.worker.clone()).or_insert(replica.incarnation);
            if life != replica.incarnation {
                unrest.push(format!("{} has two lives: {life} and {}", replica.worker, replica.incarnation));
            }
        }
    }
    unrest
}

/// Whether `books` have as many tasks as at rest before.
pub fn leftover_tasks(books: &Books, before: &Tasks) -> Vec<String> {
    let now = tasks(books);
    let more = |(host, tasks): (&Host, &usize)| {
        let was = before.get(host)?;
        (tasks != was).then(|| format!("{} has {tasks} tasks and had {was}", host.name()))
    };
    now.iter().filter_map(more).collect()
}

fn membership(snapshot: &Snapshot, workers: usize) -> Option<String> {
    let members = snapshot.replicas.len();
    (members != workers).then(|| format!("{members} of {workers} workers are members"))
}

/// What a worker still holds, or this router believes that it does.
fn burden(replica: &Replica) -> Option<String> {
    let Some(status) = replica.status else { return Some("it has not said how it is".to_owned()) };
    let held = (status.running, status.waiting, status.kv_used, status.queued_tokens);
    let outstanding = replica.outstanding.tokens();
    if replica.line.is_closed() {
        Some("its connection is closed".to_owned())
    } else if status.state != WorkerState::Ready {
        Some("it is draining".to_owned())
    } else if held != (0, 0, 0, 0) {
        Some(format!("(running, waiting, kv, queued) = {held:?}"))
    } else {
        (outstanding > 0).then(|| format!("{outstanding} tokens are outstanding"))
    }
}
