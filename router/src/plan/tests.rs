use shoal_common::sampling::{Bias, Temperature};

use super::*;
use crate::testing::{EOS, TERMS, VOCAB, id_prompt, ids, model, request, tokenizer};
use crate::text::prompts;

fn planned(request: &CompletionRequest, limits: &Limits) -> Result<Plan, ApiError> {
    let prompts = prompts::tokenise(&tokenizer(), request).unwrap();
    plan(request, &model(), prompts, TERMS, limits)
}

fn locs(error: ApiError) -> Vec<String> {
    let ApiError::Invalid(faults) = error else { panic!("not a 422: {error}") };
    faults.iter().map(|fault| fault.param().unwrap_or_default()).collect()
}

#[test]
fn ids_outside_the_vocabulary_are_named_to_the_element() {
    let mut request = request("x");
    let outside = TokenId(VOCAB);
    request.prompts = vec![id_prompt(2), PromptInput::Tokens(PromptIds(vec![TokenId(1), outside]))];
    request.prompt_form = PromptForm::IdLists;
    request.sampling.logit_bias = vec![(TokenId(3), Bias::default()), (outside, Bias::default())];
    request.stop_token_ids = vec![outside];
    let found = locs(check(&request, &model(), false).unwrap_err());
    assert_eq!(found, ["prompt[1][1]", "logit_bias.512", "stop_token_ids[0]"]);
}

#[test]
fn a_suffix_needs_a_model_that_can_fill_in() {
    let mut request = request("x");
    request.suffix = Some(ClientText("y".to_owned()));
    assert_eq!(locs(check(&request, &model(), false).unwrap_err()), ["suffix"]);
    assert!(check(&request, &model(), true).is_ok());
}

#[test]
fn an_answer_that_does_not_fit_the_context_is_cut_to_what_is_left() {
    let mut request = request("x");
    request.prompts = vec![id_prompt(60)];
    let plan = planned(&request, &Limits::default()).unwrap();
    assert_eq!(plan.clamped, Some(4));
    assert_eq!(plan.groups[0].submit.end.max_tokens, 4);
}

