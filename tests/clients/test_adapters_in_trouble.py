"""Adapters while things go wrong: replaced under load, a worker or a router killed in the middle of a load, a full disk, a
file that rots. What happens to one adapter stays its own matter, and no answer is ever a mixture."""

import concurrent.futures
import contextlib
import itertools
import os
import resource
import signal
import subprocess
import threading
import time

import httpx
import pytest

from adapters import TINY, document, header, lora, random_adapter, upload, wait_for_generation, wait_for_state
from contract import same, streamed, whole
from servers import START_SECONDS, Process, Server, real_model

ASK = {"prompt": "The light came round", "max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 1}
MODEL = '[[model]]\nname = "{name}"\npath = "{path}"\n'
WORKER = '[[worker]]\nname = "{name}"\ndata_dir = "{directory}"\nthreads = 1\nadapter_bytes = 1000000000\n{more}'
SMOLLM2 = (576, 576, 192, 1536, 30)


def cluster(directory, path, workers, more=""):
    """Processes of their own for a model; the workers' files are in `directory`/NAME/data."""

    def write(sections):
        text = sections + MODEL.format(name="m", path=path)
        for name in workers:
            text += WORKER.format(name=name, directory=directory / name / "data", more=more)
        config = directory / "cluster.toml"
        config.write_text(text)
        return config

    server = Server.cluster(directory, *workers, write=write)
    server.wait_until("all workers", lambda: len(server.workers()) == len(workers))
    return server


@pytest.fixture
def serve(tmp_path):
    """Makes clusters; ends them whatever happens."""
    made = []

    def make(path, workers, more=""):
        made.append(cluster(tmp_path, path, workers, more))
        return made[-1]

    yield make
    for server in made:
        for process in server.processes:
            process.child.kill()


def logprobs(answer):
    return answer.choices[0].logprobs["token_logprobs"]


def files_of(server, worker, ending="adapter"):
    return list((server.directory / worker / "data/adapters").glob(f"*.{ending}"))


@pytest.mark.parametrize("how", ["uploaded", "moved into the watched directory"])
def test_while_an_adapter_is_replaced_every_answer_is_wholly_old_or_wholly_new_and_says_which(tmp_path, how):
    contents = [random_adapter(tmp_path / f"content-{number}", number) for number in range(3)]
    lying = tmp_path / "lying"
    lying.mkdir()
    server = Server.dev(tmp_path, "--model", TINY, "--workers", "2", "--adapters", lying)
    bodies = [
        {**ASK, "max_tokens": 60, "peft": "turning"},
        {**ASK, "max_tokens": 40, "model": "turning", "temperature": 1.2, "seed": 3, "n": 2},
        {**ASK, "max_tokens": 3, "model": "turning", "logprobs": None, "echo": True},
    ]
    made = itertools.count()

    def point_at(content):
        """Points the name at a content; its generation."""
        if how == "uploaded":
            return upload(server, "turning", content)["generation"]
        before = document(server, "turning")
        ready = lying / f".{next(made)}"
        ready.symlink_to(content)
        ready.rename(lying / "turning")
        if before:
            return wait_for_generation(server, "turning", before["generation"])["generation"]
        return wait_for_state(server, "turning")["generation"]

    recorded = {point_at(content): [whole(server, **body) for body in bodies] for content in contents}
    assert len(recorded) == 3 and len({answers[0].text for answers in recorded.values()}) == 3
    over, seen, turns = threading.Event(), [], 12 if how == "uploaded" else 3

    def client(number):
        for turn in itertools.count(number):
            if over.is_set():
                return
            body = bodies[turn % len(bodies)]
            answer = (whole, streamed)[turn % 2](server, **body)
            name, short = answer.headers["x-shoal-adapter"].split("@")
            (generation,) = [known for known in recorded if known.startswith(short)]
            assert name == "turning"
            assert same(answer, recorded[generation][turn % len(bodies)]), f"a mixture, or another's answer: {body}"
            seen.append(generation)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, number) for number in range(6)]
        try:
            for turn in range(turns):
                generation = point_at(contents[turn % 3])
                before = len(seen)
                # Who comes after the word that it is replaced has the new one.
                assert whole(server, **ASK, peft="turning").headers["x-shoal-adapter"] == f"turning@{generation[:12]}"
                server.wait_until("traffic on it", lambda: len(seen) > before + 6 or any(one.done() for one in clients))
        finally:
            over.set()
    for one in clients:
        one.result()
    assert set(seen) == set(recorded)
    server.stop()


