use shoal_common::config::Limits;
use shoal_common::ids::TokenId;
use shoal_common::sampling::Temperature;
use shoal_common::wire::message::BranchEnd;

use super::*;
use crate::plan::{self, TokenisedPrompt};
use crate::request::{ClientText, CompletionRequest, Echo, Loglikelihood};
use crate::testing::{TERMS, branch_tokens, ids, model, request, score};

fn plan(request: &CompletionRequest, prompts: &[&str]) -> Plan {
    let prompts = prompts
        .iter()
        .map(|text| TokenisedPrompt { ids: ids(text), added: 0, text: Some((*text).to_owned()) })
        .collect();
    plan::plan(request, &model(), prompts, TERMS, &Limits::default()).unwrap()
}

/// Text and finish reason of every choice after `outputs`.
fn collect(outputs: Vec<Vec<ChoiceDelta>>) -> Vec<(String, Option<FinishReason>, usize)> {
    let mut choices: Vec<Delta> = Vec::new();
    for choice in outputs.into_iter().flatten() {
        choices.resize(choices.len().max(choice.index as usize + 1), Delta::default());
        choices[choice.index as usize].append(choice.delta);
    }
    choices.into_iter().map(|delta| (delta.text, delta.finish, delta.tokens.len())).collect()
}

fn feed(merge: &mut Merge, group: usize, branch: u16, text: &str, logprob: f32) -> Vec<ChoiceDelta> {
    let tokens = branch_tokens(branch, text, logprob, Some(BranchEnd::Length));
    tokens.into_iter().flat_map(|token| merge.accept(group, GroupEvent::Tokens(vec![token])).deltas).collect()
}

#[test]
fn choices_are_numbered_over_prompts_and_candidates() {
    let mut request = request("");
    (request.n, request.best_of) = (2, 2);
    let mut merge = Merge::new(&plan(&request, &["a", "b"]));
    let mut outputs = vec![merge.begin()];
    for (group, branch, text) in [(1, 1, "b1"), (0, 0, "a0"), (1, 0, "b0"), (0, 1, "a1")] {
        outputs.push(feed(&mut merge, group, branch, text, -1.0));
    }
    let texts: Vec<String> = collect(outputs).into_iter().map(|choice| choice.0).collect();
    assert_eq!(texts, ["a0", "a1", "b0", "b1"]);
    assert!(merge.is_done());
}

#[test]
fn the_best_mean_logprob_wins_and_ties_go_to_the_lower_index() {
    let mut request = request("");
    (request.n, request.best_of) = (2, 4);
    let mut merge = Merge::new(&plan(&request, &["p"]));
    let mut outputs = Vec::new();
    for (branch, text, logprob) in [(3, "worst", -3.0), (2, "tie two", -1.0), (1, "tie one", -1.0), (0, "bad", -2.0)] {
        assert!(outputs.is_empty(), "a candidate was told before all had ended");
        outputs.extend(feed(&mut merge, 0, branch, text, logprob));
    }
    let choices = collect(vec![outputs]);
    assert_eq!(choices.iter().map(|choice| choice.0.as_str()).collect::<Vec<_>>(), ["tie one", "tie two"]);
    let all: usize = ["worst", "tie two", "tie one", "bad"].iter().map(|text| ids(text).len()).sum();
    assert_eq!(merge.usage().completion_tokens as usize, all, "losers count too");
}

#[test]
fn greedy_candidates_are_computed_once_and_counted_all() {
    let mut request = request("");
    (request.n, request.best_of) = (2, 3);
    request.sampling.temperature = Temperature::new(0.0).unwrap();
    let plan = plan(&request, &["p"]);
    assert_eq!(plan.groups[0].submit.branches.len(), 1);
    let mut merge = Merge::new(&plan);
    let choices = collect(vec![feed(&mut merge, 0, 0, "same", -1.0)]);
    assert_eq!(choices.len(), 2);
    assert_eq!(choices[0], choices[1]);
    assert_eq!(merge.usage().completion_tokens as usize, 3 * ids("same").len());
}

#[test]
fn an_echoed_prompt_stands_before_the_first_token() {
    let mut request = request("");
    request.echo = Echo::Prompt;
    let mut merge = Merge::new(&plan(&request, &["stop here"]));
    let begin = merge.begin();
    assert_eq!(begin.len(), 1);
    let choices = collect(vec![begin, feed(&mut merge, 0, 0, " and on", -1.0)]);
    assert_eq!(choices[0].0, "stop here and on");
}

