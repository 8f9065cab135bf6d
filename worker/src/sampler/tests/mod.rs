//! The sampler against its definition: the goldens, a full-sort reference, odd rows.

mod golden;
mod odd_rows;
mod reference;

use shoal_common::ids::TokenId;
use shoal_common::sampling::{Bias, MinP, SamplingParams, Temperature, TopP};

use super::{Draw, Sampler, TokenHistory};

/// A draw without history, bans, choice or position.
fn plain<'a>(params: &'a SamplingParams, history: &'a TokenHistory) -> Draw<'a> {
    Draw { params, history, banned: &[], choice: 0, position: 0 }
}

fn ids(values: &[u32]) -> Vec<TokenId> {
    values.iter().copied().map(TokenId).collect()
}

fn with_temperature(value: f64) -> SamplingParams {
    SamplingParams { temperature: Temperature::new(value).unwrap(), ..SamplingParams::default() }
}

fn biased(entries: &[(u32, f64)]) -> SamplingParams {
    let logit_bias = entries.iter().map(|&(id, value)| (TokenId(id), Bias::new(value).unwrap())).collect();
    SamplingParams { logit_bias, ..SamplingParams::default() }
}

fn survivors(logits: &[f32], params: &SamplingParams) -> Vec<(TokenId, f64)> {
    Sampler::new().distribution(logits, &plain(params, &TokenHistory::default()))
}

fn survivor_ids(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    survivors(logits, params).into_iter().map(|(token, _)| token.0).collect()
}

fn min_p(value: f64) -> SamplingParams {
    SamplingParams { min_p: MinP::new(value).unwrap(), ..SamplingParams::default() }
}

fn top_p(value: f64) -> SamplingParams {
    SamplingParams { top_p: TopP::new(value).unwrap(), ..SamplingParams::default() }
}
