//! The work budget: what a request may make the cluster compute, counted in tokens before anything is tokenised, and again
//! by `plan` with the true lengths.

use shoal_common::config::Limits;

use crate::http::error::{FaultKind, FieldFault};
use crate::request::{CompletionRequest, PromptInput};

/// Refuses a request whose prompts x best_of x (prompt tokens + max_tokens) is over `limits.work`. `prompts` has the prompt
/// tokens and the `max_tokens` of each prompt.
pub fn check(prompts: impl IntoIterator<Item = (u64, u32)>, best_of: u16, limits: &Limits) -> Result<(), FieldFault> {
    let per_candidate = |(tokens, max_tokens): (u64, u32)| u128::from(tokens) + u128::from(max_tokens);
    let work = prompts.into_iter().map(per_candidate).sum::<u128>() * u128::from(best_of);
    if work <= u128::from(limits.work) {
        return Ok(());
    }
    let rule = format!(
        "prompts x best_of x (prompt tokens + max_tokens) is {work} tokens, and a request may ask for {} at most",
        limits.work
    );
    Err(FieldFault::field("max_tokens", FaultKind::TooLarge, rule))
}

/// The least work the request can be: a text is at least one token.
pub(super) fn check_untokenised(request: &CompletionRequest, limits: &Limits) -> Result<(), FieldFault> {
    let least = |prompt: &PromptInput| match prompt {
        PromptInput::DocumentStart | PromptInput::Text(_) => 1,
        PromptInput::Tokens(ids) => ids.0.len() as u64,
    };
    check(request.prompts.iter().map(|prompt| (least(prompt), request.max_tokens)), request.best_of, limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n_times_prompts_counts_against_the_budget() {
        let limits = Limits { work: 1000, ..Limits::default() };
        assert!(check([(10, 90), (10, 90)], 5, &limits).is_ok());
        assert!(check([(10, 90), (11, 90)], 5, &limits).is_err());
        assert!(check([(u64::MAX, u32::MAX); 64], u16::MAX, &limits).is_err());
    }
}
