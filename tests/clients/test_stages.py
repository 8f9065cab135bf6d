"""A model over several workers answers what one worker answers, to the byte, whoever of them dies: with real processes."""

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from adapters import wait_for_state
from contract import chunks, collect, events, refused, same, streamed, whole
from hosts import Asked
from servers import GOLDEN, Process, Server, binary, free_port, real_model
from test_cluster_script import rows

TINY = GOLDEN / "tiny/gguf/tiny-q4_1.gguf"
# They change all layers' queries and values, and all linear layers; the real ones were trained for a style.
TINY_ADAPTERS = [GOLDEN / "tiny" / name for name in ("tiny-qv", "tiny-all")]
REAL_ADAPTERS = [GOLDEN / "adapters" / name for name in ("pirate", "json")]
# First layer and one past the last, by number of stages.
TINY_CUTS = {1: [4], 2: [1, 4], 3: [1, 3, 4]}
REAL_CUTS = {1: [30], 2: [13, 30], 3: [7, 19, 30]}

# Between them: every way to sample, every form of answer.
REQUESTS = [
    {"prompt": "The sea is", "max_tokens": 12, "temperature": 0},
    {"prompt": "The sea is", "max_tokens": 12, "seed": 7, "temperature": 0.9, "logprobs": 3},
    {"prompt": ["One day", "In the end"], "n": 2, "best_of": 3, "max_tokens": 6, "seed": 8, "top_p": 0.95},
    {"prompt": "a long prompt " * 20, "max_tokens": 6, "seed": 9, "echo": True, "logprobs": 1, "repetition_penalty": 1.3},
]


def ranges(cuts):
    return list(zip([0, *cuts], cuts))


def replica(names, cuts):
    stages = (f'{{ worker = "{name}", layers = [{begin}, {end}] }}' for name, (begin, end) in zip(names, ranges(cuts), strict=True))
    return f"[[replica]]\nstages = [{', '.join(stages)}]\n"


def model(name, path):
    return f'[[model]]\nname = "{name}"\npath = "{path}"\n'


def worker(name, hosted, **more):
    text = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[[worker]]\nname = "{name}"\nmodel = "{hosted}"\nthreads = 1\nkv_tokens = 4096\n{text}'


def adapter(name, source, hosted):
    return f'[[adapter]]\nname = "{name}"\npath = "{source}"\nmodel = "{hosted}"\n'


def side_by_side(directory, path, cuts, adapters=()):
    """`shoal dev` with the model whole and in every number of stages, each under a name of its own; an adapter's name ends
    with that of its model."""
    text = model("whole", path) + worker("whole", "whole")
    for count, cut in cuts.items():
        names = [f"w{count}-{at}" for at in range(count)]
        text += model(f"in-{count}", path) + "".join(worker(name, f"in-{count}") for name in names) + replica(names, cut)
    models = ["whole", *(f"in-{count}" for count in cuts)]
    text += "".join(adapter(f"{source.name}-{hosted}", source, hosted) for source in adapters for hosted in models)
    config = directory / "cluster.toml"
    config.write_text("[cluster.timers]\nidle_ms = 10000\nconnect_ms = 10000\n" + text)
    return Server.dev(directory, "--config", config)


@pytest.mark.parametrize("weights", ["tiny", "real"])
def test_in_any_number_of_stages_the_bytes_are_those_of_the_whole(weights, tmp_path):
    path, cuts = (TINY, TINY_CUTS) if weights == "tiny" else (real_model(), REAL_CUTS)
    server = side_by_side(tmp_path, path, cuts)
    for body in REQUESTS:
        expected = whole(server, **{**body, "model": "whole"})
        for count in cuts:
            asked = {**body, "model": f"in-{count}"}
            assert same(whole(server, **asked), expected), asked
            assert same(streamed(server, **asked), expected), asked
    heads = {one["name"]: one for one in server.http.get("/v1/cluster").json()["workers"]}
    assert heads.keys() == {"whole", "w1-0", "w2-0", "w3-0"}, "a stage joins no router"
    assert heads["whole"]["stages"] == []
    assert [stage["layers"] for stage in heads["w3-0"]["stages"]] == [list(bounds) for bounds in ranges(cuts[3])]
    assert {stage["state"] for stage in heads["w3-0"]["stages"]} == {"connected"}
    assert heads["w3-0"]["model"]["layers"] == [0, cuts[3][-1]]
    server.wait_until("steps of a stage", lambda: server.metric("shoal_stage_steps", 'stage="w3-2"') > 0)
    assert server.metric("shoal_stage_connected", 'worker="w3-0"') == 3
    server.stop()


