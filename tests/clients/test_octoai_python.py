"""The OctoAI Python SDK, unmodified, pointed at Shoal by its environment."""

import asyncio
import concurrent.futures

import pytest
from octoai.client import AsyncOctoAI, OctoAI
from octoai.core.api_error import ApiError
from octoai.environment import OctoAIEnvironment
from octoai.text_gen import StreamOptions, UnprocessableEntityError

from contract import streamed, whole
from script import greedy, ids, prompt_that_goes_on, text

PROMPT = prompt_that_goes_on(40)
ALL_FIELDS = {
    "best_of": 4,
    "echo": True,
    "frequency_penalty": 0.25,
    "ignore_eos": True,
    "log_prompt": False,
    "logit_bias": {"65": 1.5, "66": None},
    "loglikelihood": True,
    "logprobs": 3,
    "max_tokens": 12,
    "min_p": 0.01,
    "n": 2,
    "presence_penalty": 0.25,
    "prompt": ["one prompt", "and another"],
    "repetition_penalty": 1.1,
    "seed": 4,
    "stop": ["~~~~~~", "@@@@@@"],
    "temperature": 0.9,
    "top_p": 0.95,
    "user": "someone",
}


def environment(server):
    return OctoAIEnvironment(default=server.url, image_gen=server.url, text_gen=server.url)


@pytest.fixture
def client(scripted):
    return OctoAI(api_key="none", environment=environment(scripted))


def test_a_completion(client, scripted):
    answer = client.text_gen.create_completion(model=scripted.model, prompt=PROMPT, max_tokens=40, temperature=0)
    assert answer.choices[0].text == text(greedy(ids(PROMPT), 40))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 40
    assert answer.system_fingerprint.startswith("fp_")


def test_a_stream_of_completions(client, scripted):
    chunks = list(
        client.text_gen.create_completion_stream(
            model=scripted.model,
            prompt=PROMPT,
            max_tokens=40,
            temperature=0,
            stream_options=StreamOptions(include_usage=True),
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == text(greedy(ids(PROMPT), 40))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 40


def test_its_reader_drops_no_chunk(client, scripted):
    """The reader passes over what it cannot parse without a word, so the chunks are counted, choice by choice."""
    body = {key: value for key, value in ALL_FIELDS.items() if key != "best_of"}
    seen = list(client.text_gen.create_completion_stream(model=scripted.model, **body))
    sent = streamed(scripted, **body).documents
    assert len(seen) == len(sent) > 40
    for index in range(4):
        of_choice = [document["choices"][0]["text"] for document in sent if document["choices"][0]["index"] == index]
        assert [chunk.choices[0].text for chunk in seen if chunk.choices[0].index == index] == of_choice


def test_all_fields_mean_what_they_mean_on_the_wire(client, scripted):
    answer = client.text_gen.create_completion(model=scripted.model, **ALL_FIELDS)
    expected = whole(scripted, **ALL_FIELDS)
    assert [choice.text for choice in answer.choices] == expected.texts()
    assert "x-shoal-ignored" not in expected.headers
    for choice in answer.choices:
        content = choice.logprobs.content
        assert content[0] is None, "the first token of an echoed prompt has no logprob"
        assert [entry.logprob for entry in content[1:]] == expected.choices[choice.index].logprobs["token_logprobs"][1:]
        assert all(len(entry.top_logprobs) == 3 for entry in content[1:])


def test_suffix(client, scripted):
    answer = client.text_gen.create_completion(model=scripted.model, prompt="a", suffix="b", max_tokens=4, seed=1)
    assert answer.choices[0].text == whole(scripted, prompt="a", suffix="b", max_tokens=4, seed=1).text


def test_the_async_client(scripted):
    async def ask():
        client = AsyncOctoAI(api_key="none", environment=environment(scripted))
        body = {"model": scripted.model, "prompt": PROMPT, "max_tokens": 20, "temperature": 0}
        answer = await client.text_gen.create_completion(**body)
        chunks = [chunk async for chunk in client.text_gen.create_completion_stream(**body)]
        return answer.choices[0].text, "".join(chunk.choices[0].text for chunk in chunks)

    assert asyncio.run(ask()) == (text(greedy(ids(PROMPT), 20)),) * 2


def test_an_invalid_field_is_named(client, scripted):
    with pytest.raises(UnprocessableEntityError) as caught:
        client.text_gen.create_completion(model=scripted.model, prompt="x", temperature=2.5)
    (detail,) = caught.value.body.detail
    assert (caught.value.status_code, detail.loc) == (422, ["body", "temperature"])
    assert detail.msg and detail.msg in str(caught.value)


def test_an_invalid_field_of_a_stream_is_named(client, scripted):
    with pytest.raises(UnprocessableEntityError) as caught:
        list(client.text_gen.create_completion_stream(model=scripted.model, prompt=["a", "b"], n=99))
    assert caught.value.body.detail[0].loc == ["body", "n"]


@pytest.mark.parametrize("field", ["model", "peft"])
def test_an_unknown_model_or_adapter_is_told(client, scripted, field):
    body = {"model": scripted.model, "prompt": "x", field: "no-such"}
    with pytest.raises(ApiError) as caught:
        client.text_gen.create_completion(**body)
    assert caught.value.status_code == 404
    assert caught.value.body["message"] in str(caught.value) and "no-such" in caught.value.body["message"]


def test_a_full_server_says_so_and_its_retry_succeeds(narrow):
    """The SDK waits as long as Retry-After says, which is the time that the running request should take, and tries again."""

    def ask(**options):
        client = OctoAI(api_key="none", environment=environment(narrow))
        return client.text_gen.create_completion(model=narrow.model, prompt="x", max_tokens=1, request_options=options)

    def refusals():
        return narrow.metric("shoal_http_requests_total", 'status="503"')

    busy = {"model": narrow.model, "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with narrow.http.stream("POST", "/v1/completions", json=busy) as running:
            lines = running.iter_lines()
            next(lines)
            with pytest.raises(ApiError) as caught:
                ask()
            patient = pool.submit(ask, max_retries=5)
            narrow.wait_until("second refusal", lambda: refusals() == 2)
        assert patient.result().usage.completion_tokens == 1
    assert caught.value.status_code == 503
    assert caught.value.body["message"] in str(caught.value)
