"""SmolLM2-135M-Instruct over HTTP against goldens of a reference implementation: that the whole way, text to text, is
right; the arithmetic has tests of its own in the worker. `exact` computes as the goldens do, `real` as users are served."""

import concurrent.futures
import json

import numpy as np
import pytest

from contract import refused, same, streamed, whole
from servers import GOLDEN

# Below this margin between the best and the second token another order of f32 additions may choose the other.
MARGIN = 1e-3
LOGPROB = 2e-3


def goldens(name):
    return [json.loads(line) for line in (GOLDEN / f"public/{name}.jsonl").read_text().splitlines()]


GREEDY = {case["id"]: case for case in goldens("greedy")}


def at_once(ask, cases):
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(ask, cases))


def clear_steps(case):
    """Steps up to the first that is too close to call."""
    return next((step for step, margin in enumerate(case["margins"]) if margin < MARGIN), len(case["margins"]))


def test_greedy_answers_are_the_reference_s(exact):
    cases = [GREEDY[name] for name in ("capital", "count", "emoji", "chinese", "spaces", "math", "ids-odd", "chat-short")]

    def ask(case):
        return streamed(exact, prompt=case["prompt"] or case["prompt_ids"], max_tokens=48, temperature=0, seed=1, logprobs=0)

    for case, answer in zip(cases, at_once(ask, cases), strict=True):
        assert clear_steps(case) == 48, "choose cases that can be told to the end"
        assert answer.choices[0].finish == case["finish_reason"], case["id"]
        if case["kind"] == "ids":
            continue  # its text is not told without special tokens; the logprobs below are
        assert answer.text == (case["text_until_eos"] if case["eos_index"] is not None else case["text"]), case["id"]
        end = case["eos_index"] or 48
        assert answer.choices[0].logprobs["token_logprobs"] == pytest.approx(case["logprobs"][:end], abs=LOGPROB)


def test_stop_strings_cut_where_the_reference_cuts(real):
    kinds = {}
    for case in goldens("stops"):
        if case["robust"] and case["prompt"]:
            kinds.setdefault(case["kind"], case)
    assert len(kinds) >= 7

    def ask(case):
        return streamed(real, prompt=case["prompt"], stop=case["stop"], max_tokens=case["max_tokens"], temperature=0)

    for case, answer in zip(kinds.values(), at_once(ask, list(kinds.values())), strict=True):
        assert (answer.text, answer.choices[0].finish) == (case["expected_text"], case["finish_reason"]), case["kind"]
        assert case["prompt"]


def test_prompt_loglikelihoods_are_the_reference_s(exact):
    cases = [case for case in goldens("loglikelihood") if len(case["prompt_ids"]) < 100]

    def ask(case):
        return whole(exact, prompt=case["prompt"], loglikelihood=True, max_tokens=0, logprobs=5)

    for case, answer in zip(cases, at_once(ask, cases), strict=True):
        logprobs = answer.choices[0].logprobs
        assert logprobs["token_logprobs"] == pytest.approx(case["token_logprobs"][1:], abs=LOGPROB), case["prompt"]
        for content, top in zip(logprobs["content"], case["top5"][1:], strict=True):
            found = [entry["logprob"] for entry in content["top_logprobs"]]
            assert found == pytest.approx([logprob for _, logprob in top], abs=LOGPROB)


def test_the_engine_that_serves_scores_within_what_int8_activations_cost(real):
    """The tolerances are those that the makers of the goldens measured for weights of Q4_1 and activations of 8 bits."""
    cases = [case for case in goldens("loglikelihood") if len(case["prompt_ids"]) < 100]

    def ask(case):
        return whole(real, prompt=case["prompt"], loglikelihood=True, max_tokens=0, logprobs=0)

    off = [
        abs(ours - golden)
        for case, answer in zip(cases, at_once(ask, cases), strict=True)
        for ours, golden in zip(answer.choices[0].logprobs["token_logprobs"], case["token_logprobs"][1:], strict=True)
    ]
    assert np.mean(off) <= 0.15 and max(off) <= 1.0


def test_echo_returns_any_text_as_it_was(real):
    text = "Zażółć 日本語 👩‍👩‍👧‍👦 \t  1234\n\n x"
    answer = streamed(real, prompt=text, echo=True, logprobs=0, max_tokens=3, temperature=0)
    assert same(answer, whole(real, prompt=text, echo=True, logprobs=0, max_tokens=3, temperature=0))
    assert answer.text.startswith(text)
    offsets = answer.choices[0].logprobs["text_offset"]
    assert offsets == sorted(offsets) and offsets[0] == 0


def test_a_model_without_fill_in_the_middle_says_so(real):
    assert refused(real, 422, prompt="a", suffix="b")["detail"][0]["loc"] == ["body", "suffix"]


def test_sampling_follows_the_model_s_probabilities(exact):
    """Of 64 first tokens most are the golden's ten most probable ones, and not all the same."""
    case = next(case for case in goldens("loglikelihood") if np.exp(case["next_top5"][0][1]) < 0.6)
    mass = sum(np.exp(logprob) for _, logprob in case["next_top5"])
    choices = [
        choice
        for seed in range(4)
        for choice in whole(exact, prompt=case["prompt_ids"], n=16, max_tokens=1, seed=seed, logprobs=0).choices.values()
    ]
    best = [logprob for _, logprob in case["next_top5"]]
    hits = sum(
        any(abs(choice.logprobs["token_logprobs"][0] - logprob) < LOGPROB for logprob in best) for choice in choices if choice.logprobs["token_logprobs"]
    )
    # Five standard deviations around the expectation: seeds are fixed, so this is a check of the seeds' draws, not a gamble.
    spread = 5 * (64 * mass * (1 - mass)) ** 0.5
    assert abs(hits - 64 * mass) < spread
    assert len({choice.text for choice in choices}) > 1