@pytest.mark.parametrize("weights", ["tiny", "real"])
def test_adapters_on_stages_answer_as_on_the_whole_to_the_byte_alone_and_in_a_crowd(weights, tmp_path):
    path, cuts, adapters = (TINY, TINY_CUTS, TINY_ADAPTERS) if weights == "tiny" else (real_model(), REAL_CUTS, REAL_ADAPTERS)
    server = side_by_side(tmp_path, path, cuts, adapters)
    for source in adapters:
        for hosted in ("whole", *(f"in-{count}" for count in cuts)):
            wait_for_state(server, f"{source.name}-{hosted}")

    def bodies(hosted):
        names = [{}, *({"peft": f"{source.name}-{hosted}"} for source in adapters)]
        return [{**body, **name, "model": hosted} for body in REQUESTS for name in names]

    with concurrent.futures.ThreadPoolExecutor(len(bodies("whole"))) as pool:
        expected = [whole(server, **body) for body in bodies("whole")]
        base, *others = (answer.choices for answer in expected[: len(adapters) + 1])
        assert base not in others, "an adapter changes nothing"
        for count in cuts:
            for ask in (whole, streamed):
                answers = pool.map(lambda body, ask=ask: ask(server, **body), bodies(f"in-{count}"))
                for body, answer, one in zip(bodies(f"in-{count}"), answers, expected, strict=True):
                    assert same(answer, one), body
    server.stop()


def test_an_adapter_that_a_stage_cannot_have_fails_alone(cluster):
    cluster = cluster(TINY, ["alpha", "beta"], TINY_CUTS[2], solo=False, adapters=TINY_ADAPTERS, beta={"adapter_bytes": 16000})
    cluster.await_state("alpha", "ready")
    for source in TINY_ADAPTERS:
        wait_for_state(cluster, source.name)
    body = {"prompt": "once", "max_tokens": 8, "seed": 3, "ignore_eos": True}
    assert refused(cluster, 503, **body, peft="tiny-all")["code"] == "adapter_unavailable"
    small = whole(cluster, **body, peft="tiny-qv")
    assert small.choices != whole(cluster, **body).choices
    refused(cluster, 503, **body, peft="tiny-all")
    cluster.stop()


class Cluster(Server):
    """A router and workers as processes of their own; each can be killed and started again."""

    def __init__(self, directory, path, stages, cuts, solo=True, adapters=(), within={}, idle_ms=20_000, **settings):
        """`settings` are a worker's beside what all have, `within` a command that runs it somewhere else, by its name."""
        self.directory, self.started, self.within = directory, {}, within
        self.names = [*stages, *(["solo"] if solo else [])]
        self.config = directory / "cluster.toml"
        url = f"127.0.0.1:{free_port()}"
        # What a process leaves behind tells of its death at once, but for a machine that is too busy.
        more = f'[cluster]\npki = "pki"\n[cluster.timers]\nidle_ms = {idle_ms}\nconnect_ms = 4000\ndrain_ms = 5000\n'
        more += f'[router]\nlisten = "{url}"\nquic = "127.0.0.1:{free_port(socket.SOCK_DGRAM)}"\ndata_dir = "data"\n'
        listen = [f'"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"' for _ in stages]
        parts = [worker(name, "m", stage_listen=at, **settings.get(name, {})) for name, at in zip(stages, listen, strict=True)]
        text = more + model("m", path) + "".join(parts) + replica(stages, cuts)
        text += "".join(adapter(source.name, source, "m") for source in adapters)
        self.config.write_text(text + (worker("solo", "m") if solo else ""))
        self.certify()
        self.router = Process(directory / "router", "router", "--config", self.config)
        for name in self.names:
            self.begin(name)
        try:
            super().__init__(f"http://{url}", self.router)
        except BaseException:
            self.kill_all()
            raise

    def certify(self):
        def cert(*arguments):
            subprocess.run([binary(), "cert", *map(str, arguments)], check=True, capture_output=True)

        cert("init", "--dir", self.directory / "pki", "--cluster", "shoal")
        for role, name in [("router", "router"), *(("worker", name) for name in self.names)]:
            cert("issue", "--dir", self.directory / "pki", "--role", role, "--name", name)

    def begin(self, name, config=None):
        arguments = ["worker", "--config", config or self.config, "--name", name]
        self.started[name] = Process(self.directory / name, *arguments, within=self.within.get(name, ()))

    def kill(self, name):
        self.started[name].child.kill()
        self.started.pop(name).child.wait()

    def worker(self, name):
        return next((one for one in self.http.get("/v1/cluster").json()["workers"] if one["name"] == name), None)

    def await_state(self, name, state):
        self.wait_until(f"{name} {state}", lambda: (self.worker(name) or {}).get("state") == state)

    def order(self, name, order):
        assert self.http.post(f"/v1/cluster/workers/{name}/{order}").status_code == 200
        self.await_state(name, {"drain": "drained", "undrain": "ready"}[order])

    def kill_all(self):
        for process in [*self.started.values(), self.router]:
            process.child.kill()

    def stop(self):
        """The router first, then the head, then the other stages: what runs needs them."""
        self.processes = (self.router, *self.started.values())
        super().stop()


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(*arguments, **more):
        made.append(Cluster(tmp_path, *arguments, **more))
        return made[-1]

    yield make
    for one in made:
        one.kill_all()


