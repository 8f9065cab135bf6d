"""The same on real interfaces of the kernel: two network namespaces and a wire between them, which is cut one way or as slow
as 1 Mbit/s. Needs root, `ip` and `tc`; skipped elsewhere. What the kernel of the machine cannot do (loss and delay need
netem), `test_failures_network` does with a relay."""

import os
import shutil
import subprocess

import pytest

from contract import same, streamed, whole
from fleet import Fleet
from servers import SIDE, Process
from test_failures_workers import all_equal, bodies, running

# A second of silence is a death here.
pytestmark = pytest.mark.alone

WORKER = f"10.77.{SIDE}.2"
ROUTER = f"10.77.{SIDE}.1"
NOBODY = "02:00:00:00:00:99"


def run(*command, **more):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **more)


class Wire:
    """A pair of interfaces: this namespace is the router's side, `name` the worker's."""

    def __init__(self, name):
        self.name, self.here, self.there = name, f"{name}r", f"{name}w"
        steps = [
            ("ip", "netns", "add", name),
            ("ip", "link", "add", "name", self.here, "type", "veth", "peer", "name", self.there),
            ("ip", "link", "set", self.there, "netns", name),
            ("ip", "address", "add", f"{ROUTER}/24", "dev", self.here),
            ("ip", "link", "set", self.here, "up"),
            ("ip", "-n", name, "address", "add", f"{WORKER}/24", "dev", self.there),
            ("ip", "-n", name, "link", "set", self.there, "up"),
            ("ip", "-n", name, "link", "set", "lo", "up"),
        ]
        for step in steps:
            done = run(*step)
            if done.returncode:
                self.remove()
                pytest.skip(f"no network namespace of this kind here: {' '.join(step)}: {done.stderr.strip()}")

    def cut(self, side):
        """What is sent from there goes to a card that nobody has: silence, not an error."""
        inside = ("-n", self.name) if side == "worker" else ()
        device, other = (self.there, ROUTER) if side == "worker" else (self.here, WORKER)
        run("ip", *inside, "neigh", "replace", other, "lladdr", NOBODY, "nud", "permanent", "dev", device, check=True)

    def heal(self, side):
        inside = ("-n", self.name) if side == "worker" else ()
        device, other = (self.there, ROUTER) if side == "worker" else (self.here, WORKER)
        run("ip", *inside, "neigh", "del", other, "dev", device, check=True)

    def slow(self):
        done = run("tc", "-n", self.name, "qdisc", "add", "dev", self.there, "root", "tbf", "rate", "1mbit", "burst", "16kb", "latency", "200ms")
        if done.returncode:
            pytest.skip(f"no tbf here: {done.stderr.strip()}")

    def remove(self):
        run("ip", "netns", "delete", self.name)
        run("ip", "link", "delete", self.here)


@pytest.fixture
def wire():
    if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("needs root, ip and tc")
    made = Wire(f"shoal{os.getpid() % 10_000}")
    yield made
    made.remove()


class Wired(Fleet):
    """Worker alpha is at the far end of a wire; the others are here."""

    def __init__(self, directory, wire, **rules):
        self.wire = wire
        super().__init__(directory, **rules)

    def config(self, router, worker=None):
        path = super().config(router, worker)
        address = ROUTER if worker == "alpha" else "0.0.0.0"
        text = path.read_text().replace(f'quic = "127.0.0.1:{router.quic}"', f'quic = "{address}:{router.quic}"')
        if worker == "alpha":
            text = text.replace(f'routers = ["127.0.0.1:{router.quic}"]', f'routers = ["{ROUTER}:{router.quic}"]')
        path.write_text(text)
        return path

    def start_worker(self, name, key=None):
        if name != "alpha":
            return super().start_worker(name, key)
        arguments = ["worker", "--config", self.config(self.router, name), "--name", name]
        directory = self.directory / f"{name}-wired"
        self.workers[name] = Process(directory, *arguments, within=["ip", "netns", "exec", self.wire.name])
        return self.workers[name]


@pytest.fixture
def wired(tmp_path, wire):
    made = Wired(tmp_path / "fleet", wire, timers="idle_ms = 1000", step_ms=4)
    try:
        made.start()
        yield made
        made.stop()
    finally:
        made.relieve()


@pytest.mark.parametrize("side", ["worker", "router"])
def test_a_wire_that_is_cut_one_way_is_noticed_and_nothing_is_left_on_the_worker(wired, scripted, side):
    router = wired.router
    requests = bodies(8, 450)
    before = router.worker("alpha")["incarnation"]
    with running(router, requests) as answers:
        wired.wire.cut(side)
        router.wait_until("alpha to be missed", lambda: router.state("alpha") in ("away", "gone"))
    assert all_equal(answers, requests, scripted) and router.replays() > 0
    wired.wire.heal(side)
    router.wait_until("alpha to be back", lambda: router.state("alpha") == "ready")
    assert router.worker("alpha")["incarnation"] == before


def test_a_wire_of_one_megabit_carries_the_same_answers(wired, scripted):
    heavy = {"prompt": "heavy", "n": 6, "max_tokens": 150, "ignore_eos": True, "logprobs": 20, "seed": 3}
    expected = whole(scripted, **heavy)
    wired.kill_and_miss("beta")
    wired.wire.slow()
    before = wired.workers["alpha"].memory()
    assert same(streamed(wired.router, **heavy), expected)
    assert wired.workers["alpha"].memory() - before < 16 << 20
    assert wired.router.replays() == 0
