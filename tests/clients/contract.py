"""How tests talk to a server without a client library: every answer and every event of a stream is parsed with the OctoAI
SDK's own model (whose stream reader swallows what it cannot parse) and checked for exactly the documented keys."""

import dataclasses
import json

import httpx
import octoai.text_gen
import pydantic.v1

KEYS = {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
CHOICE_KEYS = {"index", "text", "finish_reason", "logprobs"}
LOGPROB_KEYS = {"content", "tokens", "token_logprobs", "top_logprobs", "text_offset"}
FINISHES = {None, "stop", "length", "cancelled"}


def parse(document):
    """As the SDK would; returns its model."""
    parsed = pydantic.v1.parse_obj_as(octoai.text_gen.CompletionResponse, document)
    assert document.keys() == KEYS, document.keys() ^ KEYS
    assert document["object"] == "text_completion" and document["id"].startswith("cmpl-")
    assert document["system_fingerprint"].startswith("fp_")
    for choice in document["choices"]:
        assert choice.keys() == CHOICE_KEYS, choice.keys() ^ CHOICE_KEYS
        assert choice["finish_reason"] in FINISHES
        check_logprobs(choice["logprobs"])
    return parsed


def check_logprobs(logprobs):
    """Both shapes, entry by entry the same thing."""
    if logprobs is None:
        return
    assert logprobs.keys() == LOGPROB_KEYS, logprobs.keys() ^ LOGPROB_KEYS
    assert len({len(column) for column in logprobs.values()}) == 1, "columns of different lengths"
    for content, token, logprob, top in zip(
        logprobs["content"], logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        if content is None:
            assert logprob is None and top is None
            continue
        assert (content["token"], content["logprob"]) == (token, logprob)
        assert {entry["token"] for entry in content["top_logprobs"]} == top.keys()
        ranked = [entry["logprob"] for entry in content["top_logprobs"]]
        assert ranked == sorted(ranked, reverse=True)


@dataclasses.dataclass
class Choice:
    """One choice, whole."""

    text: str = ""
    finish: str | None = None
    logprobs: dict | None = None

    def add(self, chunk):
        assert self.finish is None, "a chunk after the last one"
        self.text += chunk["text"]
        self.finish = chunk["finish_reason"]
        if chunk["logprobs"] is not None:
            self.logprobs = self.logprobs or {key: [] for key in LOGPROB_KEYS}
            for key, column in chunk["logprobs"].items():
                self.logprobs[key] += column


@dataclasses.dataclass
class Answer:
    """A whole answer, or a stream put together again."""

    choices: dict
    usage: dict | None
    headers: httpx.Headers
    fingerprint: str
    documents: list

    @property
    def text(self):
        assert self.choices.keys() == {0}
        return self.choices[0].text

    def texts(self):
        return [self.choices[index].text for index in sorted(self.choices)]


def collect(documents, headers):
    choices = {}
    for document in documents:
        for chunk in document["choices"]:
            choices.setdefault(chunk["index"], Choice()).add(chunk)
    shared = {(d["id"], d["created"], d["model"], d["system_fingerprint"]) for d in documents}
    assert len(shared) == 1, f"the chunks of one answer differ: {shared}"
    usages = [document["usage"] for document in documents if document["usage"]]
    assert len(usages) <= 1
    return Answer(choices, usages[0] if usages else None, headers, documents[0]["system_fingerprint"], documents)


def whole(server, **body):
    """A request that is not streamed."""
    response = server.http.post("/v1/completions", json={"model": server.model, **body})
    assert response.status_code == 200, response.text
    document = response.json()
    parse(document)
    return collect([document], response.headers)


def events(lines):
    """The data of every event of a raw stream; comments are skipped, anything else than events is a fault."""
    for line in lines:
        if line == "" or line.startswith(":"):
            continue
        assert line.startswith("data: "), f"not an event: {line!r}"
        yield line.removeprefix("data: ")


def chunks(response):
    """Every event but `[DONE]`, parsed as it arrives; the stream must end with `[DONE]`."""
    last = None
    for last in events(response.iter_lines()):
        if last != "[DONE]":
            document = json.loads(last)
            assert "error" not in document, document
            parse(document)
            yield document
    assert last == "[DONE]", f"the stream was cut after {last!r}"


def streamed(server, **body):
    """The same request as `whole`, streamed."""
    body = {"model": server.model, "stream": True, **body}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise AssertionError(response.read())
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        return collect(list(chunks(response)), response.headers)


def refused(server, status, **body):
    """A request that must fail with `status`; returns the body."""
    response = server.http.post("/v1/completions", json={"model": server.model, **body})
    assert response.status_code == status, response.text
    return response.json()


def same(left, right):
    """Whether two answers are the same to the byte, in all a client can see but the answer's own id and date."""
    return left.choices == right.choices and left.fingerprint == right.fingerprint