def big_adapter(directory, seed):
    """One whose fetch takes long enough to be met in the middle: 39 MB."""
    return lora.write(directory, SMOLLM2, seed, rank=32, upper=lora.SMALL, dtype="F32")


def freeze_in_a_fetch(server, workers):
    """Stops the first of `workers` that has begun to write a file, in the middle of it; its name."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for worker in workers:
            if files_of(server, worker, "part"):
                os.kill(server.parts[worker].pid, signal.SIGSTOP)
                assert files_of(server, worker, "part"), "the fetch was over before it could be met"
                return worker
    raise AssertionError("no fetch began")


@pytest.mark.alone
def test_a_worker_that_is_killed_in_the_middle_of_a_load_costs_nobody_his_answer(serve, tmp_path):
    server = serve(real_model(), ("alpha", "beta"))
    upload(server, "big", big_adapter(tmp_path / "big", 1))
    ask = {**ASK, "max_tokens": 24}
    expected = whole(server, **ask)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        base = [pool.submit(streamed, server, **ask) for _ in range(4)]
        waiting = [pool.submit((whole, streamed)[number % 2], server, **ask, peft="big") for number in range(8)]
        killed = freeze_in_a_fetch(server, ("alpha", "beta"))
        server.kill(killed)
        answers = [one.result() for one in waiting]
        assert all(same(one.result(), expected) for one in base)
    assert files_of(server, killed, "part"), "it was killed in the middle"
    said = document(server, "big")
    assert all(answer.headers["x-shoal-adapter"] == header(said) for answer in answers)
    assert all(same(answer, answers[0]) for answer in answers) and logprobs(answers[0]) != logprobs(expected)

    # The one that comes back begins anew, and computes the same.
    server.start(killed)
    assert not files_of(server, killed, "part")
    (other,) = {"alpha", "beta"} - {killed}
    assert server.http.post(f"/v1/cluster/workers/{other}/drain").status_code == 200
    assert same(whole(server, **ask, peft="big"), answers[0])
    assert len(files_of(server, killed)) == 1
    server.stop()


@pytest.mark.alone
def test_a_router_that_is_killed_in_the_middle_of_a_load_finds_its_adapters_again(serve, tmp_path):
    server = serve(real_model(), ("alpha",))
    said = upload(server, "big", big_adapter(tmp_path / "big", 2))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(whole, server, **ASK, peft="big") for _ in range(2)]
        worker = freeze_in_a_fetch(server, ("alpha",))
        server.kill("router")
        os.kill(server.parts[worker].pid, signal.SIGCONT)
        for one in waiting:
            with pytest.raises(httpx.TransportError):
                one.result()
    server.start("router")
    assert document(server, "big")["generation"] == said["generation"]
    answer = whole(server, **ASK, peft="big")
    assert answer.headers["x-shoal-adapter"] == header(said)
    assert same(streamed(server, **ASK, peft="big"), answer)
    assert logprobs(answer) != logprobs(whole(server, **ASK))
    assert not files_of(server, "alpha", "part") and len(files_of(server, "alpha")) == 1
    server.stop()


def a_limit_on_files(server):
    """No file of the worker grows beyond a megabyte, until the limit is taken away."""
    pid = server.parts["alpha"].pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def a_small_file_system(server):
    """The worker's directory is a file system of a megabyte, until it is made larger."""
    place = server.directory / "alpha/data"
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a file system")
    return lambda: subprocess.run(["mount", "-o", "remount,size=100m", place], check=True)


