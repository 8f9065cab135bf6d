"""Same request, same bytes: alone, in a crowd, streamed or not, on another worker, after a restart."""

import concurrent.futures
import json
import pathlib

import pytest

from contract import parse, same, streamed, whole
from servers import Server, real_model, scripted_config

# Between them: every way to sample, every form of answer.
REQUESTS = [
    {"prompt": "alone", "max_tokens": 40},
    {"prompt": "hot", "max_tokens": 40, "temperature": 2, "logprobs": 3},
    {"prompt": ["one", "two", "three"], "n": 2, "max_tokens": 24, "top_p": 0.8},
    {"prompt": "best", "n": 2, "best_of": 6, "max_tokens": 24, "min_p": 0.05},
    {"prompt": "echoed", "echo": True, "logprobs": 1, "max_tokens": 12, "top_k": 5},
    {"prompt": "scored", "loglikelihood": True, "max_tokens": 8, "presence_penalty": 1.5},
    {"prompt": "a long prompt " * 60, "max_tokens": 24, "repetition_penalty": 1.3, "ignore_eos": True},
    {"prompt": "stopped", "stop": ["e", "x"], "max_tokens": 60, "frequency_penalty": 0.5},
]
REAL_REQUESTS = [
    {"prompt": "The sea is", "max_tokens": 12, "temperature": 0.9, "logprobs": 2},
    {"prompt": ["One day", "In the end"], "n": 2, "max_tokens": 8, "temperature": 1.3, "top_p": 0.95},
]


def seeded(requests):
    return [{"seed": 1000 + number, **body} for number, body in enumerate(requests)]


def choices_bytes(server, body):
    """The choices as the server wrote them, unparsed."""
    response = server.http.post("/v1/completions", json={"model": server.model, **body})
    parse(response.json())
    return response.content.split(b'"choices":')[1].rsplit(b',"usage":')[0]


def in_a_crowd(server, bodies, crowd):
    """Each of `bodies` asked for at once, streamed, among the requests of `crowd`."""
    with concurrent.futures.ThreadPoolExecutor(len(bodies) + len(crowd)) as pool:
        others = [pool.submit(streamed, server, **body) for body in crowd]
        answers = [pool.submit(streamed, server, **body) for body in bodies]
        for other in others:
            other.result()
        return [answer.result() for answer in answers]


def crowd_of(count, **more):
    return [{"prompt": f"crowd {k} " * (1 + k % 7), "n": 1 + k % 3, "max_tokens": 8 + k, "seed": k, **more} for k in range(count)]


@pytest.fixture(scope="module")
def alone(scripted):
    return [whole(scripted, **body) for body in seeded(REQUESTS)]


def test_asked_again_the_answer_is_the_same_to_the_byte(scripted):
    for body in seeded(REQUESTS):
        assert choices_bytes(scripted, body) == choices_bytes(scripted, body)


def test_a_crowd_changes_nothing(scripted, alone):
    for body, expected in zip(seeded(REQUESTS), alone, strict=True):
        (found,) = in_a_crowd(scripted, [body], crowd_of(31))
        assert same(found, expected)


def test_neither_a_restart_nor_another_number_of_workers_changes_anything(scripted, alone, tmp_path):
    again = Server.dev(tmp_path, "--config", scripted_config(tmp_path, step_ms=0, slots=3))
    for body, expected in zip(seeded(REQUESTS), alone, strict=True):
        assert same(streamed(again, **body), expected)
    again.stop()


def test_a_worker_s_death_in_the_middle_changes_nothing(scripted, tmp_path):
    cluster = Server.cluster(tmp_path, "alpha", "beta")
    router, alpha, _ = cluster.processes
    cluster.wait_until("both workers", lambda: cluster.metric("shoal_replicas") == 2)
    bodies = [{"prompt": f"survivor {k}", "n": 2, "max_tokens": 300, "ignore_eos": True, "seed": k} for k in range(8)]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        answers = [pool.submit(streamed, cluster, **body) for body in bodies]
        cluster.wait_until("tokens", lambda: cluster.metric("shoal_route_total") >= len(bodies))
        alpha.child.kill()
        found = [answer.result() for answer in answers]
    assert cluster.metric("shoal_replays_total") > 0, "nothing ran on the worker that died"
    assert all(same(answer, whole(scripted, **body)) for answer, body in zip(found, bodies, strict=True))
    alpha.child.wait()
    cluster.processes = tuple(process for process in cluster.processes if process is not alpha)
    assert router.alive()
    cluster.stop()


def test_another_model_has_another_fingerprint(scripted, alone, tmp_path):
    config = scripted_config(tmp_path)
    config.write_text(config.read_text().replace('engine = "scripted"', 'engine = "scripted"\nsalt = 1'))
    other = Server.dev(tmp_path, "--config", config)
    answer = whole(other, **seeded(REQUESTS)[0])
    assert answer.fingerprint != alone[0].fingerprint and answer.text != alone[0].text
    other.stop()


def test_real_weights_keep_the_promise_too(real, tmp_path):
    bodies = seeded(REAL_REQUESTS)
    expected = [whole(real, **body) for body in bodies]
    for body, answer in zip(bodies, expected, strict=True):
        assert same(streamed(real, **body), answer)
    for found, answer in zip(in_a_crowd(real, bodies, crowd_of(6, max_tokens=6)), expected, strict=True):
        assert same(found, answer)
    again = Server.dev(tmp_path, "--model", real_model(), "--threads", "1")
    for body, answer in zip(bodies, expected, strict=True):
        assert same(whole(again, **body), answer)
    again.stop()


def test_the_recorded_answers_still_hold(scripted):
    """A change of these bytes is a change of the promise: it needs another fingerprint."""
    recorded = json.loads((pathlib.Path(__file__).parent / "recorded.json").read_text())
    for entry in recorded:
        answer = whole(scripted, **entry["request"])
        assert (answer.texts(), answer.fingerprint) == (entry["texts"], entry["fingerprint"])
