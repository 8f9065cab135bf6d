use super::*;
use crate::testing::{EOS, branch_tokens, ids, score, tokenizer};
use crate::text::SpecialText;
use shoal_common::ids::BranchIndex;

fn candidate(stop: &[&str], min_tokens: u32) -> Candidate {
    let rules = CandidateRules {
        tokenizer: tokenizer(),
        stop: stop.iter().map(|stop| ClientText((*stop).to_owned())).collect(),
        min_tokens,
        text_before: 0,
    };
    Candidate::new(&rules, Detokenizer::continuing(tokenizer(), SpecialText::Hidden))
}

fn run(candidate: &mut Candidate, tokens: Vec<BranchToken>) -> Delta {
    let mut all = Delta::default();
    for token in tokens {
        all.append(candidate.push(token));
    }
    all
}

fn eos_at(position: u32) -> BranchToken {
    BranchToken {
        branch: BranchIndex(0),
        position,
        token: EOS,
        score: Some(score(EOS, -1.0)),
        end: Some(BranchEnd::StopToken),
    }
}

#[test]
fn text_and_tokens_end_together_before_a_stop_string() {
    let text = "one two three four";
    let mut candidate = candidate(&["three"], 0);
    let delta = run(&mut candidate, branch_tokens(0, text, -0.5, Some(BranchEnd::Length)));
    assert_eq!(delta.text, "one two ");
    assert_eq!(delta.finish, Some(FinishReason::Stop));
    assert!(delta.tokens.iter().all(|token| token.offset < 8), "a token that begins in the stop string was kept");
    let kept: Vec<_> = delta.tokens.iter().map(|token| token.token).collect();
    assert!(ids(text).starts_with(&kept));
}

#[test]
fn what_is_held_back_comes_out_when_no_stop_string_completes() {
    let mut candidate = candidate(&["four five"], 0);
    let tokens = branch_tokens(0, "three four", -0.5, Some(BranchEnd::Length));
    let count = tokens.len();
    let delta = run(&mut candidate, tokens);
    assert_eq!(delta.text, "three four");
    assert_eq!(delta.tokens.len(), count);
    assert_eq!(delta.finish, Some(FinishReason::Length));
}

#[test]
fn tokens_wait_for_their_text() {
    let mut candidate = candidate(&["four five"], 0);
    let mut tokens = branch_tokens(0, "x four", -0.5, None);
    let last = tokens.pop().unwrap();
    run(&mut candidate, tokens);
    let delta = candidate.push(last);
    assert_eq!((delta.text.as_str(), delta.tokens.len()), ("", 0), "half a stop string was let out");
    let delta = candidate.push(eos_at(9));
    assert!(delta.text.ends_with("four") && !delta.tokens.is_empty());
}

#[test]
fn eos_is_counted_but_is_neither_text_nor_a_token() {
    let mut candidate = candidate(&[], 0);
    let mut tokens = branch_tokens(0, "hello", -0.5, None);
    let count = tokens.len();
    tokens.push(eos_at(count as u32));
    let delta = run(&mut candidate, tokens);
    assert_eq!((delta.text.as_str(), delta.tokens.len()), ("hello", count));
    assert_eq!(candidate.generated() as usize, count + 1);
    assert_eq!(delta.finish, Some(FinishReason::Stop));
}

#[test]
fn no_stop_string_is_found_in_the_first_min_tokens() {
    let tokens = branch_tokens(0, "aaaa aaaa", -0.5, Some(BranchEnd::Length));
    let count = tokens.len() as u32;
    let mut patient = candidate(&["a"], count);
    assert_eq!(run(&mut patient, tokens.clone()).text, "aaaa aaaa");
    let mut eager = candidate(&["a"], 0);
    assert_eq!(run(&mut eager, tokens).text, "");
}

#[test]
fn a_finished_candidate_takes_nothing_more() {
    let mut candidate = candidate(&["b"], 0);
    run(&mut candidate, branch_tokens(0, "a b", -0.5, None));
    let counted = candidate.generated();
    assert!(candidate.push(eos_at(9)).is_empty());
    assert!(candidate.cancel().is_empty());
    assert_eq!(candidate.generated(), counted);
}

#[test]
fn an_answer_without_kept_tokens_ranks_last() {
    let mut empty = candidate(&[], 0);
    empty.push(eos_at(0));
    let mut poor = candidate(&[], 0);
    run(&mut poor, branch_tokens(0, "x", -50.0, Some(BranchEnd::Length)));
    let mut broken = candidate(&[], 0);
    run(&mut broken, branch_tokens(0, "x", f32::NAN, Some(BranchEnd::Length)));
    assert!(poor.mean_logprob() > empty.mean_logprob());
    assert!(poor.mean_logprob() > broken.mean_logprob());
}

#[test]
fn offsets_count_unicode_scalars_of_the_returned_text() {
    let text = "\u{e9}\u{1f600} z";
    let mut candidate = candidate(&[], 0);
    let delta = run(&mut candidate, branch_tokens(0, text, -0.5, Some(BranchEnd::Length)));
    assert_eq!(delta.text, text);
    let last = delta.tokens.last().unwrap();
    assert!(last.offset <= 3 && last.offset >= 2, "{:?}", delta.tokens.iter().map(|t| t.offset).collect::<Vec<_>>());
}

/// Text and tokens of `text` cut before each of its tokens, and of all of it with its end.
fn cut_everywhere(stop: &[&str], text: &str, end: BranchEnd) -> (Vec<Delta>, Delta) {
    let tokens = branch_tokens(0, text, -0.5, Some(end));
    let cut = |at: usize| {
        let mut candidate = candidate(stop, 0);
        let mut told = run(&mut candidate, tokens[..at].to_vec());
        told.append(candidate.cancel());
        told
    };
    ((0..tokens.len()).map(cut).collect(), run(&mut candidate(stop, 0), tokens.clone()))
}

#[test]
fn what_a_cut_candidate_told_is_the_beginning_of_its_whole_answer() {
    for (stop, text) in [(&["four five"][..], "one four five"), (&[], "\u{1f600}\u{1f600}"), (&["ab"], "xa\u{1f600}")] {
        let (cut, whole) = cut_everywhere(stop, text, BranchEnd::Length);
        for told in cut {
            assert!(whole.text.starts_with(&told.text), "{:?} of {:?}", told.text, whole.text);
            assert!(whole.tokens.starts_with(&told.tokens), "tokens of {:?}", told.text);
            assert!(matches!(told.finish, Some(FinishReason::Cancelled | FinishReason::Stop)), "{:?}", told.finish);
        }
    }
}