LONG = {"prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": True, "seed": 3, "n": 2, "logprobs": 1}


@pytest.mark.parametrize("peft", [None, "pirate"])
def test_whoever_dies_in_the_middle_of_a_stream_the_client_gets_the_bytes_of_the_undisturbed_run(cluster, peft):
    stages = ["alpha", "beta", "gamma"]
    cluster = cluster(real_model(), stages, REAL_CUTS[3], adapters=REAL_ADAPTERS)
    cluster.await_state("solo", "ready")
    body = {"model": "m", **LONG} | ({"peft": peft} if peft else {})
    if peft:
        wait_for_state(cluster, peft)
    expected = whole(cluster, **body)
    short = body | {"max_tokens": 40}
    expected_short = whole(cluster, **short)
    for victim in stages:
        cluster.await_state("alpha", "ready")
        # So that it runs on the replica.
        cluster.order("solo", "drain")
        replays = cluster.metric("shoal_replays_total")
        with cluster.http.stream("POST", "/v1/completions", json={"stream": True, **body}) as response:
            documents, arriving = [], chunks(response)
            while len(documents) < 20:
                documents.append(next(arriving))
            assert cluster.worker("alpha")["outstanding_tokens"] > 0
            cluster.order("solo", "undrain")
            cluster.kill(victim)
            documents += arriving
        assert same(collect(documents, response.headers), expected), victim
        assert cluster.metric("shoal_replays_total") > replays, f"nothing ran on {victim}"
        if victim != "alpha":
            cluster.await_state("alpha", "incomplete")
            away = {one["worker"]: one["state"] for one in cluster.worker("alpha")["stages"]}[victim]
            assert away == "away"
        cluster.begin(victim)
        cluster.await_state("alpha", "ready")
        cluster.order("solo", "drain")
        assert same(streamed(cluster, **short), expected_short), f"after {victim} came back"
        cluster.order("solo", "undrain")
    cluster.stop()


