"""What a stream is made of, event by event; see also every test that uses `contract.streamed`."""

import json

import pytest

from contract import collect, events, parse, same, streamed, whole
from script import EOS
from servers import Server, scripted_config

BODIES = {
    "plain": {"prompt": "plain", "max_tokens": 20},
    "choices": {"prompt": ["a", "b"], "n": 3, "max_tokens": 9},
    "winners": {"prompt": ["a", "b"], "n": 2, "best_of": 5, "max_tokens": 9},
    "echo and logprobs": {"prompt": ["ab", "cde"], "echo": True, "logprobs": 4, "max_tokens": 5},
    "scores only": {"prompt": "scores", "loglikelihood": True, "max_tokens": 0},
    "echo only": {"prompt": ["x", "y"], "echo": True, "max_tokens": 0},
    "one token": {"prompt": "x", "echo": True, "logprobs": 0, "max_tokens": 0},
    "stopped": {"prompt": "stopped", "stop": ["e", "a", "\n"], "logprobs": 1, "max_tokens": 60},
    "characters": {"prompt": "naïve 😀", "echo": True, "logprobs": 2, "max_tokens": 3},
    "banned to nothing": {"prompt": "x", "logit_bias": {"65": -100}, "logprobs": 20, "max_tokens": 3},
}


@pytest.mark.parametrize("name", BODIES)
def test_a_stream_put_together_is_the_whole_answer(scripted, name):
    body = {"seed": 6, **BODIES[name]}
    assert same(streamed(scripted, **body), whole(scripted, **body))


@pytest.mark.parametrize("usage", [True, False])
def test_every_event_is_one_line_of_json_and_the_last_is_done(scripted, usage):
    body = {"model": scripted.model, "stream": True, "n": 2, "max_tokens": 8, "stream_options": {"include_usage": usage}}
    with scripted.http.stream("POST", "/v1/completions", json=body) as response:
        raw = b"".join(response.iter_raw())
    blocks = raw.decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    assert all(block.startswith("data: {") and "\n" not in block for block in blocks)
    documents = [json.loads(block.removeprefix("data: ")) for block in blocks]
    for document in documents:
        parse(document)
        assert len(document["choices"]) == 1
    assert sorted(collect(documents, response.headers).choices) == [0, 1]


def test_a_token_is_sent_when_it_is_there(narrow):
    """Were answers gathered before they are sent, the first event would carry more than the first token."""
    body = {"model": narrow.model, "stream": True, "max_tokens": 50, "temperature": 0, "prompt": "x"}
    body["logit_bias"] = {str(EOS): -100}
    with narrow.http.stream("POST", "/v1/completions", json=body) as response:
        texts = [json.loads(event)["choices"][0]["text"] for event in events(response.iter_lines()) if event != "[DONE]"]
    assert len(texts) == 50 and all(len(text) == 1 for text in texts)


def test_half_a_character_is_never_sent(scripted):
    """Only the two bytes of an \u00e9 are allowed, in any order: whole characters come out whole, and what is none becomes
    the replacement character, as Python's decoder does it."""
    body = {"prompt": "x", "max_tokens": 64, "seed": 2, "logit_bias": {"195": 100, "169": 100}, "logprobs": 0}
    answer = streamed(scripted, **body)
    assert same(answer, whole(scripted, **body))
    raw = bytes(byte for content in answer.choices[0].logprobs["content"] for byte in content["bytes"])
    assert len(raw) == 64 and answer.text == raw.decode(errors="replace")
    assert "\u00e9" in answer.text and "\ufffd" in answer.text, "the case shows only one of the two"


def test_winners_of_best_of_are_streamed_one_after_the_other_in_order(scripted):
    answer = streamed(scripted, prompt=["a", "b"], n=2, best_of=4, max_tokens=10, seed=1)
    order = [document["choices"][0]["index"] for document in answer.documents]
    assert sorted(set(order)) == [0, 1, 2, 3]
    assert answer.texts() == whole(scripted, prompt=["a", "b"], n=2, best_of=4, max_tokens=10, seed=1).texts()


def test_usage_may_come_on_a_chunk_of_its_own(tmp_path):
    config = scripted_config(tmp_path, more='[api]\nusage_chunk = "openai"\n')
    server = Server.dev(tmp_path, "--config", config)
    answer = streamed(server, prompt="x", max_tokens=4, ignore_eos=True, stream_options={"include_usage": True})
    assert answer.documents[-1]["choices"] == [] and answer.usage["completion_tokens"] == 4
    server.stop()
