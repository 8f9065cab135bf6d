//! What is reported about a token: its raw logprob (before bias, penalties and temperature) and the best alternatives.
//! Called by the sampler; never influences a draw.

use shoal_common::ids::TokenId;
use shoal_common::wire::message::TokenScore;

use super::exp::{exp, ln, sum};
use super::filters::best;
use super::penalties::clean;

/// Scores `token` against its row of raw logits, `[vocab]`. Natural logarithms; -inf for a logit of -inf or NaN and for a
/// token outside the row. `scratch` is overwritten.
pub(super) fn score(scratch: &mut Vec<f64>, logits: &[f32], token: TokenId, alternatives: u8) -> TokenScore {
    scratch.clear();
    scratch.extend(logits.iter().map(|&logit| clean(f64::from(logit))));
    let highest = best(scratch).map_or(f64::NEG_INFINITY, |best| best.logit);
    if highest > f64::NEG_INFINITY {
        scratch.iter_mut().for_each(|logit| *logit = exp(*logit - highest));
    }
    let log_total = ln(sum(scratch));
    let logprob = |logit: f32| {
        let value = clean(f64::from(logit)) - highest - log_total;
        // Only a row without any finite logit gives NaN (inf - inf): nothing in it has a probability.
        if value.is_nan() { f32::NEG_INFINITY } else { value as f32 }
    };
    TokenScore {
        token,
        logprob: logits.get(token.index()).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        alternatives: best_of(logits, usize::from(alternatives), logprob),
    }
}

/// The best `count` tokens by (logprob descending, id ascending). The order is that of the reported f32 values, so two
/// logits that round to one logprob are listed by id.
fn best_of(logits: &[f32], count: usize, logprob: impl Fn(f32) -> f32) -> Vec<(TokenId, f32)> {
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(count);
    if count == 0 {
        return best;
    }
    for (id, &logit) in (0..).zip(logits) {
        let value = logprob(logit);
        if best.len() == count && best.last().is_some_and(|&(_, worst)| value <= worst) {
            continue;
        }
        best.truncate(count - 1);
        let place = best.partition_point(|&(_, other)| other >= value);
        best.insert(place, (TokenId(id), value));
    }
    best
}
