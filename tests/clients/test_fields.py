"""Every field of the completion API on the scripted engine, whose answers `script` computes a second time."""

import json
import stat

import numpy as np
import pytest

import script
from contract import refused, same, streamed, whole
from script import BOS, EOS, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, greedy, ids, text

PROMPT = script.prompt_that_goes_on(64)
GREEDY = {"temperature": 0}


def both(server, **body):
    """Asks twice, streamed and not; the two must agree; returns the answer."""
    answer = whole(server, **body)
    assert same(streamed(server, **body), answer), "streamed, the answer differs"
    return answer


def answer_of(server, prompt_ids, count, **body):
    """What greedy decoding of `prompt_ids` must give, as the oracle says."""
    return text(greedy(prompt_ids, count, **body))


def test_greedy_decoding_takes_the_most_probable_token(scripted):
    answer = both(scripted, prompt=PROMPT, max_tokens=40, **GREEDY)
    assert answer.text == answer_of(scripted, ids(PROMPT), 40)
    assert answer.choices[0].finish == "length"
    assert answer.usage == {"prompt_tokens": len(PROMPT), "completion_tokens": 40, "total_tokens": len(PROMPT) + 40}


def test_max_tokens_is_512_when_absent(scripted):
    answer = whole(scripted, prompt="long", ignore_eos=True, **GREEDY)
    assert answer.usage["completion_tokens"] == 512


def test_the_end_of_sequence_ends_the_answer_and_is_no_text(scripted):
    prompt, tokens = script.prompt_that_ends(within=40)
    answer = both(scripted, prompt=prompt, max_tokens=60, **GREEDY)
    assert (answer.text, answer.choices[0].finish) == (text(tokens[:-1]), "stop")
    assert answer.usage["completion_tokens"] == len(tokens)


def test_ignore_eos_goes_on_to_max_tokens(scripted):
    prompt, tokens = script.prompt_that_ends(within=40)
    answer = both(scripted, prompt=prompt, max_tokens=60, ignore_eos=True, **GREEDY)
    expected = greedy(ids(prompt), 60, past_eos=True)
    assert expected[: len(tokens)] == tokens
    assert (answer.text, answer.choices[0].finish) == (text(expected), "length")
    assert answer.usage["completion_tokens"] == 60


def test_min_tokens_holds_the_end_back(scripted):
    prompt, tokens = script.prompt_that_ends(within=40)

    def ban(row, _, out):
        if len(out) < 60:
            row[EOS] = -np.inf
        return row

    answer = both(scripted, prompt=prompt, max_tokens=60, min_tokens=60, **GREEDY)
    assert answer.text == answer_of(scripted, ids(prompt), 60, adjust=ban)
    assert answer.usage["completion_tokens"] == 60 > len(tokens)


def test_stop_token_ids_end_the_answer(scripted):
    tokens = greedy(ids(PROMPT), 40)
    ending = tokens[20]
    answer = both(scripted, prompt=PROMPT, max_tokens=40, stop_token_ids=[ending], **GREEDY)
    assert (answer.text, answer.choices[0].finish) == (text(tokens[: tokens.index(ending)]), "stop")


@pytest.mark.parametrize("form", ["text", "texts", "ids", "id lists"])
def test_a_prompt_may_be_text_or_ids_alone_or_in_lists(scripted, form):
    prompts = {"text": PROMPT, "texts": [PROMPT, "b"], "ids": ids(PROMPT), "id lists": [ids(PROMPT), ids("b")]}
    answer = both(scripted, prompt=prompts[form], max_tokens=8, **GREEDY)
    expected = [answer_of(scripted, ids(PROMPT), 8), answer_of(scripted, ids("b"), 8)]
    assert answer.texts() == expected[: len(answer.choices)]
    assert len(answer.choices) == (2 if form in {"texts", "id lists"} else 1)


