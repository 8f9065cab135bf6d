//! What changes logits before the temperature: `logit_bias`, the repetition, frequency and presence penalties, and bans.
//! Owns the token history of a branch. Called by the sampler; never looks at probabilities.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use shoal_common::ids::TokenId;
use shoal_common::sampling::{BiasEffect, SamplingParams};

use super::Draw;

/// What the penalties know of a branch: the distinct tokens of its prompt and how often each token was generated. A clone
/// shares the prompt's part, so the branches of a group hold it once. Grows by at most one entry per generated token.
#[derive(Clone, Default)]
pub struct TokenHistory {
    /// Distinct, ascending.
    prompt: Arc<[TokenId]>,
    output: BTreeMap<TokenId, u32>,
}

impl TokenHistory {
    /// The history of a branch that has generated nothing yet.
    pub fn new(prompt: &[TokenId]) -> Self {
        let mut distinct = prompt.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        Self { prompt: distinct.into(), output: BTreeMap::new() }
    }

    /// Takes note of a generated token.
    pub fn push(&mut self, token: TokenId) {
        let count = self.output.entry(token).or_default();
        *count = count.saturating_add(1);
    }

    fn in_prompt(&self, token: TokenId) -> bool {
        self.prompt.binary_search(&token).is_ok()
    }
}

/// Counts only: neither a prompt nor an answer may reach a log.
impl fmt::Debug for TokenHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenHistory")
            .field("distinct_prompt_tokens", &self.prompt.len())
            .field("distinct_output_tokens", &self.output.len())
            .finish()
    }
}

/// Which of a draw's restrictions hold. Together they may forbid every token (`logit_bias` allows only a token that
/// `min_tokens` forbids); then the weaker ones give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restrictions {
    /// All of them.
    All,
    /// Bans hold, "only these" does not.
    BansOnly,
    /// None.
    Lifted,
}

/// Writes the logits with bias and penalties to `adjusted` (`[vocab]`, f64): no NaN, no +inf, no negative zero; -inf for
/// what cannot be drawn. Ids outside the vocabulary are passed over.
#[inline(always)]
pub(super) fn adjust(adjusted: &mut Vec<f64>, logits: &[f32], draw: &Draw<'_>, restrictions: Restrictions) {
    adjusted.resize(logits.len(), 0.0);
    for (place, &logit) in adjusted.iter_mut().zip(logits) {
        *place = clean(f64::from(logit));
    }
    add_bias(adjusted, draw.params);
    add_penalties(adjusted, draw.params, draw.history);
    if restrictions == Restrictions::All {
        keep_only(adjusted, draw.params);
    }
    if restrictions != Restrictions::Lifted {
        ban(adjusted, draw);
    }
}

/// NaN becomes -inf (it cannot be drawn), +inf the largest finite value (so that differences exist), -0 becomes 0 (so that
/// it ties with 0).
#[inline(always)]
pub(super) fn clean(logit: f64) -> f64 {
    if logit.is_nan() { f64::NEG_INFINITY } else { logit.min(f64::MAX) + 0.0 }
}

/// Whether the draw takes the logits as they are.
pub(super) fn leaves_logits_alone(draw: &Draw<'_>) -> bool {
    let SamplingParams { logit_bias, repetition_penalty, frequency_penalty, presence_penalty, .. } = draw.params;
    logit_bias.is_empty()
        && draw.banned.is_empty()
        && repetition_penalty.get() == 1.0
        && frequency_penalty.get() == 0.0
        && presence_penalty.get() == 0.0
}

fn add_bias(adjusted: &mut [f64], params: &SamplingParams) {
    for &(token, bias) in &params.logit_bias {
        if let (BiasEffect::Add(added), Some(logit)) = (bias.effect(), adjusted.get_mut(token.index())) {
            *logit = clean(*logit + added);
        }
    }
}

fn add_penalties(adjusted: &mut [f64], params: &SamplingParams, history: &TokenHistory) {
    let repetition = params.repetition_penalty.get();
    let (frequency, presence) = (params.frequency_penalty.get(), params.presence_penalty.get());
    if repetition != 1.0 {
        let generated = history.output.keys().filter(|&&token| !history.in_prompt(token));
        for token in history.prompt.iter().chain(generated) {
            if let Some(logit) = adjusted.get_mut(token.index()) {
                *logit = clean(if *logit > 0.0 { *logit / repetition } else { *logit * repetition });
            }
        }
    }
    if frequency != 0.0 || presence != 0.0 {
        for (token, &count) in &history.output {
            if let Some(logit) = adjusted.get_mut(token.index()) {
                *logit = clean(*logit - frequency * f64::from(count) - presence);
            }
        }
    }
}

fn keep_only(adjusted: &mut [f64], params: &SamplingParams) {
    let only = params.logit_bias.iter().filter(|(_, bias)| bias.effect() == BiasEffect::Only);
    let kept: Vec<_> = only.map(|&(token, _)| (token, adjusted.get(token.index()).copied())).collect();
    if kept.is_empty() {
        return;
    }
    adjusted.fill(f64::NEG_INFINITY);
    for (token, logit) in kept {
        if let (Some(place), Some(logit)) = (adjusted.get_mut(token.index()), logit) {
            *place = logit;
        }
    }
}

fn ban(adjusted: &mut [f64], draw: &Draw<'_>) {
    let biased =
        draw.params.logit_bias.iter().filter(|(_, bias)| bias.effect() == BiasEffect::Ban).map(|(token, _)| token);
    for token in biased.chain(draw.banned) {
        if let Some(logit) = adjusted.get_mut(token.index()) {
            *logit = f64::NEG_INFINITY;
        }
    }
}
