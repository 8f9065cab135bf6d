//! The sampler: a row of logits in, a token out. Called by the engine for each branch and step. Pure: no I/O, no clock, no
//! state of a request, and it never panics, whatever the logits.
//!
//! **Order**, in f64 from the f32 logits: `logit_bias`; repetition, frequency and presence penalty; bans; temperature
//! (0: the highest logit, the lowest id among equals); min_p; top_k; top_p; the draw.
//!
//! **Definition.** Candidates are sorted by (logit descending, id ascending) after bias and penalties; the weight of a
//! candidate is exp((logit - best) / temperature).
//! - min_p keeps weights of at least `min_p`: relative to the best, whose weight is 1.
//! - top_k keeps the first k.
//! - top_p keeps a candidate while the weight before it is less than `top_p` of the total; the first always stays.
//! - The draw takes the first candidate at which the cumulative weight exceeds u x mass, with u from `rng`.
//!
//! Cumulative weights are summed in sorted order. The total that top_p and a plain draw refer to is the sum over the ids
//! in 8 lanes (`exp::sum`), or with top_k the cumulative weight of the first k. How much is sorted never shows in the
//! result. Any change here changes answers, and so the numerics version.
//!
//! **Odd rows.** NaN counts as -inf. +inf counts as the largest finite logit. A `logit_bias` of 100 leaves only such
//! tokens, unbiased among themselves; a ban wins over it. If nothing is left, "only" gives way first, bans next, and the
//! best token of what remains is taken; in a row without a finite logit, token 0.

mod exp;
mod filters;
mod logprobs;
mod penalties;
mod rng;
#[cfg(test)]
mod tests;

use shoal_common::ids::TokenId;
use shoal_common::sampling::SamplingParams;
use shoal_common::wire::message::TokenScore;

use filters::{Best, Candidates, Ranking, best};
pub use penalties::TokenHistory;
use penalties::{Restrictions, adjust};

/// What one draw depends on beside the logits.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The request's parameters.
    pub params: &'a SamplingParams,
    /// What the branch has seen.
    pub history: &'a TokenHistory,
    /// Tokens that cannot be drawn now: the stop ids before `min_tokens`.
    pub banned: &'a [TokenId],
    /// The branch's number within its request.
    pub choice: u32,
    /// Index of the token among the branch's generated tokens.
    pub position: u32,
}

/// Draws and scores tokens. Holds only scratch memory of three rows, overwritten by each call: one per engine.
#[derive(Debug, Default)]
pub struct Sampler {
    /// `[vocab]`: logits after bias and penalties, or the exponentials of a score.
    row: Vec<f64>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler for rows of any length.
    pub fn new() -> Self {
        Self::default()
    }

    /// Draws a token from a row of raw logits, `[vocab]`. Equal arguments give equal tokens.
    pub fn sample(&mut self, logits: &[f32], draw: &Draw<'_>) -> TokenId {
        let best = match self.prepare(logits, draw) {
            Prepared::Forced(token) => return token,
            Prepared::Row(best) => best,
        };
        let temperature = draw.params.temperature;
        if temperature.is_greedy() {
            return best.token;
        }
        let ranking = Ranking { adjusted: &self.row, best, temperature: temperature.get() };
        let survivors = self.candidates.filter(&ranking, draw.params);
        let uniform = rng::uniform(draw.params.seed, draw.choice, draw.position);
        self.candidates.pick(&ranking, survivors, uniform)
    }

    /// The raw logprob of `token` in a row of raw logits, `[vocab]`, and the best `alternatives` tokens of the row by
    /// (logprob descending, id ascending). Bias, penalties and temperature play no part.
    pub fn score(&mut self, logits: &[f32], token: TokenId, alternatives: u8) -> TokenScore {
        logprobs::score(&mut self.row, logits, token, alternatives)
    }

    fn prepare(&mut self, logits: &[f32], draw: &Draw<'_>) -> Prepared {
        adjust(&mut self.row, logits, draw, Restrictions::All);
        if let Some(best) = best(&self.row) {
            return Prepared::Row(best);
        }
        for weaker in [Restrictions::BansOnly, Restrictions::Lifted] {
            adjust(&mut self.row, logits, draw, weaker);
            if let Some(best) = best(&self.row) {
                return Prepared::Forced(best.token);
            }
        }
        Prepared::Forced(TokenId(0))
    }
}

/// What bias, penalties and bans left.
enum Prepared {
    /// Candidates in `Sampler::row`.
    Row(Best),
    /// None; this token is taken.
    Forced(TokenId),
}

#[cfg(test)]
impl Sampler {
    /// The survivors with their probabilities, the most likely first: what `sample` draws from.
    pub(crate) fn distribution(&mut self, logits: &[f32], draw: &Draw<'_>) -> Vec<(TokenId, f64)> {
        let best = match self.prepare(logits, draw) {
            Prepared::Forced(token) => return vec![(token, 1.0)],
            Prepared::Row(best) => best,
        };
        if draw.params.temperature.is_greedy() {
            return vec![(best.token, 1.0)];
        }
        let ranking = Ranking { adjusted: &self.row, best, temperature: draw.params.temperature.get() };
        let survivors = self.candidates.filter(&ranking, draw.params);
        self.candidates.distribution(&ranking, survivors)
    }
}
