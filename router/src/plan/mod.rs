//! From a validated request and its model to the groups that are submitted: checks what only a model can decide, counts
//! the work, gives every group its share. Pure: prompts come in as token ids, the seed as an argument.

use std::sync::Arc;

use shoal_common::block_hash::CacheSalt;
use shoal_common::config::Limits;
use shoal_common::ids::{Generation, TokenId};
use shoal_common::wire::message::{BranchStart, EndRules, PromptIds, Submit};

use crate::catalogue::ServedModel;
use crate::choice::{CandidateRules, scalars};
use crate::http::error::{ApiError, FaultKind, FieldFault, Loc};
use crate::request::{ClientText, CompletionRequest, Echo, EosRule, Loglikelihood, PromptForm, PromptInput};
use crate::text::{Detokenizer, SpecialText};
use crate::validate::work;

/// How candidates become choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// Candidate k is choice k.
    Direct,
    /// All candidates are equal (temperature 0): one is computed, every choice is it.
    Shared,
    /// The best `n` of `best_of`, known when all have ended.
    Ranked,
}

/// Whether the first prompt token, which nothing stands before, is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstToken {
    /// Reported without a score (`echo`).
    Unscored,
    /// Left out (`loglikelihood`).
    Omitted,
}

/// What stands in front of a group's completions.
#[derive(Clone, Debug)]
pub struct Prelude {
    /// The echoed prompt; empty without `echo`.
    pub text: String,
    /// The prompt's tokens with their offsets in `text`, if they are reported.
    pub tokens: Option<Vec<(TokenId, u64)>>,
    /// What becomes of the first of them.
    pub first: FirstToken,
}

impl Prelude {
    /// Prompt scores that must come before the prelude is whole.
    pub fn scores_due(&self) -> usize {
        self.tokens.as_ref().map_or(0, |tokens| tokens.len() - 1)
    }
}

/// One prompt, ready to be submitted.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// What the worker is asked.
    pub submit: Submit,
    /// What stands in front.
    pub prelude: Prelude,
}

impl GroupPlan {
    /// Whether anything must be computed: an echo without tokens and scores needs no model.
    pub fn needs_worker(&self) -> bool {
        !self.submit.branches.is_empty() || self.submit.score_prompt.is_some()
    }
}

/// A request, ready to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One per prompt.
    pub groups: Vec<GroupPlan>,
    /// Choices per prompt.
    pub n: u16,
    /// Candidates per prompt.
    pub best_of: u16,
    /// How candidates become choices.
    pub assignment: Assignment,
    /// How candidates become text.
    pub rules: CandidateRules,
    /// Alternatives reported per token; absent: no logprobs.
    pub logprobs: Option<u8>,
    /// The smallest `max_tokens` that a full context left, where it left less than asked for.
    pub clamped: Option<u32>,
}

impl Plan {
    /// Candidates that one computed branch stands for.
    pub fn candidates_per_branch(&self) -> u64 {
        if self.assignment == Assignment::Shared { u64::from(self.best_of) } else { 1 }
    }
}

/// Checks everything in a request that depends on the model but not on its tokenizer's work. All faults together. A text
/// that cannot fit the context, however it is split, is refused here: to tokenise it would take seconds.
pub fn check(request: &CompletionRequest, model: &ServedModel, has_fim: bool) -> Result<(), ApiError> {
    let vocab = model.card.vocab_size;
    let beyond = |token: &TokenId| token.0 >= vocab;
    let message = format!("must be a token id below the model's vocabulary size of {vocab}");
    let mut faults = Vec::new();
    let mut outside = |path: Vec<Loc>| faults.push(FieldFault::new(path, FaultKind::TooLarge, message.clone()));
    for (p, prompt) in request.prompts.iter().enumerate() {
        let PromptInput::Tokens(PromptIds(ids)) = prompt else { continue };
        // One fault per prompt is enough to find the rest: a client that mixes vocabularies has thousands.
        if let Some(t) = ids.iter().position(beyond) {
            let mut path = vec![Loc::Field("prompt".into())];
            path.extend((request.prompt_form == PromptForm::IdLists).then_some(Loc::Index(p)));
            path.push(Loc::Index(t));
            outside(path);
        }
    }
    for (token, _) in request.sampling.logit_bias.iter().filter(|(token, _)| beyond(token)) {
        outside(vec![Loc::Field("logit_bias".into()), Loc::Field(token.to_string().into())]);
    }
    for (t, _) in request.stop_token_ids.iter().enumerate().filter(|(_, token)| beyond(token)) {
        outside(vec![Loc::Field("stop_token_ids".into()), Loc::Index(t)]);
    }
    if request.suffix.is_some() {
        if !has_fim {
            faults.push(FieldFault::field("suffix", FaultKind::Value, "this model has no fill-in-the-middle tokens"));
        } else if request.prompts.iter().any(|prompt| matches!(prompt, PromptInput::Tokens(_))) {
            faults.push(FieldFault::field("suffix", FaultKind::Value, "needs the prompt as text, not as token ids"));
        }
    }
    faults.extend(hopeless_prompts(request, model));
    if faults.is_empty() { Ok(()) } else { Err(ApiError::Invalid(faults)) }
}

