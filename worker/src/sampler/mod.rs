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
use penalties::{Restrictions, adjust, leaves_logits_alone};
use pulp::{Arch, Simd, WithSimd};

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
#[derive(Debug)]
pub struct Sampler {
    /// The instruction set that the passes over a row are compiled for. It never shows in a result: Rust neither reorders
    /// nor contracts floating-point operations.
    arch: Arch,
    /// `[vocab]`: logits after bias and penalties, or the exponentials of a score.
    row: Vec<f64>,
    candidates: Candidates,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { arch: Arch::new(), row: Vec::new(), candidates: Candidates::default() }
    }
}

impl Sampler {
    /// A sampler for rows of any length.
    pub fn new() -> Self {
        Self::default()
    }

    /// Draws a token from a row of raw logits, `[vocab]`. Equal arguments give equal tokens.
    pub fn sample(&mut self, logits: &[f32], draw: &Draw<'_>) -> TokenId {
        let arch = self.arch;
        arch.dispatch(Sampling { sampler: self, logits, draw })
    }

    #[inline(always)]
    fn sample_here(&mut self, logits: &[f32], draw: &Draw<'_>) -> TokenId {
        if draw.params.temperature.is_greedy()
            && leaves_logits_alone(draw)
            && let Some(best) = best(logits, f32::NEG_INFINITY)
        {
            return best.token;
        }
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
        self.arch.dispatch(Scoring { scratch: &mut self.row, logits, token, alternatives })
    }

    #[inline(always)]
    fn prepare(&mut self, logits: &[f32], draw: &Draw<'_>) -> Prepared {
        adjust(&mut self.row, logits, draw, Restrictions::All);
        if let Some(best) = best(&self.row, f64::NEG_INFINITY) {
            return Prepared::Row(best);
        }
        for weaker in [Restrictions::BansOnly, Restrictions::Lifted] {
            adjust(&mut self.row, logits, draw, weaker);
            if let Some(best) = best(&self.row, f64::NEG_INFINITY) {
                return Prepared::Forced(best.token);
            }
        }
        Prepared::Forced(TokenId(0))
    }
}

/// [`Sampler::sample`], compiled for an instruction set. A closure would not be.
struct Sampling<'a> {
    sampler: &'a mut Sampler,
    logits: &'a [f32],
    draw: &'a Draw<'a>,
}

impl WithSimd for Sampling<'_> {
    type Output = TokenId;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> TokenId {
        self.sampler.sample_here(self.logits, self.draw)
    }
}

/// [`Sampler::score`], compiled for an instruction set.
struct Scoring<'a> {
    scratch: &'a mut Vec<f64>,
    logits: &'a [f32],
    token: TokenId,
    alternatives: u8,
}

impl WithSimd for Scoring<'_> {
    type Output = TokenScore;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> TokenScore {
        logprobs::score(self.scratch, self.logits, self.token, self.alternatives)
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
