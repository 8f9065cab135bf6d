//! A policy that plays a script, for tests of what stands around a policy.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use shoal_common::ids::Name;

use super::{Access, AdapterNeed, Choice, Need, Pick, Unroutable, Why};
use crate::fleet::{Replica, Seat, Snapshot};

/// What the policy was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) adapter: Option<AdapterNeed>,
    pub(crate) access: Access,
    pub(crate) excluded: Vec<Seat>,
    /// The longest overlap that was known.
    pub(crate) overlap: u64,
}

/// Gives its answers one after the other, whatever is asked, and then nobody.
#[derive(Debug, Default)]
pub(crate) struct Scripted {
    answers: Mutex<VecDeque<Result<Name, Unroutable>>>,
    asked: Mutex<Vec<Asked>>,
}

impl Scripted {
    pub(crate) fn new(answers: impl IntoIterator<Item = Result<Name, Unroutable>>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() })
    }

    /// Everything it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Pick for Scripted {
    fn pick(&self, snapshot: &Snapshot, need: &Need<'_>) -> Result<Choice, Unroutable> {
        let overlap = |replica: &Arc<Replica>| need.overlaps.tokens(replica.seat);
        self.asked.lock().unwrap().push(Asked {
            adapter: need.adapter,
            access: need.access,
            excluded: need.excluded.to_vec(),
            overlap: snapshot.replicas.iter().map(overlap).max().unwrap_or(0),
        });
        let worker = self.answers.lock().unwrap().pop_front().unwrap_or(Err(Unroutable::Nobody))?;
        let replica = snapshot.replicas.iter().find(|replica| replica.worker == worker).ok_or(Unroutable::Nobody)?;
        Ok(Choice { replica: Arc::clone(replica), why: Why::OnlyOne })
    }

    /// All of them.
    fn ahead(&self, snapshot: &Snapshot, _need: &Need<'_>) -> Vec<Arc<Replica>> {
        snapshot.replicas.clone()
    }
}
