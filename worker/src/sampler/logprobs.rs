//! What is reported about a token: its raw logprob (before bias, penalties and temperature) and the best alternatives.
//! Called by the sampler; never influences a draw.

use shoal_common::ids::TokenId;
use shoal_common::wire::message::TokenScore;

use super::exp::{exp, ln, sum};
use super::filters::best;
use super::penalties::clean;

/// Tokens that are asked together whether one of them is among the best: computed many at a time.
const BLOCK: usize = 64;

/// Scores `token` against its row of raw logits, `[vocab]`. Natural logarithms; -inf for a logit of -inf or NaN and for a
/// token outside the row. `scratch` is overwritten.
#[inline(always)]
pub(super) fn score(scratch: &mut Vec<f64>, logits: &[f32], token: TokenId, alternatives: u8) -> TokenScore {
    scratch.resize(logits.len(), 0.0);
    for (place, &logit) in scratch.iter_mut().zip(logits) {
        *place = clean(f64::from(logit));
    }
    let highest = best(scratch, f64::NEG_INFINITY).map_or(f64::NEG_INFINITY, |best| best.logit);
    if highest > f64::NEG_INFINITY {
        for logit in &mut *scratch {
            *logit = exp(*logit - highest);
        }
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
#[inline(always)]
fn best_of(logits: &[f32], count: usize, logprob: impl Fn(f32) -> f32) -> Vec<(TokenId, f32)> {
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(count);
    if count == 0 {
        return best;
    }
    for (block, logits) in logits.chunks(BLOCK).enumerate() {
        let mut values = [f32::NEG_INFINITY; BLOCK];
        for (value, &logit) in values.iter_mut().zip(logits) {
            *value = logprob(logit);
        }
        let worst = if best.len() == count { best.last().map(|&(_, worst)| worst) } else { None };
        let none_is_better = worst.is_some_and(|worst| !values.iter().fold(false, |any, &value| any | (value > worst)));
        if none_is_better {
            continue;
        }
        for (id, &value) in (block * BLOCK..).zip(&values[..logits.len()]) {
            if best.len() == count && best.last().is_some_and(|&(_, worst)| value <= worst) {
                continue;
            }
            best.truncate(count - 1);
            let place = best.partition_point(|&(_, other)| other >= value);
            best.insert(place, (TokenId(u32::try_from(id).expect("token ids are u32")), value));
        }
    }
    best
}