def test_no_prompt_and_an_empty_prompt_are_the_start_of_a_document(scripted):
    expected = answer_of(scripted, [BOS], 16)
    assert both(scripted, max_tokens=16, **GREEDY).text == expected
    assert both(scripted, prompt="", max_tokens=16, **GREEDY).text == expected
    assert whole(scripted, prompt=["", ""], max_tokens=16, **GREEDY).texts() == [expected] * 2


def test_a_special_token_in_a_prompt_is_that_token(scripted):
    answer = whole(scripted, prompt="<|bos|>x", max_tokens=8, **GREEDY)
    assert answer.text == answer_of(scripted, [BOS, *ids("x")], 8)
    assert answer.usage["prompt_tokens"] == 2


def test_n_choices_of_each_prompt_have_their_places(scripted):
    answer = both(scripted, prompt=["one", "two", "three"], n=4, max_tokens=12, seed=5)
    assert sorted(answer.choices) == list(range(12))
    assert len(set(answer.texts())) == 12, "choices share their draws"


def test_best_of_returns_the_candidates_of_the_highest_mean_logprob(scripted):
    body = {"prompt": "candidates", "max_tokens": 24, "seed": 11, "logprobs": 0}
    candidates = whole(scripted, n=8, best_of=8, **body)
    mean = {k: np.mean(choice.logprobs["token_logprobs"]) for k, choice in candidates.choices.items()}
    ranked = sorted(mean, key=lambda k: (-mean[k], k))
    best = both(scripted, n=3, best_of=8, **body)
    assert best.texts() == [candidates.choices[k].text for k in ranked[:3]]
    assert best.usage == candidates.usage, "usage counts all candidates"


def test_best_of_counts_as_n_when_absent(scripted):
    body = {"prompt": "x", "n": 3, "max_tokens": 5, "seed": 1}
    assert same(whole(scripted, **body), whole(scripted, best_of=3, **body))
    assert refused(scripted, 422, prompt="x", n=3, best_of=2)["detail"][0]["loc"] == ["body", "best_of"]


def test_greedy_candidates_are_one_and_the_same(scripted):
    answer = both(scripted, prompt=PROMPT, n=3, best_of=5, max_tokens=10, **GREEDY)
    assert answer.texts() == [answer_of(scripted, ids(PROMPT), 10)] * 3


def test_echo_puts_the_prompt_first(scripted):
    answer = both(scripted, prompt=PROMPT, echo=True, max_tokens=9, **GREEDY)
    assert answer.text == PROMPT + answer_of(scripted, ids(PROMPT), 9)


def test_echo_alone_returns_the_prompt(scripted):
    answer = both(scripted, prompt="só €", echo=True, max_tokens=0)
    assert (answer.text, answer.choices[0].finish) == ("só €", "length")
    assert answer.usage["completion_tokens"] == 0
    assert refused(scripted, 422, prompt="x", max_tokens=0)["detail"][0]["loc"] == ["body", "max_tokens"]


def expected_logprobs(prompt_ids, tokens):
    history, found = list(prompt_ids), []
    for token in tokens:
        found.append(script.logprobs(history)[token])
        history.append(token)
    return found


def test_logprobs_are_those_of_the_raw_model(scripted):
    body = {"prompt": PROMPT, "max_tokens": 12, "logprobs": 5, "seed": 3}
    answer = both(scripted, **body, temperature=2, logit_bias={"65": 7.5}, presence_penalty=1, top_p=0.9)
    logprobs = answer.choices[0].logprobs
    assert logprobs["token_logprobs"] == pytest.approx(expected_logprobs(ids(PROMPT), ids(answer.text)), abs=1e-4)
    history = ids(PROMPT)
    for content, token in zip(logprobs["content"], ids(answer.text), strict=True):
        row = script.logprobs(history)
        best = sorted(range(len(row)), key=lambda k: (-row[k], k))[:5]
        assert [entry["bytes"] for entry in content["top_logprobs"]] == [[k] for k in best]
        assert [entry["logprob"] for entry in content["top_logprobs"]] == pytest.approx(row[best], abs=1e-4)
        assert content["bytes"] == [token]
        history.append(token)
    assert logprobs["text_offset"] == list(range(12))


