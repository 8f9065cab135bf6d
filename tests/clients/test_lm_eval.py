"""lm-eval's `local-completions` model, unmodified, scoring on a small random llama; its scores against the logits that a
reference implementation computed for the same weights."""

import json

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from safetensors.numpy import load_file

from servers import GOLDEN

TINY = GOLDEN / "tiny"
CASES = [json.loads(line) for line in (TINY / "goldens.jsonl").read_text().splitlines()]
CASES = [case for case in CASES if case["model"] == "base" and len(case["prompt_ids"]) > 3]
# Largest difference of a logit between f32 implementations of this model, as measured by its goldens' makers.
PER_TOKEN = 2e-3


@pytest.fixture(scope="module")
def logits():
    return load_file(TINY / "goldens_logits.safetensors")


def judge(server, **more):
    return LocalCompletionsAPI(
        model=server.model,
        base_url=f"{server.url}/v1/completions",
        tokenizer=str(TINY / "base"),
        tokenizer_backend="huggingface",
        max_retries=1,
        **more,
    )


def scored(rows, ids, context):
    """Sum of the continuation's logprobs, and whether each of its tokens is the most probable one."""
    rows = rows.astype(np.float64)
    logprobs = rows - np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) - rows.max(axis=1, keepdims=True)
    places = range(context, len(ids))
    return sum(logprobs[k - 1][ids[k]] for k in places), all(logprobs[k - 1].argmax() == ids[k] for k in places)


def splits(case, logits):
    """Continuations of one token and of half the prompt; and the most probable one, which must be seen as greedy."""
    ids, rows = case["prompt_ids"], logits[case["logits_key"]]
    for context in {len(ids) // 2, len(ids) - 1}:
        yield (("", ""), ids[:context], ids[context:]), scored(rows, ids, context)
    best = [*ids[:-1], int(rows[len(ids) - 2].argmax())]
    yield (("", ""), best[:-1], best[-1:]), scored(rows, best, len(ids) - 1)


@pytest.mark.parametrize("batch", [{}, {"batch_size": 4}, {"num_concurrent": 4, "batch_size": 2}], ids=["alone", "lists", "at once"])
def test_loglikelihoods_are_the_model_s(tiny, logits, batch):
    requests, expected = zip(*[pair for case in CASES for pair in splits(case, logits)], strict=True)
    found = judge(tiny, **batch)._loglikelihood_tokens(list(requests))
    assert {greedy for _, greedy in expected} == {True, False}
    for request, (score, greedy), (right, right_greedy) in zip(requests, found, expected, strict=True):
        assert score == pytest.approx(right, abs=PER_TOKEN * len(request[2])), request
        assert greedy == right_greedy, request


def test_texts_are_scored_as_the_model_s_tokenizer_cuts_them(tiny, logits):
    model = judge(tiny)
    (case,) = [case for case in CASES if case["prompt_id"] == "text-2"]
    context, continuation = case["prompt"].rsplit(" ", 1)
    (found,) = model.loglikelihood([Instance("loglikelihood", {}, (context, f" {continuation}"), 0)])
    cut = len(model.tok_encode(context))
    assert model.tok_encode(case["prompt"]) == case["prompt_ids"]
    assert found[0] == pytest.approx(scored(logits[case["logits_key"]], case["prompt_ids"], cut)[0], abs=PER_TOKEN * 10)


def test_answers_are_generated_until_a_stop(tiny):
    case = max((case for case in CASES if case["prompt"]), key=lambda case: case["min_margin"])
    assert case["min_margin"] > PER_TOKEN
    model = judge(tiny)
    whole = model.tokenizer.decode(case["greedy_ids"][: case["eos_index"]], skip_special_tokens=True)
    stop = whole[10:13]
    requests = [Instance("generate_until", {}, (case["prompt"], {"until": [stop], "max_gen_toks": 32}), 0)]
    assert model.generate_until(requests) == [whole[: whole.index(stop)]]