@contextlib.contextmanager
def unmounted_in_the_end(place):
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


@pytest.mark.parametrize("full", [a_limit_on_files, a_small_file_system])
def test_a_full_disk_fails_only_who_waits_for_what_does_not_fit_until_there_is_room(serve, tmp_path, full, monkeypatch):
    if full is a_limit_on_files:
        # The worker is to see the error, not to die of the signal.
        monkeypatch.setattr(Process, "ignored_signals", (signal.SIGXFSZ,), raising=True)
    server = serve(real_model(), ("alpha",))
    with unmounted_in_the_end(server.directory / "alpha/data"):
        make_room = full(server)
        upload(server, "small", lora.write(tmp_path / "small", SMOLLM2, 3, rank=1, targets=("q_proj",), upper=lora.MIDDLE))
        upload(server, "large", lora.write(tmp_path / "large", SMOLLM2, 4, rank=8, targets=("q_proj", "v_proj"), upper=lora.MIDDLE))
        assert (tmp_path / "small" / lora.WEIGHTS).stat().st_size < 300_000
        assert (tmp_path / "large" / lora.WEIGHTS).stat().st_size > 1_500_000
        base, small = whole(server, **ASK), whole(server, **ASK, peft="small")
        assert logprobs(base) != logprobs(small)

        def fails():
            response = server.http.post("/v1/completions", json={"model": "m", **ASK, "peft": "large"})
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (503, "adapter_unavailable"), response.text
            assert int(response.headers["retry-after"]) >= 1

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            running = [pool.submit(streamed, server, **{**ASK, "max_tokens": 200}, **more) for more in ({}, {"peft": "small"})]
            failing = [pool.submit(fails) for _ in range(4)]
            beside = [pool.submit(whole, server, **ASK, **more) for more in ({}, {"peft": "small"}) * 3]
            for one in failing:
                one.result()
            for one, expected in zip(beside, itertools.cycle((base, small))):
                assert same(one.result(), expected)
            assert all(one.result().choices[0].finish == "length" for one in running)
        assert "the disk is full" in server.parts["alpha"].log()
        assert not files_of(server, "alpha", "part")
        assert document(server, "large")["state"] == "ready", "nothing is wrong with it"

        make_room()

        def works():
            response = server.http.post("/v1/completions", json={"model": "m", **ASK, "peft": "large"})
            return response.status_code == 200 and response

        response = server.wait_until("the adapter once there is room", works)
        assert response.headers["x-shoal-adapter"] == header(document(server, "large"))
        large = whole(server, **ASK, peft="large")
        assert logprobs(large) == response.json()["choices"][0]["logprobs"]["token_logprobs"]
        assert logprobs(large) not in (logprobs(base), logprobs(small))
        server.stop()


def test_a_file_that_rots_on_the_worker_s_disk_is_refused_and_fetched_again(serve, tmp_path):
    server = serve(TINY, ("alpha",), more="adapter_slots = 1\n")
    names = ("rotting", "other")
    said = {name: upload(server, name, random_adapter(tmp_path / name, seed)) for seed, name in enumerate(names)}
    before = {name: whole(server, **ASK, peft=name) for name in names}
    # There is one slot, and `other` has it: `rotting` is on disk alone.
    file = server.directory / f"alpha/data/adapters/{said['rotting']['generation']}.adapter"
    good = file.read_bytes()
    for damage in (good[:-5] + bytes([good[-5] ^ 1]) + good[-4:], good[: len(good) // 2], b""):
        file.write_bytes(damage)
        assert same(whole(server, **ASK, peft="rotting"), before["rotting"])
        assert file.read_bytes() == good
        assert same(whole(server, **ASK, peft="other"), before["other"])
    file.unlink()
    assert same(whole(server, **ASK, peft="rotting"), before["rotting"])
    assert server.parts["alpha"].log().count("an adapter file cannot be used") == 4
    server.stop()
