//! What the engine takes: a submission is checked whole before anything is allocated for it. Pure.

use std::sync::Arc;
use std::time::Instant;

use shoal_common::ids::TokenId;
use shoal_common::wire::hello::ModelCard;
use shoal_common::wire::message::{GroupFailure, MAX_ALTERNATIVES, MAX_BRANCHES, MAX_LOGIT_BIAS, Submit};

use super::sink::GroupSink;
use crate::adapters::Lease;
use crate::scheduler::{GroupShape, Hashes, Scoring};

/// Stop ids at most: the request's own and the model's EOS; each is searched for at each token.
pub(super) const MAX_STOP_IDS: usize = 1024;

/// What the engine serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Served(Arc<ModelCard>);

impl From<&ModelCard> for Served {
    fn from(card: &ModelCard) -> Self {
        Self(Arc::new(card.clone()))
    }
}

impl Served {
    /// Whether `submit` can be run here, once its adapter is.
    pub fn check(&self, submit: &Submit) -> Result<(), GroupFailure> {
        if submit.fingerprint != self.0.fingerprint_with(submit.adapter) {
            return Err(GroupFailure::WrongFingerprint);
        }
        let is_valid = self.length_fits(submit) && self.branches_are_valid(submit) && params_are_valid(submit);
        if is_valid { Ok(()) } else { Err(GroupFailure::Invalid) }
    }

    /// Whether `submit` can be run here with `adapter`: nothing is ever answered by the base model in an adapter's place.
    pub(super) fn check_with(&self, submit: &Submit, adapter: Option<&Lease>) -> Result<(), GroupFailure> {
        if submit.adapter != adapter.map(|lease| lease.generation()) {
            return Err(GroupFailure::AdapterUnavailable);
        }
        self.check(submit)
    }

    fn length_fits(&self, submit: &Submit) -> bool {
        let prompt = &submit.prompt.0;
        let longest = prompt.len() as u64 + u64::from(submit.end.max_tokens);
        !prompt.is_empty() && longest <= u64::from(self.0.context) && self.are_ids(prompt)
    }

    fn branches_are_valid(&self, submit: &Submit) -> bool {
        let max_tokens = submit.end.max_tokens as usize;
        let begins_well = |emitted: &[TokenId]| {
            (emitted.len() < max_tokens || max_tokens == 0 && emitted.is_empty()) && self.are_ids(emitted)
        };
        submit.branches.len() <= MAX_BRANCHES
            && (max_tokens == 0 || !submit.branches.is_empty())
            && submit.branches.iter().all(|branch| begins_well(&branch.emitted.0))
    }

    fn are_ids(&self, tokens: &[TokenId]) -> bool {
        tokens.iter().all(|token| token.0 < self.0.vocab_size)
    }
}

fn params_are_valid(submit: &Submit) -> bool {
    let (stop_ids, bias) = (&submit.end.stop_ids, &submit.sampling.logit_bias);
    stop_ids.len() <= MAX_STOP_IDS
        && stop_ids.is_sorted()
        && bias.len() <= MAX_LOGIT_BIAS
        && bias.is_sorted_by(|a, b| a.0 < b.0)
        && [submit.score_tokens, submit.score_prompt]
            .iter()
            .flatten()
            .all(|&alternatives| alternatives <= MAX_ALTERNATIVES)
}

/// A group that was found valid, on its way to the engine's thread.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) submit: Submit,
    pub(super) hashes: Hashes,
    /// What `submit.adapter` names.
    pub(super) adapter: Option<Lease>,
    pub(super) sink: GroupSink,
    pub(super) deadline: Option<Instant>,
}

/// What the policy must know of a valid submission. With `max_tokens` 0 no branch runs.
pub(super) fn shape(submit: &Submit, hashes: &Hashes) -> GroupShape {
    let max_tokens = submit.end.max_tokens as usize;
    let emitted = submit.branches.iter().map(|branch| branch.emitted.0.len());
    GroupShape {
        share_key: submit.share_key,
        prompt: submit.prompt.0.len(),
        max_tokens,
        emitted: if max_tokens == 0 { Vec::new() } else { emitted.collect() },
        scoring: if submit.score_prompt.is_some() { Scoring::Prompt } else { Scoring::Off },
        hashes: hashes.clone(),
    }
}