/// Faults of the prompts whose fewest tokens are too many.
fn hopeless_prompts(request: &CompletionRequest, model: &ServedModel) -> Vec<FieldFault> {
    let fewest = |text: &ClientText| model.tokenizer.fewest_tokens(&text.0);
    let suffix = request.suffix.as_ref().map_or(0, fewest);
    let least = |prompt: &PromptInput| match prompt {
        PromptInput::DocumentStart => suffix,
        PromptInput::Text(text) => suffix + fewest(text),
        PromptInput::Tokens(PromptIds(ids)) => ids.len(),
    };
    let lengths = request.prompts.iter().map(least).enumerate();
    let hopeless = lengths.filter(|(_, least)| !fits(*least, model));
    hopeless.map(|(index, least)| too_long(index, &format!("at least {least}"), request, model)).collect()
}

/// A prompt after tokenisation.
#[derive(Clone, Debug)]
pub struct TokenisedPrompt {
    /// At least one id.
    pub ids: Vec<TokenId>,
    /// Ids at the head that stand for nothing in the text: a BOS that was added.
    pub added: usize,
    /// The prompt as text, for `echo`; absent where the client sent ids.
    pub text: Option<String>,
}

/// What the router decides for a request.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Of the sampler.
    pub seed: u64,
    /// The fair-share key of its user.
    pub share_key: u64,
    /// Whose cached prefixes it may meet.
    pub cache_salt: CacheSalt,
    /// The adapter, if it is not the base model that answers.
    pub adapter: Option<Generation>,
}

/// Plans a request that passed [`check`].
pub fn plan(
    request: &CompletionRequest,
    model: &Arc<ServedModel>,
    prompts: Vec<TokenisedPrompt>,
    terms: Terms,
    limits: &Limits,
) -> Result<Plan, ApiError> {
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
    let room = room_for_output(request, model, &lengths)?;
    let work = lengths.iter().map(|length| *length as u64).zip(room.iter().copied());
    work::check(work, request.best_of, limits).map_err(ApiError::invalid)?;
    let assignment = assignment(request);
    let shape = GroupShape { request, model, assignment, terms };
    let groups = prompts.into_iter().zip(&room).enumerate();
    let clamped = room.iter().copied().filter(|room| *room < request.max_tokens).min();
    Ok(Plan {
        groups: groups.map(|(index, (prompt, room))| shape.group(index, prompt, *room)).collect(),
        n: request.n,
        best_of: request.best_of,
        assignment,
        rules: CandidateRules {
            tokenizer: Arc::clone(&model.tokenizer),
            stop: request.stop.clone(),
            min_tokens: request.min_tokens,
            text_before: 0,
        },
        logprobs: reported_alternatives(request),
        clamped,
    })
}

/// `max_tokens` of each prompt, cut to what the context leaves.
fn room_for_output(request: &CompletionRequest, model: &ServedModel, lengths: &[usize]) -> Result<Vec<u32>, ApiError> {
    let context = model.card.context as usize;
    let mut faults = Vec::new();
    let mut room = Vec::with_capacity(lengths.len());
    for (index, length) in lengths.iter().enumerate() {
        let left = context.saturating_sub(*length);
        if !fits(*length, model) {
            faults.push(too_long(index, &length.to_string(), request, model));
        }
        room.push(request.max_tokens.min(u32::try_from(left).unwrap_or(u32::MAX)));
    }
    if faults.is_empty() { Ok(room) } else { Err(ApiError::Invalid(faults)) }
}

/// Whether the context holds a prompt of `length` tokens. One that fills it has an answer of no tokens.
fn fits(length: usize, model: &ServedModel) -> bool {
    length <= model.card.context as usize
}

