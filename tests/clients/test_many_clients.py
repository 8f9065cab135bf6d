"""Many clients at once, clients that leave and clients that do not read."""

import concurrent.futures
import json
import socket
import threading

import pytest

from contract import chunks, collect, same, streamed, whole
from servers import Server, scripted_config

STREAMS = 64


def mixed(number):
    """Request `number`: prompts lists, n and best_of in turn."""
    prompts = [f"stream {number} prompt {k}" for k in range(1 + number % 3)]
    n = 1 + number % 4
    body = {"prompt": prompts, "n": n, "max_tokens": 12 + number % 20, "seed": number}
    if number % 5 == 0:
        body["best_of"] = n + 2
    if number % 7 == 0:
        body["logprobs"] = 2
    return body


def idle(server):
    return server.metric("shoal_worker_sequences_running") == 0 and server.metric("shoal_worker_groups_waiting") == 0


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Steps of 10 ms and room for every sequence of 64 streams; who reads nothing for 2 s is cut."""
    directory = tmp_path_factory.mktemp("slow")
    config = scripted_config(directory, step_ms=10, slots=256, more="[limits]\nslow_reader_ms = 2000\n")
    server = Server.dev(directory, "--config", config)
    yield server
    server.stop()


def test_64_streams_at_once_each_answer_as_if_alone(scripted):
    alone = [whole(scripted, **mixed(number)) for number in range(STREAMS)]
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        crowd = list(pool.map(lambda number: streamed(scripted, **mixed(number)), range(STREAMS)))
    for number, (found, expected) in enumerate(zip(crowd, alone, strict=True)):
        assert same(found, expected), f"stream {number}"
        count = len(mixed(number)["prompt"]) * mixed(number)["n"]
        assert sorted(found.choices) == list(range(count))


def test_nobody_starves_and_who_leaves_frees_its_sequences(slow):
    """64 streams of 4,000 tokens, of which each leaves when all have had 10: had one to wait for another's end, it would
    never get them. Then nothing may run on, though most of the work is not done."""
    served = threading.Barrier(STREAMS, timeout=100)
    before = slow.metric("shoal_worker_tokens_total")

    def stream(number):
        body = {"model": slow.model, "stream": True, "max_tokens": 4000, "ignore_eos": True, "n": 1 + number % 3}
        body |= {"prompt": f"starving {number}", "seed": number}
        with slow.http.stream("POST", "/v1/completions", json=body) as response:
            arriving = chunks(response)
            seen = [next(arriving) for _ in range(10 * body["n"])]
            served.wait()
            return {chunk["choices"][0]["index"] for chunk in seen}

    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        indexes = list(pool.map(stream, range(STREAMS)))
    assert indexes == [set(range(1 + number % 3)) for number in range(STREAMS)]
    slow.wait_until("end of the abandoned sequences", lambda: idle(slow))
    assert slow.metric("shoal_worker_tokens_total") - before < STREAMS * 2000, "they ran to their end"


def test_a_client_that_leaves_before_its_whole_answer_frees_its_sequences(slow):
    body = json.dumps({"model": slow.model, "max_tokens": 4000, "ignore_eos": True, "n": 4, "prompt": "x"}).encode()
    with raw_request(slow, body):
        slow.wait_until("start of the sequences", lambda: slow.metric("shoal_worker_sequences_running") == 4)
    slow.wait_until("end of the abandoned sequences", lambda: idle(slow))


def raw_request(server, body):
    """An open connection on which a request was sent; the smallest receive buffer there is."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    host, port = server.url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    connection.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_a_reader_of_a_byte_a_second_costs_bounded_memory_and_stalls_nobody(slow):
    """Its answer would be some 100 MB. It is cut in the end, which frees what it held."""
    process = slow.processes[0]
    whole(slow, prompt="warm", max_tokens=4, n=16, logprobs=20)
    before = process.memory()
    body = {"model": slow.model, "stream": True, "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "n": 16, "logprobs": 20}
    peak = before
    expected = whole(slow, prompt="beside", max_tokens=64, seed=1)
    with raw_request(slow, json.dumps(body).encode()) as reader:
        reader.settimeout(60)

        def cut():
            nonlocal peak
            peak = max(peak, process.memory())
            assert reader.recv(1) != b"", "cut before the server had given up on it"
            assert same(streamed(slow, prompt="beside", max_tokens=64, seed=1), expected)
            return idle(slow)

        slow.wait_until("the slow reader to be cut", cut)
    print(f"memory grew by {(peak - before) >> 10} kB")
    assert peak - before < 32 << 20


def test_the_load_is_told_worker_by_worker_and_explained(scripted):
    whole(scripted, prompt="x", max_tokens=1)
    text = scripted.http.get("/metrics").text
    assert 'shoal_worker_sequences_running{worker="' in text
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    explained = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert named and named <= explained, named - explained
    assert "shoal_request_seconds_bucket" in text, "quantiles of several routers cannot be added up"