def test_logprobs_0_scores_the_sampled_token_alone(scripted):
    logprobs = both(scripted, prompt=PROMPT, max_tokens=6, logprobs=0, **GREEDY).choices[0].logprobs
    assert len(logprobs["token_logprobs"]) == 6
    assert all(content["top_logprobs"] == [] for content in logprobs["content"])
    assert both(scripted, prompt=PROMPT, max_tokens=6, **GREEDY).choices[0].logprobs is None


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"n": 2, "best_of": 3}], ids=["alone", "n", "best_of"])
def test_a_choice_that_ends_before_its_first_token_has_empty_lists_streamed_and_whole(scripted, more):
    end = {"stop_token_ids": [65], "logit_bias": {"65": 100}}
    answer = both(scripted, prompt=PROMPT, max_tokens=6, logprobs=1, seed=3, **end, **more)
    for choice in answer.choices.values():
        assert (choice.text, choice.finish) == ("", "stop")
        assert choice.logprobs is not None and not any(choice.logprobs.values()), choice.logprobs
    plain = both(scripted, prompt=PROMPT, max_tokens=6, seed=3, **end, **more)
    assert all(choice.logprobs is None for choice in plain.choices.values())


def test_echo_with_logprobs_scores_the_prompt_but_its_first_token(scripted):
    answer = both(scripted, prompt=PROMPT, echo=True, max_tokens=4, logprobs=2, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is logprobs["content"][0] is None
    expected = expected_logprobs(ids(PROMPT[:1]), ids(answer.text[1:]))
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert "".join(logprobs["tokens"]) == answer.text
    assert logprobs["text_offset"] == list(range(len(answer.text)))


def test_loglikelihood_scores_the_prompt_ahead_of_the_answer(scripted):
    answer = both(scripted, prompt=PROMPT, loglikelihood=True, max_tokens=4, **GREEDY)
    assert answer.text == answer_of(scripted, ids(PROMPT), 4), "the text is unaffected"
    logprobs = answer.choices[0].logprobs["token_logprobs"]
    assert logprobs == pytest.approx(expected_logprobs(ids(PROMPT[:1]), ids(PROMPT[1:] + answer.text)), abs=1e-4)
    alone = both(scripted, prompt=PROMPT, loglikelihood=True, max_tokens=0)
    assert (alone.text, alone.choices[0].logprobs["token_logprobs"]) == ("", logprobs[: len(PROMPT) - 1])


@pytest.mark.parametrize("narrowest", [{"top_p": 0}, {"min_p": 1}, {"top_k": 1}, {"temperature": 1e-3}])
def test_the_narrowest_sampling_is_greedy(scripted, narrowest):
    answer = both(scripted, prompt=PROMPT, max_tokens=30, seed=1, **narrowest)
    assert answer.text == answer_of(scripted, ids(PROMPT), 30)


@pytest.mark.parametrize("filters, worst", [({"top_k": 3}, 2), ({"min_p": 0.4}, 1), ({"top_p": 0.5}, 1)])
def test_filters_leave_only_the_most_probable_tokens(scripted, filters, worst):
    """Neighbours in rank differ by 0.5 to 1 in their logits, so that no token beyond the rank `worst` may survive."""
    answer = whole(scripted, prompt=PROMPT, n=16, max_tokens=20, seed=2, **filters)
    ranks = set()
    for choice in answer.choices.values():
        history = ids(PROMPT)
        for token in ids(choice.text):
            row = script.logits(history)
            ranks.add(int((row > row[token]).sum()))
            history.append(token)
    assert ranks == set(range(worst + 1))


def test_logit_bias_moves_bans_and_leaves_only(scripted):
    tokens = greedy(ids(PROMPT), 10)

    def banned(row, _, out):
        row[tokens[0]] = -np.inf
        return row

    answer = both(scripted, prompt=PROMPT, max_tokens=10, logit_bias={str(tokens[0]): -100, "66": None}, **GREEDY)
    assert answer.text == answer_of(scripted, ids(PROMPT), 10, adjust=banned)
    only = both(scripted, prompt=PROMPT, max_tokens=10, logit_bias={"90": 100}, seed=9)
    assert only.text == "Z" * 10

    def pushed(row, _, out):
        row[90] += np.float32(66.5)
        return row

    moved = both(scripted, prompt=PROMPT, max_tokens=10, logit_bias={"90": 66.5}, **GREEDY)
    assert moved.text == answer_of(scripted, ids(PROMPT), 10, adjust=pushed)
    assert "Z" in moved.text


def test_penalties_count_what_was_said(scripted):
    def penalised(row, prompt, out):
        row = row.copy()
        row[90] += np.float32(66.0)
        for token in set(prompt) | set(out):
            row[token] = row[token] / np.float32(1.2) if row[token] > 0 else row[token] * np.float32(1.2)
        for token in set(out):
            row[token] -= np.float32(0.75) * out.count(token) + np.float32(0.5)
        return row

    body = {"logit_bias": {"90": 66}, "repetition_penalty": 1.2, "frequency_penalty": 0.75, "presence_penalty": 0.5}
    answer = both(scripted, prompt=PROMPT, max_tokens=30, **body, **GREEDY)
    assert answer.text == answer_of(scripted, ids(PROMPT), 30, adjust=penalised)
    assert 1 < answer.text.count("Z") < 30, "the case says nothing when Z is never or always said"


def test_a_seed_fixes_the_answer_and_another_changes_it(scripted):
    body = {"prompt": PROMPT, "max_tokens": 32}
    assert same(whole(scripted, seed=7, **body), whole(scripted, seed=7, **body))
    assert whole(scripted, seed=7, **body).text != whole(scripted, seed=8, **body).text
    assert whole(scripted, seed=-1, **body).text == whole(scripted, seed=2**64 - 1, **body).text


def test_without_a_seed_the_header_names_the_one_that_was_drawn(scripted):
    body = {"prompt": PROMPT, "max_tokens": 32}
    drawn = streamed(scripted, **body)
    again = whole(scripted, seed=int(drawn.headers["x-shoal-seed"]), **body)
    assert same(drawn, again)
    assert whole(scripted, **body).headers["x-shoal-seed"] != drawn.headers["x-shoal-seed"]


def test_the_text_ends_before_the_first_stop_string(scripted):
    answer = answer_of(scripted, ids(PROMPT), 60)
    later, sooner = answer[30:33], answer[12:15]
    cut = min(answer.index(later), answer.index(sooner))
    found = both(scripted, prompt=PROMPT, max_tokens=60, stop=[later, sooner, "never, never"], logprobs=1, **GREEDY)
    assert (found.text, found.choices[0].finish) == (answer[:cut], "stop")
    assert "".join(found.choices[0].logprobs["tokens"]) == answer[:cut]
    assert found.usage["completion_tokens"] > cut, "tokens that were cut count"
    assert both(scripted, prompt=PROMPT, max_tokens=60, stop=sooner, **GREEDY).text == answer[: answer.index(sooner)]


def test_a_stop_string_in_the_echoed_prompt_stops_nothing(scripted):
    answer = both(scripted, prompt=PROMPT, echo=True, max_tokens=20, stop=PROMPT, **GREEDY)
    assert (answer.text, answer.choices[0].finish) == (PROMPT + answer_of(scripted, ids(PROMPT), 20), "length")


def test_a_tail_that_could_become_a_stop_is_given_back_at_the_end(scripted):
    answer = answer_of(scripted, ids(PROMPT), 20)
    found = both(scripted, prompt=PROMPT, max_tokens=20, stop=answer[-4:] + "~never", **GREEDY)
    assert (found.text, found.choices[0].finish) == (answer, "length")


def test_suffix_asks_to_fill_the_middle(scripted):
    answer = both(scripted, prompt="def f(", suffix="return x", max_tokens=12, **GREEDY)
    asked = [FIM_PREFIX, *ids("def f("), FIM_SUFFIX, *ids("return x"), FIM_MIDDLE]
    assert answer.text == answer_of(scripted, asked, 12)


def test_an_unknown_adapter_is_never_answered_by_the_base_model(scripted):
    body = refused(scripted, 404, prompt="x", peft="no-such")
    assert (body["code"], body["param"]) == ("adapter_not_found", "peft")
    body = refused(scripted, 404, prompt="x", model="no-such")
    assert (body["code"], body["param"]) == ("model_not_found", "model")
    assert scripted.model in body["message"], "the message lists what is served"


def test_usage_of_a_stream_comes_once_on_its_last_chunk_that_says_something(scripted):
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 6, "seed": 1, "ignore_eos": True}
    answer = streamed(scripted, stream_options={"include_usage": True}, **body)
    assert [document["usage"] is not None for document in answer.documents] == [False] * (
        len(answer.documents) - 1
    ) + [True]
    assert answer.documents[-1]["choices"]
    assert answer.usage == whole(scripted, **body).usage == {"prompt_tokens": 2, "completion_tokens": 24, "total_tokens": 26}
    assert streamed(scripted, **body).usage is None