#[test]
fn a_prompt_that_fills_the_context_is_answered_with_nothing() {
    let mut request = request("x");
    request.prompts = vec![id_prompt(64)];
    let plan = planned(&request, &Limits::default()).unwrap();
    assert_eq!(plan.clamped, Some(0));
    assert!(!plan.groups[0].needs_worker());
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_by_name() {
    let mut request = request("x");
    (request.prompts, request.prompt_form) = (vec![id_prompt(3), id_prompt(65)], PromptForm::IdLists);
    assert_eq!(locs(planned(&request, &Limits::default()).unwrap_err()), ["prompt[1]"]);
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_it_is_tokenised() {
    let mut long = request(&"a".repeat(1 << 20));
    let Err(ApiError::Invalid(faults)) = check(&long, &model(), false) else { panic!("it was let through") };
    let refused: Vec<_> = faults.iter().map(|fault| (fault.param().unwrap(), fault.kind)).collect();
    assert_eq!(refused, [("prompt".to_owned(), FaultKind::TooLong)]);
    long.prompts.insert(0, PromptInput::DocumentStart);
    long.prompt_form = PromptForm::Texts;
    assert_eq!(locs(check(&long, &model(), false).unwrap_err()), ["prompt[1]"]);
    let mut split = request("a");
    split.suffix = Some(ClientText("a".repeat(1 << 20)));
    assert_eq!(locs(check(&split, &model(), true).unwrap_err()), ["prompt"]);
    assert!(check(&request("a"), &model(), false).is_ok());
}

#[test]
fn work_is_counted_over_prompts_and_candidates() {
    let mut request = request("x");
    request.prompts = vec![id_prompt(4), id_prompt(6)];
    (request.n, request.best_of, request.max_tokens) = (1, 3, 10);
    let work = 3 * (4 + 10 + 6 + 10);
    assert!(planned(&request, &Limits { work, ..Limits::default() }).is_ok());
    let refused = planned(&request, &Limits { work: work - 1, ..Limits::default() });
    assert_eq!(locs(refused.unwrap_err()), ["max_tokens"]);
}

#[test]
fn equal_prompts_of_one_request_get_different_draws() {
    let mut request = request("x");
    request.prompts = vec![id_prompt(4), id_prompt(4)];
    (request.n, request.best_of) = (2, 2);
    let plan = planned(&request, &Limits::default()).unwrap();
    let choices: Vec<u32> =
        plan.groups.iter().flat_map(|group| group.submit.branches.iter().map(|branch| branch.choice)).collect();
    assert_eq!(choices, [0, 1, 2, 3]);
}

#[test]
fn ignoring_eos_leaves_only_the_requests_own_stop_tokens() {
    let mut request = request("x");
    request.stop_token_ids = vec![TokenId(9), TokenId(4)];
    let ends = planned(&request, &Limits::default()).unwrap();
    assert_eq!(ends.groups[0].submit.end.stop_ids, [EOS, TokenId(4), TokenId(9)]);
    request.eos = EosRule::Ignored;
    let ignores = planned(&request, &Limits::default()).unwrap();
    assert_eq!(ignores.groups[0].submit.end.stop_ids, [TokenId(4), TokenId(9)]);
}

#[test]
fn greedy_candidates_share_one_branch_and_sampled_ones_are_ranked() {
    let mut request = request("x");
    (request.n, request.best_of) = (1, 4);
    let ranked = planned(&request, &Limits::default()).unwrap();
    assert_eq!(ranked.assignment, Assignment::Ranked);
    assert_eq!(ranked.groups[0].submit.score_tokens, Some(0), "they are ranked by what the worker scores");
    request.sampling.temperature = Temperature::new(0.0).unwrap();
    assert_eq!(planned(&request, &Limits::default()).unwrap().assignment, Assignment::Shared);
}

#[test]
fn echoed_tokens_lie_where_they_are_in_the_prompt() {
    let text = "h\u{e9}llo w\u{f6}rld";
    let mut request = request(text);
    (request.echo, request.logprobs) = (Echo::Prompt, Some(1));
    let plan = planned(&request, &Limits::default()).unwrap();
    let prelude = &plan.groups[0].prelude;
    assert_eq!(prelude.text, text);
    let placed = prelude.tokens.as_ref().unwrap();
    assert_eq!(placed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids(text));
    assert_eq!(placed[0].1, 0);
    assert!(placed.windows(2).all(|pair| pair[0].1 <= pair[1].1) && placed.last().unwrap().1 < scalars(text));
}

#[test]
fn an_empty_prompt_is_the_start_of_a_document() {
    let mut request = request("x");
    request.prompts = vec![PromptInput::DocumentStart];
    let plan = planned(&request, &Limits::default()).unwrap();
    assert_eq!(plan.groups[0].submit.prompt.0, [TokenId(1)]);
}

#[test]
fn an_adapter_goes_to_the_worker_under_a_fingerprint_of_its_own() {
    use shoal_common::ids::{Digest, Generation};

    let generation = Generation(Digest::of(b"adapter"));
    let plan_with = |adapter| {
        let prompts = prompts::tokenise(&tokenizer(), &request("x")).unwrap();
        let terms = Terms { adapter, ..TERMS };
        plan(&request("x"), &model(), prompts, terms, &Limits::default()).unwrap().groups.remove(0).submit
    };
    let (base, adapted) = (plan_with(None), plan_with(Some(generation)));
    assert_eq!((base.adapter, base.fingerprint), (None, model().card.fingerprint));
    assert_eq!(
        (adapted.adapter, adapted.fingerprint),
        (Some(generation), model().card.fingerprint_with(Some(generation)))
    );
    assert_ne!(base.fingerprint, adapted.fingerprint);
}
