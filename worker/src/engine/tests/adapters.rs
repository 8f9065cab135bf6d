//! A group's adapter is its own: with whatever it shares steps, blocks and prompts.

use std::sync::Arc;
use std::time::Duration;

use shoal_common::config::Script;
use shoal_common::fingerprint::Fingerprint;
use shoal_common::ids::{Digest, Generation, TokenId};
use shoal_common::wire::hello::ModelCard;
use shoal_common::wire::message::{GroupFailure, GroupFrame, PromptIds, Submit};
use tokio::sync::Notify;

use super::bench::{Bench, Heard, ROOMY, alone, card, submission};
use crate::adapters::{Adapter, Lease};
use crate::scheduler::Bounds;
use crate::scripted::{self, Scripted};

fn generation(number: u32) -> Generation {
    Generation(Digest::of(&number.to_le_bytes()))
}

/// The submission with an adapter, of the model of `card`.
fn with(card: &ModelCard, adapter: Option<Generation>, mut submit: Submit) -> Submit {
    submit.adapter = adapter;
    submit.fingerprint = card.fingerprint_with(adapter);
    submit
}

/// Long enough for two full blocks.
fn prompt() -> Vec<u32> {
    (0..40).map(|at| at * 5 % 37).collect()
}

const SCRIPT: Script = Script {
    step: Duration::ZERO,
    salt: 3,
    context: super::bench::CONTEXT,
    eos_every: None,
    faults: shoal_common::config::Faults::Off,
    hang: Duration::ZERO,
};

fn scripted_card() -> ModelCard {
    let (weights, tokenizer) = (scripted::digest(&SCRIPT), Digest::of(b"none"));
    ModelCard {
        weights,
        fingerprint: Fingerprint::new(weights, None, tokenizer, "hash"),
        vocab_size: scripted::VOCAB as u32,
        ..card()
    }
}

fn scripted_bench(bounds: Bounds) -> Bench {
    Bench::over(&scripted_card(), bounds, Box::new(Scripted::new(&SCRIPT)))
}

fn heard_alone(submit: Submit) -> Heard {
    let mut bench = scripted_bench(ROOMY);
    let key = bench.submit(submit);
    bench.run();
    bench.streams.remove(&key).unwrap().heard
}

#[test]
fn groups_of_different_adapters_in_the_same_steps_answer_as_alone() {
    let card = scripted_card();
    let ask = |at: u32| {
        let adapter = (!at.is_multiple_of(4)).then(|| generation(at % 4));
        with(&card, adapter, submission(&prompt()[..20 + at as usize], 12, 1 + at % 3))
    };
    // Room for all, and so little that they preempt each other.
    for bounds in [ROOMY, Bounds { slots: 4, blocks: 10, step_tokens: 24, ..ROOMY }] {
        let mut bench = scripted_bench(bounds);
        let keys: Vec<_> = (0..12).map(|at| bench.submit(ask(at))).collect();
        bench.run();
        bench.assert_idle();
        for (at, key) in (0..).zip(keys) {
            let (submit, heard) = (ask(at), bench.heard(key));
            let expected = heard_alone(submit.clone());
            for branch in 0..submit.branches.len() as u16 {
                assert_eq!(heard.tokens(branch).len(), 12);
                assert_eq!(heard.tokens(branch), expected.tokens(branch), "group {at}, branch {branch}");
            }
        }
    }
}

#[test]
fn a_greedy_answer_is_the_oracle_s_for_its_adapter() {
    for adapter in [None, Some(generation(1)), Some(generation(2))] {
        let mut submit = with(&scripted_card(), adapter, submission(&prompt(), 30, 1));
        submit.sampling = shoal_common::sampling::SamplingParams {
            temperature: shoal_common::sampling::Temperature::new(0.0).unwrap(),
            ..Default::default()
        };
        let ids: Vec<TokenId> = prompt().into_iter().map(TokenId).collect();
        let tokens: Vec<_> = heard_alone(submit).tokens(0).iter().map(|score| score.token).collect();
        assert_eq!(tokens, scripted::greedy(&SCRIPT, adapter, &ids, 30));
    }
}

#[test]
fn a_prompt_that_is_cached_for_the_base_model_is_not_found_with_an_adapter() {
    let mut bench = Bench::new(ROOMY);
    let mut answers = Vec::new();
    for (adapter, cached) in [(None, 0), (Some(1), 0), (Some(2), 0), (None, 32), (Some(1), 32)] {
        let before = bench.status().cached_tokens;
        let key = bench.submit(with(&card(), adapter.map(generation), submission(&prompt(), 10, 1)));
        bench.run();
        assert_eq!(bench.status().cached_tokens - before, cached, "{adapter:?}");
        answers.push(bench.heard(key).tokens(0));
    }
    assert_eq!((&answers[0], &answers[1]), (&answers[3], &answers[4]));
    assert!(answers[0] != answers[1] && answers[0] != answers[2] && answers[1] != answers[2]);
}

#[test]
fn a_group_without_its_adapter_is_never_answered_by_the_base_model() {
    let named = || with(&card(), Some(generation(1)), submission(&prompt(), 10, 1));
    let lease = |number| Some(Lease::of(Adapter::empty(generation(number))));
    let cases = [
        (named(), None, GroupFailure::AdapterUnavailable),
        (named(), lease(2), GroupFailure::AdapterUnavailable),
        (submission(&prompt(), 10, 1), lease(1), GroupFailure::AdapterUnavailable),
        // The adapter of one fingerprint under the other.
        (Submit { fingerprint: card().fingerprint, ..named() }, lease(1), GroupFailure::WrongFingerprint),
        (Submit { adapter: None, ..named() }, None, GroupFailure::WrongFingerprint),
        (Submit { prompt: PromptIds::default(), ..named() }, lease(1), GroupFailure::Invalid),
    ];
    for (submit, adapter, failure) in cases {
        let mut bench = Bench::new(ROOMY);
        let key = bench.submit_with(submit, adapter);
        bench.run();
        assert_eq!(bench.heard(key).frames, [GroupFrame::Failed(failure)]);
    }
    assert_eq!(alone(named()).tokens(0).len(), 10);
}

#[test]
fn an_adapter_is_given_back_when_its_group_ends_however_it_ends() {
    for how in ["ends", "is cancelled", "is refused", "fails"] {
        let mut bench = Bench::new(Bounds { groups: if how == "is refused" { 0 } else { 64 }, ..ROOMY });
        let mut text = prompt();
        if how == "fails" {
            text[39] = super::backend::FAILS.0;
        }
        let adapter = Arc::new(Adapter::empty(generation(1)));
        let lease = Lease::new(adapter.clone(), Arc::new(Notify::new()));
        let key = bench.submit_with(with(&card(), Some(generation(1)), submission(&text, 10, 2)), Some(lease));
        bench.engine.read_commands(crate::engine::turn::Turn::Busy);
        if how != "is refused" {
            assert_eq!(Arc::strong_count(&adapter), 2, "it is the group's while the group is here");
        }
        if how == "is cancelled" {
            bench.streams[&key].link.cancel();
        }
        bench.run();
        assert_eq!(Arc::strong_count(&adapter), 1, "{how}");
    }
}