def test_max_tokens_beyond_the_context_is_cut_and_said(scripted):
    answer = both(scripted, prompt="a" * 4090, max_tokens=100, ignore_eos=True, **GREEDY)
    assert (answer.headers["x-shoal-max-tokens"], answer.usage["completion_tokens"]) == ("6", 6)
    assert answer.choices[0].finish == "length"
    assert refused(scripted, 422, prompt="a" * 4097)["detail"][0]["loc"] == ["body", "prompt"]


def test_fields_that_mean_nothing_here_are_taken_and_named(scripted):
    answer = whole(scripted, prompt="x", max_tokens=1, use_beam_search=True, length_penalty=1)
    assert set(answer.headers["x-shoal-ignored"].split(", ")) == {"use_beam_search", "length_penalty"}


def test_a_request_keeps_its_id(scripted):
    body = {"model": scripted.model, "prompt": "x", "max_tokens": 1}
    sent = scripted.http.post("/v1/completions", json=body, headers={"x-request-id": "my-id-1"})
    made = scripted.http.post("/v1/completions", json=body)
    assert sent.headers["x-request-id"] == "my-id-1"
    assert made.headers["x-request-id"] not in {"", "my-id-1"}


def test_only_a_prompt_that_asks_for_it_is_ever_written_to_disk(scripted):
    directory = scripted.processes[0].out.parent
    whole(scripted, prompt="remember-this-prompt", max_tokens=1, log_prompt=True, user="someone")
    whole(scripted, prompt="forget-that-prompt", max_tokens=1, user="someone")

    def logged():
        files = [path for path in directory.rglob("*") if path.is_file()]
        return {path for path in files if b"remember-this-prompt" in path.read_bytes()}

    (path,) = scripted.wait_until("line in the prompt log", logged)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert any("remember-this-prompt" in json.dumps(line) and "someone" in json.dumps(line) for line in lines)
    everything = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"forget-that-prompt" not in everything


def test_tokenize_and_detokenize_are_each_others_inverse(scripted):
    tokens = scripted.http.post("/tokenize", json={"model": scripted.model, "prompt": "é<|eos|>"}).json()
    assert tokens == {"tokens": [0xC3, 0xA9, EOS], "count": 3, "max_model_len": 4096}
    back = scripted.http.post("/detokenize", json={"model": scripted.model, "tokens": tokens["tokens"]}).json()
    assert back == {"prompt": "é<|eos|>"}


def test_the_other_endpoints_answer(scripted):
    assert scripted.http.get("/livez").status_code == 200
    assert scripted.http.get("/readyz").status_code == 200
    models = scripted.http.get("/v1/models").json()
    assert models["object"] == "list" and models["data"][0]["object"] == "model"
    assert "/v1/completions" in scripted.http.get("/openapi.json").json()["paths"]
    assert "shoal_" in scripted.http.get("/metrics").text
