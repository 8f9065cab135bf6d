"""The life of a cluster as its operator sees it: scripts/cluster with real processes, on this machine and on stand-in hosts."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

from contract import chunks, collect, same, whole
from hosts import Asked
from servers import ROOT, real_model


def rows(table):
    """The table of `up` and `status`, by name."""
    lines = table.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("NAME "))
    columns = [(match.group(), match.start()) for match in re.finditer(r"\S+", lines[head])]
    bounds = [start for _, start in columns[1:]] + [None]
    found = {}
    for line in lines[head + 1 :]:
        cells = {name: line[start:end].strip() for (name, start), end in zip(columns, bounds, strict=True)}
        if cells["ROLE"] in ("router", "worker"):
            found[cells["NAME"]] = cells
    return found


class Load:
    """Clients that ask again and again, each answer checked against the one that a server at rest gives."""

    CLIENTS = 6

    def __init__(self, lab, scripted, patient=False):
        self.server, self.patient = Asked(lab), patient
        bodies = [{"prompt": f"rolled {k}", "n": 1 + k % 2, "max_tokens": 30 + k, "ignore_eos": True, "seed": k} for k in range(12)]
        self.cases = [(body, whole(scripted, **body)) for body in bodies]
        self.enough, self.answers, self.faults, self.turned_away = threading.Event(), 0, [], 0
        self.threads = [threading.Thread(target=self.client, args=(k,)) for k in range(self.CLIENTS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.enough.set()
        for thread in self.threads:
            thread.join()

    def client(self, number):
        while not self.enough.is_set():
            body, expected = self.cases[number % len(self.cases)]
            try:
                answer = self.ask(body)
                if not same(answer, expected):
                    self.faults.append(f"another answer to {body}")
                self.answers += 1
            except Exception as error:
                self.faults.append(f"{type(error).__name__}: {error}")
            number += self.CLIENTS

    def ask(self, body):
        body = {"model": "scripted", "stream": True, **body}
        while True:
            begun = False
            try:
                with self.server.http as http, http.stream("POST", "/v1/completions", json=body) as response:
                    if response.status_code == 503 and self.patient:
                        assert int(response.headers["retry-after"]) >= 1
                        raise httpx.ConnectError("told to come back")
                    assert response.status_code == 200, response.read()
                    begun = True
                    return collect(list(chunks(response)), response.headers)
            except httpx.TransportError:
                # Where the router itself is started again, clients that were not served yet come back, as their libraries do.
                if begun or not self.patient:
                    raise
                self.turned_away += 1
                time.sleep(0.05)


def test_help_teaches_every_command():
    said = subprocess.run([ROOT / "scripts/cluster", "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("up", "status", "logs", "roll", "down", "--config", "--binary", "--systemd", "--within", "Examples:"):
        assert re.search(rf"(^|\s){word}\b", said) or word in said, word
    for wrong in (["sideways"], ["up", "--nothing"], ["up", "--within", "soon"], ["up", "--binary", "x"]):
        done = subprocess.run([ROOT / "scripts/cluster", *wrong], capture_output=True, text=True)
        assert done.returncode == 2 and "--help" in done.stderr, wrong


def test_a_cluster_comes_up_serves_and_goes_down_without_a_trace(lab, scripted):
    lab = lab()
    table = rows(lab.run("up"))
    assert list(table) == ["router", "alpha", "beta", "org/gamma"]
    assert {row["PROCESS"] for row in table.values()} == {"running"}
    assert [table[name]["STATE"] for name in table] == ["answers", "ready", "ready", "ready"]
    body = {"prompt": "once up", "max_tokens": 20, "seed": 3}
    assert same(whole(Asked(lab), **body), whole(scripted, **body))

    pids = {part: lab.pid(part) for part in ("router", "alpha", "beta", "org%2Fgamma")}
    lab.run("up")
    assert pids == {part: lab.pid(part) for part in pids}, "what ran was not left alone"
    status = rows(lab.run("status"))
    assert all(status[part.replace("%2F", "/")]["PID"] == str(pid) for part, pid in pids.items())
    assert "welcomed by a router" in lab.run("logs", "org/gamma")
    assert "alpha | " in lab.run("logs", "-n", "1") and "router | " in lab.run("logs")

    lab.run("down")
    lab.nothing_is_left()
    assert lab.run("status", expect=1).count("stopped") == 4
    lab.run("down")


def test_workers_are_rolled_under_load_and_nobody_notices(lab, scripted):
    lab = lab()
    lab.run("up")
    before = {part: lab.pid(part) for part in ("alpha", "beta", "org%2Fgamma")}
    with Load(lab, scripted) as load:
        said = lab.run("roll", "alpha", "beta", "org/gamma")
    assert load.faults == [] and load.answers > Load.CLIENTS, load.answers
    assert "rolled: alpha beta org/gamma" in said
    after = {part: lab.pid(part) for part in before}
    assert not set(before.values()) & set(after.values()), "a worker was not started again"
    # A counter that was never counted up is not there.
    metrics = Asked(lab).http.get("/metrics").text
    assert "shoal_route_total" in metrics and "shoal_replays_total{" not in metrics and "\nshoal_replays_total " not in metrics
    lab.run("down")
    lab.nothing_is_left()


def test_the_router_is_rolled_last_and_cuts_no_answer(lab, scripted):
    lab = lab()
    lab.run("up")
    router = lab.pid("router")
    with Load(lab, scripted, patient=True) as load:
        said = lab.run("roll")
    assert load.faults == [] and load.answers > Load.CLIENTS
    assert said.index("org/gamma: started") < said.index("router: stopping")
    assert lab.pid("router") != router
    assert {row["STATE"] for row in rows(lab.run("status")).values()} == {"answers", "ready"}
    lab.run("down")


def test_a_process_that_died_is_noticed_and_a_stranger_with_its_number_is_let_alone(lab):
    lab = lab({"alpha": None})
    lab.run("up")
    os.kill(lab.pid("alpha"), signal.SIGKILL)
    assert rows(lab.run("status", expect=1))["alpha"]["PROCESS"] == "stale"
    # Its number now belongs to somebody else, such as this test's own child.
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        file = lab.place() / "run/alpha.pid"
        file.write_text(" ".join([str(stranger.pid), *file.read_text().split()[1:]]) + "\n")
        assert rows(lab.run("status", expect=1))["alpha"]["PROCESS"] == "stale"
        said = lab.run("up")
        assert "alpha ended without being told to" in said and rows(said)["alpha"]["STATE"] == "ready"
        assert lab.pid("alpha") != stranger.pid
        file.write_text(" ".join([str(stranger.pid), *file.read_text().split()[1:]]) + "\n")
        lab.run("down")
        assert stranger.poll() is None, "a stranger was stopped"
    finally:
        stranger.kill()
        stranger.wait()


def test_a_roll_stops_at_the_first_worker_that_does_not_come_back(lab):
    lab = lab()
    lab.run("up")
    kept = {part: lab.pid(part) for part in ("beta", "org%2Fgamma", "router")}
    # Another model under the same name: it is refused as long as the others serve the old one.
    lab.config.write_text(lab.config.read_text().replace("step_ms = 5", "step_ms = 5\nsalt = 9"))
    assert "older binary, settings or certificate" in lab.run("up")
    said = lab.run("roll", "--within", "3", expect=1)
    assert "the router refused alpha" in said and "is served with weights" in said
    assert "stopped at alpha. New: none. As before: beta org/gamma router." in said
    assert f"scripts/cluster roll alpha beta org/gamma router --config {lab.config}" in said
    assert kept == {part: lab.pid(part) for part in kept}
    assert whole(Asked(lab), prompt="still there", max_tokens=4).text
    lab.run("down")
    lab.nothing_is_left()


def test_a_drained_worker_is_shown_and_serves_again_when_that_is_taken_back(lab):
    lab = lab({"alpha": None, "beta": None})
    lab.run("up")
    said = lab.shoal("drain", "--worker", "alpha", "--wait", "--url", lab.url)
    assert said.splitlines()[-1] == "alpha is drained"
    assert rows(lab.run("status", expect=1))["alpha"]["STATE"] == "drained"
    for k in range(8):
        assert whole(Asked(lab), prompt=f"to beta {k}", max_tokens=2).text
    assert re.search(r"^alpha +drained .*\n^beta +ready ", lab.shoal("status", "--url", lab.url), re.MULTILINE)
    lab.shoal("drain", "--worker", "alpha", "--undo", "--url", lab.url)
    deadline = time.monotonic() + 30
    while "drained" in lab.shoal("status", "--url", lab.url):
        assert time.monotonic() < deadline
    assert rows(lab.run("status"))["alpha"]["STATE"] == "ready"
    assert "no worker 'nobody'" in lab.shoal("drain", "--worker", "nobody", "--url", lab.url, expect=1)
    lab.run("down")


def test_a_drain_waits_for_what_runs_and_cuts_nothing(lab, scripted):
    lab = lab({"alpha": None, "beta": None})
    lab.run("up")
    body = {"prompt": "long", "max_tokens": 800, "ignore_eos": True, "seed": 5}
    with Asked(lab).http as http, http.stream("POST", "/v1/completions", json={"model": "scripted", "stream": True, **body}) as answer:
        documents = chunks(answer)
        first = next(documents)
        # Both, so that it is drained where it runs.
        for worker in ("alpha", "beta"):
            lab.shoal("drain", "--worker", worker, "--url", lab.url)
        while "drained" not in (states := [worker["state"] for worker in http.get("/v1/cluster").json()["workers"]]):
            assert set(states) == {"draining"}
        assert sorted(states) == ["drained", "draining"]
        refused = httpx.post(f"{lab.url}/v1/completions", json={"model": "scripted", "prompt": "x"}, trust_env=False)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        found = collect([first, *documents], answer.headers)
    for worker in ("alpha", "beta"):
        assert f"{worker} is drained" in lab.shoal("drain", "--worker", worker, "--wait", "--url", lab.url)
    assert same(found, whole(scripted, **body))
    lab.run("down")


def test_two_clusters_on_one_machine_do_not_meet(lab):
    # One directory for all: it is the names that keep them apart.
    one, two = lab({"alpha": None}, name="one", dir="~/.local/x/one"), lab({"alpha": None}, name="two", dir="~/.local/x/two")
    two.home = one.home
    one.run("up")
    two.run("up")
    for each in (one, two):
        assert whole(Asked(each), prompt=each.name, max_tokens=1, log_prompt=True).text
    one.run("down")
    # Written by a thread of its own; the router's end has waited for it.
    logged = [(each.place() / "data/shoal/prompt_log.jsonl").read_text() for each in (one, two)]
    assert ["one" in text for text in logged] == [True, False] and logged[0].count("\n") == 1
    assert rows(two.run("status"))["alpha"]["STATE"] == "ready"
    one.nothing_is_left()
    two.run("down")
    two.nothing_is_left()


def test_parts_on_other_hosts_get_what_they_need_and_nothing_else(lab, scripted):
    lab = lab({"alpha": None, "beta": "gpu1", "org/gamma": "ops@gpu2"})
    gpu1, gpu2 = lab.host("gpu1"), lab.host("gpu2")
    table = rows(lab.run("up"))
    assert [table[name]["HOST"] for name in table] == ["this machine", "this machine", "gpu1", "ops@gpu2"]
    assert {table[name]["STATE"] for name in table} == {"answers", "ready"}
    assert set((lab.hosts / "ssh.log").read_text().split()) == {"gpu1", "ops@gpu2"}

    copied = sorted(str(path.relative_to(gpu1 / lab.dir)) for path in (gpu1 / lab.dir).rglob("*") if path.is_file())
    assert copied == ["bin/shoal", "cluster.toml", "log/beta.log", "pki/beta.key", "pki/beta.pem", "pki/ca.pem", "run/beta.pid"]
    modes = {name: (gpu1 / lab.dir / name).stat().st_mode & 0o777 for name in ("pki/beta.key", "cluster.toml", "bin/shoal")}
    assert modes == {"pki/beta.key": 0o600, "cluster.toml": 0o600, "bin/shoal": 0o755}
    assert (gpu2 / lab.dir / "pki/org%2Fgamma.key").exists() and not (gpu2 / lab.dir / "pki/beta.key").exists()
    assert not list(lab.hosts.rglob("ca.key")) and (lab.place() / "pki/ca.key").exists()

    body = {"prompt": "elsewhere", "n": 3, "max_tokens": 12, "seed": 8}
    assert same(whole(Asked(lab), **body), whole(scripted, **body))
    assert "welcomed by a router" in lab.run("logs", "beta")

    before = lab.pid("beta", "gpu1")
    lab.config.write_text(lab.config.read_text().replace("slots = 64", "slots = 65"))
    with Load(lab, scripted) as load:
        lab.run("roll", "beta", "org/gamma")
    assert load.faults == [] and load.answers > 0
    assert lab.pid("beta", "gpu1") != before and "slots = 65" in (gpu1 / lab.dir / "cluster.toml").read_text()
    lab.run("down")
    lab.nothing_is_left()


def test_the_three_hosts_of_the_readme_are_a_cluster(lab):
    section = (ROOT / "README.md").read_text().split("## A cluster on three hosts, from nothing")[1].split("\n## ")[0]
    blocks = dict(re.findall(r"```(toml|sh)\n(.*?)```", section, re.DOTALL)[:2])
    lab = lab({"alpha": "gpu1", "beta": "gpu2"}, name="reef")
    # The stand-in hosts share this machine's loopback.
    settings = blocks["toml"].replace("10.0.0.1:8443", f"127.0.0.1:{lab.quic}").replace("127.0.0.1:8080", f"127.0.0.1:{lab.http}")
    routers = f'routers = ["127.0.0.1:{lab.quic}"]\n'
    lab.config.write_text(re.sub(r'(host = "gpu\d"\n)', rf"\1{routers}", settings))
    lab.dir = ".local/share/shoal/cluster-reef"
    for name in ("head", "gpu1", "gpu2"):
        lab.host(name)
    assert "worker alpha cannot start on gpu1" in lab.run("up", expect=1)
    for name in ("gpu1", "gpu2"):
        (lab.hosts / name / "models").mkdir()
        (lab.hosts / name / "models/SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(real_model())
    assert [line for line in blocks["sh"].splitlines() if line.startswith("scripts/cluster")][0].split()[1] == "up"
    table = rows(lab.run("up"))
    assert [(name, row["HOST"], row["STATE"]) for name, row in table.items()] == [
        ("router", "head", "answers"),
        ("alpha", "gpu1", "ready"),
        ("beta", "gpu2", "ready"),
    ]
    server = Asked(lab)
    server.model = "SmolLM2-135M-Instruct"
    assert whole(server, prompt="The sea is", max_tokens=4, seed=1).text
    assert "welcomed by a router" in lab.run("logs", "alpha")
    assert "rolled: alpha beta router" in lab.run("roll")
    lab.run("down")
    lab.nothing_is_left()


def test_what_the_shell_says_of_logging_reaches_every_part_and_its_other_settings_none(lab):
    lab = lab({"alpha": "gpu1"})
    lab.host("gpu1")
    lab.more = {"SHOAL_LOG_FORMAT": "json", "SHOAL__ROUTER__LISTEN": "127.0.0.1:1", "SHOAL_CONFIG": "none"}
    lab.run("up")
    assert whole(Asked(lab), prompt="x", max_tokens=1).text
    for part, host in (("router", None), ("alpha", "gpu1")):
        assert all(json.loads(line)["level"] for line in lab.log(part, host).splitlines())
    lab.run("down")


def test_processes_can_be_units_of_systemd(lab):
    lab = lab({"org/alpha": None})
    fake = lab.directory / "path/systemd-run"
    fake.write_text('#!/usr/bin/env bash\necho "$*" >>"$HOSTS/units"\nwhile [[ "$1" == --* ]]; do shift; done\nsetsid "$@" &\n')
    fake.chmod(0o755)
    assert rows(lab.run("up", "--systemd"))["org/alpha"]["STATE"] == "ready"
    units = re.findall(r"--user .*--unit=(\S+)", (lab.hosts / "units").read_text())
    assert units == ["shoal-reef-router", "shoal-reef-org-alpha"]
    lab.run("down")
    lab.nothing_is_left()


def test_a_host_that_cannot_be_used_is_a_sentence_and_nothing_is_started(lab):
    missing = '\n[[model]]\nname = "scripted"\npath = "~/models/none.gguf"\n'
    lab = lab({"alpha": "gpu1"}, model=missing)
    assert "cannot reach gpu1 by ssh; this must work without a question: ssh gpu1 true" in lab.run("up", expect=1)
    home = lab.host("gpu1")
    said = lab.run("up", expect=1)
    assert f"worker alpha cannot start on gpu1:" in said and f"there is no {home}/models/none.gguf" in said
    assert f"ssh gpu1 {home}/{lab.dir}/bin/shoal pull ORG/NAME" in said
    # Another architecture, and a binary for it.
    uname = home / "path/uname"
    uname.write_text("#!/bin/sh\necho mips\n")
    uname.chmod(0o755)
    said = lab.run("up", expect=1)
    assert re.search(r"gpu1 is mips and .* --binary mips=PATH", said), said
    lab.run("up", "--binary", f"mips={ROOT}/scripts/cluster", expect=1)
    lab.nothing_is_left()


def test_a_process_that_ends_at_once_is_told_with_the_end_of_its_log(lab):
    lab = lab({"alpha": None})
    with socket.create_server(("127.0.0.1", lab.http)):
        said = lab.run("up", expect=1)
    assert "router ended while it was waited for" in said and "cannot listen for HTTP" in said
    assert "run this again" in said
    assert rows(lab.run("up"))["alpha"]["STATE"] == "ready"
    lab.run("down")
    lab.nothing_is_left()


def test_a_certificate_that_cannot_be_made_here_says_where(lab):
    lab = lab({"alpha": None})
    lab.run("up")
    lab.run("down")
    pki = lab.place() / "pki"
    (pki / "ca.key").rename(pki / "elsewhere")
    (pki / "alpha.pem").unlink()
    said = lab.run("up", expect=1)
    assert "worker alpha has no certificate" in said and "shoal cert issue --dir PKI --role worker --name alpha" in said
    (pki / "elsewhere").rename(pki / "ca.key")
    lab.run("up")
    # A certificate of another authority is found before anything is stopped or started.
    router = lab.pid("router")
    lab.shoal("cert", "init", "--dir", lab.directory / "other", "--cluster", "reef")
    lab.shoal("cert", "issue", "--dir", lab.directory / "other", "--role", "worker", "--name", "alpha")
    for end in ("pem", "key"):
        (pki / f"alpha.{end}").write_bytes((lab.directory / f"other/alpha.{end}").read_bytes())
    assert "was not issued by this cluster's authority" in lab.run("roll", expect=1)
    assert lab.pid("router") == router
    lab.run("down")


def test_a_worker_that_hangs_is_killed_in_the_end(lab):
    lab = lab({"alpha": None}, drain_ms=100)
    lab.run("up")
    os.kill(lab.pid("alpha"), signal.SIGSTOP)
    assert re.search(r"alpha has not ended within \d+ s: killed", lab.run("down"))
    lab.nothing_is_left()