def test_without_another_replica_nothing_is_served_until_the_stage_is_back_and_no_cut_answer_looks_whole(cluster):
    cluster = cluster(real_model(), ["alpha", "beta"], REAL_CUTS[2], solo=False)
    cluster.await_state("alpha", "ready")
    expected = whole(cluster, **LONG)
    with cluster.http.stream("POST", "/v1/completions", json={"model": "m", "stream": True, **LONG}) as response:
        arriving = events(response.iter_lines())
        for _ in range(20):
            next(arriving)
        cluster.kill("beta")
        rest = list(arriving)
    assert rest[-1] == "[DONE]" and '"error"' in rest[-2], rest[-3:]
    assert '"finish_reason":"cancelled"' in "".join(rest) and '"finish_reason":"length"' not in "".join(rest)
    cluster.await_state("alpha", "incomplete")
    for _ in range(3):
        response = cluster.http.post("/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 4})
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1, response.text
    assert cluster.http.get("/readyz").status_code == 503
    cluster.begin("beta")
    cluster.await_state("alpha", "ready")
    assert same(whole(cluster, **LONG), expected)
    cluster.stop()


@pytest.mark.alone
def test_a_head_hears_of_its_stage_s_death_though_its_silence_would_be_borne_for_ten_minutes(cluster):
    # What is left behind of it tells the head, or this would take longer than `await_state` waits.
    cluster = cluster(TINY, ["alpha", "beta"], TINY_CUTS[2], solo=False, idle_ms=600_000)
    cluster.await_state("alpha", "ready")
    expected = whole(cluster, prompt="once", max_tokens=20, seed=3)
    cluster.kill("beta")
    cluster.await_state("alpha", "incomplete")
    cluster.begin("beta")
    cluster.await_state("alpha", "ready")
    assert same(whole(cluster, prompt="once", max_tokens=20, seed=3), expected)
    cluster.stop()


def test_a_stage_with_other_weights_is_refused_and_everybody_can_read_why(cluster, tmp_path):
    cluster = cluster(TINY, ["alpha", "beta"], TINY_CUTS[2], solo=False)
    cluster.await_state("alpha", "ready")
    other = tmp_path / "other.toml"
    other.write_text(cluster.config.read_text().replace("tiny-q4_1", "tiny-q8_0"))
    cluster.kill("beta")
    cluster.begin("beta", other)
    why = lambda: cluster.worker("alpha")["stages"][1]["reason"] or ""
    cluster.wait_until("the refusal", lambda: "the stage has the weights" in why())
    assert cluster.worker("alpha")["state"] == "incomplete"
    assert refused(cluster, 503, prompt="x")["error"]["type"]
    status = subprocess.run([binary(), "status", "--url", cluster.url], capture_output=True, text=True, check=True).stdout
    assert re.search(r"beta is away: the stage refuses: the stage has the weights", status), status
    cluster.kill("beta")
    cluster.begin("beta")
    cluster.await_state("alpha", "ready")
    cluster.stop()


def test_a_replica_on_several_hosts_comes_up_is_rolled_under_load_and_goes_down(lab):
    lab = lab({"alpha": None, "beta": "gpu1", "solo": None})
    lab.host("gpu1")
    listen = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    text = lab.config.read_text().split("[[model]]")[0] + model("scripted", TINY)
    for name in ("alpha", "beta", "solo"):
        more = {"stage_listen": f'"{listen}"', "host": '"gpu1"', "routers": f'["127.0.0.1:{lab.quic}"]'} if name == "beta" else {}
        text += worker(name, "scripted", **more)
    stages = replica(["alpha", "beta"], TINY_CUTS[2]).replace("[1, 4]", f'[1, 4], address = "{listen}"')
    lab.config.write_text(text + stages)
    table = rows(lab.run("up"))
    assert [table[name]["STATE"] for name in ("alpha", "beta", "solo")] == ["ready", "connected", "ready"]
    assert (table["alpha"]["LAYERS"], table["beta"]["LAYERS"]) == ("0-3", "1-3")
    body = {"prompt": "once", "max_tokens": 20, "seed": 3, "ignore_eos": True}
    expected = whole(Asked(lab), **body)
    faults, enough = [], threading.Event()

    def client():
        while not enough.is_set():
            try:
                if not same(streamed(Asked(lab), **body), expected):
                    faults.append("another answer")
            except Exception as error:
                faults.append(repr(error))

    asking = threading.Thread(target=client)
    asking.start()
    before = {"alpha": lab.pid("alpha"), "beta": lab.pid("beta", "gpu1")}
    try:
        said = lab.run("roll", "alpha", "beta", "solo")
        assert "rolled: alpha beta solo" in said
        assert before["alpha"] != lab.pid("alpha") and before["beta"] != lab.pid("beta", "gpu1")
        middle = lab.pid("alpha")
        lab.run("roll", "beta")
    finally:
        enough.set()
        asking.join()
    assert faults == []
    assert lab.pid("alpha") == middle, "the head was started again for its stage"
    assert rows(lab.run("status"))["alpha"]["STATE"] == "ready"
    os.kill(lab.pid("beta", "gpu1"), signal.SIGKILL)
    Asked(lab)
    assert "stopped" in lab.run("status", expect=1) or "stale" in lab.run("status", expect=1)
    lab.run("down")
    lab.nothing_is_left()
