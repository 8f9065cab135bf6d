"""The OpenAI Python library, unmodified, pointed at Shoal by its base URL."""

import asyncio

import openai
import pytest

from contract import whole
from script import greedy, ids, prompt_that_goes_on, text

PROMPT = prompt_that_goes_on(40)


def client_of(server, kind=openai.OpenAI, **options):
    return kind(base_url=f"{server.url}/v1", api_key="none", **{"max_retries": 0, **options})


@pytest.fixture
def client(scripted):
    return client_of(scripted)


def test_a_completion(client, scripted):
    answer = client.completions.create(model=scripted.model, prompt=PROMPT, max_tokens=40, temperature=0)
    assert answer.choices[0].text == text(greedy(ids(PROMPT), 40))
    assert (answer.choices[0].finish_reason, answer.object) == ("length", "text_completion")
    assert answer.usage.total_tokens == len(PROMPT) + 40


def test_a_stream_of_completions(client, scripted):
    body = {"model": scripted.model, "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
    chunks = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text(greedy(ids(PROMPT), 40))
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.completion_tokens == 40


def test_all_fields_mean_what_they_mean_on_the_wire(client, scripted):
    body = {
        "best_of": 4,
        "echo": True,
        "frequency_penalty": 0.5,
        "logit_bias": {"65": 2},
        "logprobs": 3,
        "max_tokens": 12,
        "n": 2,
        "presence_penalty": 0.5,
        "prompt": ["one", "two"],
        "seed": 9,
        "stop": ["~~~~~~"],
        "temperature": 1.2,
        "top_p": 0.9,
        "user": "someone",
    }
    beyond = {"min_p": 0.02, "top_k": 12, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 3}
    answer = client.completions.create(model=scripted.model, **body, extra_body=beyond)
    expected = whole(scripted, **body, **beyond)
    assert [choice.text for choice in answer.choices] == expected.texts()
    for choice in answer.choices:
        found, sent = choice.logprobs, expected.choices[choice.index].logprobs
        assert found.token_logprobs[0] is None
        assert (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset) == (
            sent["tokens"],
            sent["token_logprobs"],
            sent["top_logprobs"],
            sent["text_offset"],
        )


def test_suffix_and_token_ids(client, scripted):
    answer = client.completions.create(model=scripted.model, prompt="a", suffix="b", max_tokens=4, seed=1)
    assert answer.choices[0].text == whole(scripted, prompt="a", suffix="b", max_tokens=4, seed=1).text
    answer = client.completions.create(model=scripted.model, prompt=[ids("one"), ids("two")], max_tokens=5, seed=1)
    assert [choice.text for choice in answer.choices] == whole(scripted, prompt=["one", "two"], max_tokens=5, seed=1).texts()


def test_the_async_client(scripted):
    async def ask():
        client = client_of(scripted, openai.AsyncOpenAI)
        body = {"model": scripted.model, "prompt": PROMPT, "max_tokens": 20, "temperature": 0}
        answer = await client.completions.create(**body)
        chunks = [chunk async for chunk in await client.completions.create(**body, stream=True)]
        return answer.choices[0].text, "".join(chunk.choices[0].text for chunk in chunks)

    assert asyncio.run(ask()) == (text(greedy(ids(PROMPT), 20)),) * 2


def test_the_models_are_listed(client, scripted):
    assert scripted.model in [model.id for model in client.models.list()]


@pytest.mark.parametrize(
    "fields, error, param",
    [
        ({"model": "no-such"}, openai.NotFoundError, "model"),
        ({"extra_body": {"peft": "no-such"}}, openai.NotFoundError, "peft"),
        ({"temperature": 2.5}, openai.UnprocessableEntityError, "temperature"),
        ({"logit_bias": {"65": 101}}, openai.UnprocessableEntityError, "logit_bias"),
        ({"prompt": ["a", 1]}, openai.UnprocessableEntityError, "prompt[1]"),
        ({"stream": True, "n": 0}, openai.UnprocessableEntityError, "n"),
    ],
)
def test_an_error_has_its_class_and_names_its_field(client, scripted, fields, error, param):
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": scripted.model, "prompt": "x", **fields})
    assert caught.value.param.startswith(param)
    assert caught.value.body["message"] in str(caught.value) and caught.value.body["message"]
    assert caught.value.request_id


def test_a_body_that_is_no_json_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", content=b"{", cast_to=object, options={"headers": {"content-type": "application/json"}})
    assert caught.value.body["message"] in str(caught.value)


def test_a_full_server_says_so(narrow):
    client = client_of(narrow)
    busy = {"model": narrow.model, "prompt": "x", "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**busy, stream=True) as running:
        next(iter(running))
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=narrow.model, prompt="x", max_tokens=1)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.body["message"] in str(caught.value)
    # The library waits as long as Retry-After says and tries again; the stream has been closed.
    patient = client_of(narrow, max_retries=5)
    assert patient.completions.create(model=narrow.model, prompt="x", max_tokens=1).usage.completion_tokens == 1