#[test]
fn a_stop_string_never_matches_in_the_echoed_prompt() {
    let mut request = request("");
    request.echo = Echo::Prompt;
    request.stop = vec![ClientText("stop".to_owned())];
    let mut merge = Merge::new(&plan(&request, &["stop"]));
    let begin = merge.begin();
    let choices = collect(vec![begin, feed(&mut merge, 0, 0, "x stop y", -1.0)]);
    assert_eq!(choices[0].0, "stopx ");
    assert_eq!(choices[0].1, Some(FinishReason::Stop));
}

#[test]
fn prompt_scores_come_whole_before_generated_tokens() {
    for (echo, reported) in [(Echo::Prompt, 4), (Echo::Off, 3)] {
        let mut request = request("");
        (request.echo, request.logprobs, request.loglikelihood) = (echo, Some(0), Loglikelihood::Prompt);
        let prompt = TokenisedPrompt { ids: (20..24).map(TokenId).collect(), added: 0, text: None };
        let plan = plan::plan(&request, &model(), vec![prompt], TERMS, &Limits::default()).unwrap();
        let mut merge = Merge::new(&plan);
        assert!(merge.begin().is_empty());
        let scores =
            |range: std::ops::Range<u32>| GroupEvent::PromptScores(range.map(|id| score(TokenId(id), -1.0)).collect());
        assert!(merge.accept(0, scores(21..23)).deltas.is_empty());
        let opened = merge.accept(0, scores(23..24)).deltas;
        assert_eq!(opened[0].delta.tokens.len(), reported);
        assert_eq!(opened[0].delta.tokens[0].score.is_none(), echo == Echo::Prompt);
    }
}

#[test]
fn a_prompt_without_a_completion_ends_by_length() {
    let mut request = request("");
    (request.echo, request.max_tokens) = (Echo::Prompt, 0);
    let mut merge = Merge::new(&plan(&request, &["only this"]));
    let choices = collect(vec![merge.begin()]);
    assert_eq!((choices[0].0.as_str(), choices[0].1), ("only this", Some(FinishReason::Length)));
    assert!(merge.is_done());
    assert_eq!(merge.usage().completion_tokens, 0);
}

#[test]
fn a_branch_that_a_stop_string_ended_is_stopped_on_its_worker_once() {
    let mut request = request("");
    request.stop = vec![ClientText("b".to_owned())];
    let mut merge = Merge::new(&plan(&request, &["p"]));
    let tokens = branch_tokens(0, "a b c d", -1.0, None);
    let stops: Vec<_> =
        tokens.into_iter().flat_map(|token| merge.accept(0, GroupEvent::Tokens(vec![token])).stops).collect();
    assert_eq!(stops, [StopOrder { group: 0, branch: BranchIndex(0) }]);
}

#[test]
fn cancelling_ends_every_open_choice_and_no_other() {
    let mut request = request("");
    (request.n, request.best_of) = (2, 2);
    let mut merge = Merge::new(&plan(&request, &["p"]));
    let first = feed(&mut merge, 0, 0, "done", -1.0);
    let cut = merge.cancel();
    assert_eq!(cut.len(), 1);
    let choices = collect(vec![first, cut]);
    assert_eq!(choices[0].1, Some(FinishReason::Length));
    assert_eq!(choices[1].1, Some(FinishReason::Cancelled));
    assert!(merge.is_done() && merge.cancel().is_empty());
}

#[test]
fn every_choice_of_a_ranked_group_that_is_cut_says_so_however_whole_the_best_so_far_is() {
    let mut request = request("");
    (request.n, request.best_of) = (2, 3);
    let mut merge = Merge::new(&plan(&request, &["p", "q"]));
    let whole: Vec<_> = (0..3).flat_map(|branch| feed(&mut merge, 1, branch, "whole", -1.0)).collect();
    feed(&mut merge, 0, 1, "good", -0.1);
    let choices = collect(vec![whole, merge.cancel()]);
    let cut = Some(FinishReason::Cancelled);
    assert_eq!((choices[0].0.as_str(), choices[0].1, choices[1].1), ("good", cut, cut));
    assert!(choices[2..].iter().all(|choice| choice.1 == Some(FinishReason::Length)), "a group that had ended");
    assert!(merge.is_done());
}
