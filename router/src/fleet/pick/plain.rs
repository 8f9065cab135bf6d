//! Policies that know less: what a router would do without adapters, and with adapters alone. The simulation compares
//! [`super::ByAdapter`] with them.

use std::sync::Arc;

use super::{Choice, Need, Pick, Unroutable, Why, fit, rendezvous};
use crate::fleet::Snapshot;

/// Fewest queued tokens first, then worker name, so that equal states give equal choices.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastQueued;

impl Pick for LeastQueued {
    fn pick(&self, snapshot: &Snapshot, need: &Need<'_>) -> Result<Choice, Unroutable> {
        let candidates = fit::candidates(snapshot, need)?;
        let why = if candidates.len() == 1 { Why::OnlyOne } else { Why::LeastQueued };
        let least = candidates.iter().min_by_key(|candidate| candidate.replica.queued_tokens());
        let least = least.expect("there is at least one candidate");
        Ok(Choice { replica: Arc::clone(least.replica), why })
    }
}

/// Always the first in the adapter's order, whatever waits there; for the base model the least queued.
#[derive(Clone, Copy, Debug, Default)]
pub struct NaiveAffinity;

impl Pick for NaiveAffinity {
    fn pick(&self, snapshot: &Snapshot, need: &Need<'_>) -> Result<Choice, Unroutable> {
        let Some(adapter) = need.adapter else { return LeastQueued.pick(snapshot, need) };
        let mut candidates = fit::candidates(snapshot, need)?;
        rendezvous::sort(&mut candidates, adapter.generation);
        let why = if candidates.len() == 1 { Why::OnlyOne } else { Why::First };
        Ok(Choice { replica: Arc::clone(candidates[0].replica), why })
    }
}