fn too_long(index: usize, length: &str, request: &CompletionRequest, model: &ServedModel) -> FieldFault {
    let listed = matches!(request.prompt_form, PromptForm::Texts | PromptForm::IdLists);
    let mut path = vec![Loc::Field("prompt".into())];
    path.extend(listed.then_some(Loc::Index(index)));
    let context = model.card.context;
    let message = format!("has {length} tokens; the model's context holds {context}");
    FieldFault::new(path, FaultKind::TooLong, message)
}

fn assignment(request: &CompletionRequest) -> Assignment {
    if request.best_of == 1 {
        Assignment::Direct
    } else if request.sampling.temperature.is_greedy() {
        Assignment::Shared
    } else if request.best_of == request.n {
        Assignment::Direct
    } else {
        Assignment::Ranked
    }
}

/// `loglikelihood` reports logprobs even where `logprobs` is absent.
fn reported_alternatives(request: &CompletionRequest) -> Option<u8> {
    let scored = request.loglikelihood == Loglikelihood::Prompt;
    request.logprobs.or_else(|| scored.then_some(0))
}

/// What the groups of one request have in common.
struct GroupShape<'a> {
    request: &'a CompletionRequest,
    model: &'a Arc<ServedModel>,
    assignment: Assignment,
    terms: Terms,
}

impl GroupShape<'_> {
    fn group(&self, index: usize, prompt: TokenisedPrompt, max_tokens: u32) -> GroupPlan {
        let prelude = self.prelude(&prompt);
        let reported = reported_alternatives(self.request);
        let mut sampling = self.request.sampling.clone();
        sampling.seed = self.terms.seed;
        let submit = Submit {
            fingerprint: self.model.card.fingerprint_with(self.terms.adapter),
            adapter: self.terms.adapter,
            prompt: PromptIds(prompt.ids),
            branches: self.branches(index, max_tokens),
            sampling,
            end: self.end_rules(max_tokens),
            // Ranked candidates need their logprobs even where the client sees none.
            score_tokens: reported.or_else(|| (self.assignment == Assignment::Ranked).then_some(0)),
            score_prompt: prelude.tokens.as_ref().filter(|tokens| tokens.len() > 1).map(|_| reported.unwrap_or(0)),
            share_key: self.terms.share_key,
            cache_salt: self.terms.cache_salt,
            deadline_ms: None,
        };
        GroupPlan { submit, prelude }
    }

    /// Candidates are numbered over the whole request, so that equal prompts of one list get different draws.
    fn branches(&self, index: usize, max_tokens: u32) -> Vec<BranchStart> {
        let best_of = u32::from(self.request.best_of);
        let computed = match (max_tokens, self.assignment) {
            (0, _) => 0,
            (_, Assignment::Shared) => 1,
            (_, Assignment::Direct | Assignment::Ranked) => best_of,
        };
        let first = index as u32 * best_of;
        (first..first + computed).map(|choice| BranchStart { choice, emitted: PromptIds::default() }).collect()
    }

    fn end_rules(&self, max_tokens: u32) -> EndRules {
        let mut stop_ids = self.request.stop_token_ids.clone();
        if self.request.eos == EosRule::Ends {
            stop_ids.extend_from_slice(self.model.tokenizer.eos());
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();
        EndRules { max_tokens, min_tokens: self.request.min_tokens.min(max_tokens), stop_ids }
    }

    fn prelude(&self, prompt: &TokenisedPrompt) -> Prelude {
        let echoed = self.request.echo == Echo::Prompt;
        let text = match (&prompt.text, echoed) {
            (_, false) => String::new(),
            (Some(text), true) => text.clone(),
            (None, true) => self.model.tokenizer.decode(&prompt.ids, SpecialText::Shown),
        };
        let scored = self.request.loglikelihood == Loglikelihood::Prompt || (echoed && self.request.logprobs.is_some());
        let tokens = scored.then(|| self.place(prompt, scalars(&text)));
        let first = if echoed { FirstToken::Unscored } else { FirstToken::Omitted };
        Prelude { text, tokens, first }
    }

    /// Where each prompt token begins in the echoed text of `length` scalars; 0 where nothing is echoed.
    fn place(&self, prompt: &TokenisedPrompt, length: u64) -> Vec<(TokenId, u64)> {
        let mut detokenizer = Detokenizer::new(Arc::clone(&self.model.tokenizer), SpecialText::Shown);
        let mut offset = 0;
        let mut place = |(index, id): (usize, &TokenId)| {
            let begins = offset;
            if index >= prompt.added {
                offset = (offset + scalars(&detokenizer.push(*id))).min(length);
            }
            (*id, begins)
        };
        prompt.ids.iter().enumerate().map(&mut place).collect()
    }
}

#[cfg(test)]
mod tests;
