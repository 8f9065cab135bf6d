"""A cluster for tests of failures: every part a process that can be killed, frozen and started again, every worker behind a
relay if so wanted, and the promises that hold after whatever happened. The fixture `fleets` of `conftest` makes them."""

import json
import os
import signal
import socket
import subprocess
import time

import httpx

from contract import Answer, collect, parse
from relay import Relay
from servers import WORKER, Process, Server, binary, free_port

SCRIPT = """
[[model]]
name = "scripted"
engine = "scripted"
step_ms = {step_ms}
{model}
"""

HEAD = """
[cluster]
pki = "{pki}"
[cluster.timers]
{timers}
[router]
listen = "127.0.0.1:{http}"
quic = "127.0.0.1:{quic}"
{router}
[limits]
# A client that the machine keeps waiting is no client that sends nothing.
header_timeout_ms = 60000
body_timeout_ms = 60000
{limits}
"""

TERMINAL = {"stop", "length"}


class Router(Server):
    """A router of a fleet. `http` reaches it whether it is ready or not."""

    def __init__(self, fleet, name):
        self.fleet, self.name = fleet, name
        self.port, self.quic = free_port(), free_port(socket.SOCK_DGRAM)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = self.client()
        self.models = [fleet.served]

    def client(self):
        """Another way to reach it."""
        # A connection that is kept may be closed by the router just when it is used again.
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=0)
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, limits=limits)

    def start(self):
        directory = self.fleet.directory / f"{self.name}-{time.monotonic_ns()}"
        arguments = ["router", "--config", self.fleet.config(self), "--data-dir", self.fleet.directory / f"data-{self.name}"]
        process = Process(directory, *arguments, "--name", "router", env=self.fleet.env)
        self.processes = (process,)
        return self

    @property
    def process(self):
        return self.processes[0]

    def cluster(self):
        return self.http.get("/v1/cluster").json()

    def worker(self, name):
        """A worker as it is shown; None where it is not there, or the router is not."""
        try:
            return next((worker for worker in self.cluster()["workers"] if worker["name"] == name), None)
        except httpx.TransportError:
            return None

    def state(self, name):
        return (self.worker(name) or {"state": "away"})["state"]

    def await_workers(self, count):
        def ready():
            try:
                return sum(worker["load"] is not None and worker["state"] == "ready" for worker in self.cluster()["workers"])
            except httpx.TransportError:
                return -1

        self.wait_until(f"{count} workers", lambda: ready() == count)
        return self

    def order(self, name, order):
        """Tells worker `name` to "drain" or to "undrain"; nothing, or something, is given to it from then on."""
        assert self.http.post(f"/v1/cluster/workers/{name}/{order}").status_code == 200
        self.wait_until(f"{name} to {order}", lambda: (self.state(name) == "ready") == (order == "undrain"))

    def is_idle(self):
        """Nothing runs and nothing is held, on any worker."""
        loads = [worker["load"] for worker in self.cluster()["workers"] if worker["load"]]
        held = [(load["running"], load["waiting"], load["kv_used"], load["queued_tokens"]) for load in loads]
        open_ = [worker["outstanding_tokens"] for worker in self.cluster()["workers"]]
        return all(one == (0, 0, 0, 0) for one in held) and not any(open_)

    def replays(self):
        return self.metric("shoal_replays_total")


class Fleet:
    """Routers and workers; the first router is `router`."""

    def __init__(self, directory, workers=("alpha", "beta"), **rules):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.step_ms, self.slots = rules.pop("step_ms", 5), rules.pop("slots", 64)
        self.model, self.per_worker = rules.pop("model", ""), rules.pop("per_worker", {})
        self.timers, self.limits = rules.pop("timers", ""), rules.pop("limits", "")
        self.in_router = rules.pop("in_router", "")
        # Every process has the settings of all, as on real hosts, and not only its own.
        self.shares_settings = rules.pop("shares_settings", False)
        self.more, self.env = rules.pop("more", None), rules.pop("env", None)
        self.weights, self.served = rules.pop("weights", None), "scripted"
        self.begins_with = rules.pop("start", list(workers))
        relayed, routers = rules.pop("relayed", False), rules.pop("routers", 1)
        assert not rules, rules
        self.issue(workers)
        self.routers = [Router(self, f"router{number}") for number in range(routers)]
        self.relays = {name: Relay(("127.0.0.1", self.router.quic), seed=index) for index, name in enumerate(workers)} if relayed else {}
        self.workers, self.frozen = {}, set()
        self.names = list(workers)

    @property
    def router(self):
        return self.routers[0]

    def issue(self, workers):
        def cert(*arguments):
            subprocess.run([binary(), "cert", *map(str, arguments)], check=True, capture_output=True)

        self.pki = self.directory / "pki"
        cert("init", "--dir", self.pki, "--cluster", "shoal")
        for role, name in [("router", "router"), *(("worker", name) for name in workers)]:
            cert("issue", "--dir", self.pki, "--role", role, "--name", name)

    def config(self, router, worker=None):
        """The settings of one process; a worker may have some of its own."""
        own = self.per_worker.get(worker, {})
        text = HEAD.format(pki=self.pki, timers=self.timers, limits=self.limits, router=self.in_router, http=router.port, quic=router.quic)
        weights = own.get("weights", self.weights)
        model = SCRIPT.format(step_ms=own.get("step_ms", self.step_ms), model=own.get("model", self.model))
        text += f'\n[[model]]\nname = "{self.served}"\npath = "{weights}"\nengine = "cpu"\n' if weights else model
        dials = [f"127.0.0.1:{self.relays[worker].port}"] if worker in self.relays else None
        dials = own.get("routers", dials or [f"127.0.0.1:{one.quic}" for one in self.routers])
        for name in [worker] if worker and not self.shares_settings else self.names:
            own = self.per_worker.get(name, {})
            data = own.get("data_dir", self.directory / f"data-{name}")
            part = WORKER.format(name=name, slots=own.get("slots", self.slots))
            text += part.replace('model = "scripted"', f'model = "{self.served}"')
            text += f'routers = {json.dumps(dials)}\ndata_dir = "{data}"\n' + own.get("more", "")
        path = self.directory / f"{worker or router.name}.toml"
        path.write_text(text)
        return path

    def start(self):
        """All of it, ready; or the workers that it is to begin with."""
        for router in self.routers:
            router.start()
        for name in self.begins_with:
            self.start_worker(name)
        for router in self.routers:
            router.await_workers(len(self.begins_with))
        return self

    def start_worker(self, name, key=None):
        """A new life of worker `name`; `key` tells several of one name apart."""
        directory = self.directory / f"{key or name}-{time.monotonic_ns()}"
        arguments = ["worker", "--config", self.config(self.router, name), "--name", name]
        within = self.per_worker.get(name, {}).get("within", ())
        self.workers[key or name] = Process(directory, *arguments, env=self.env, within=within)
        return self.workers[key or name]

    def kill(self, name):
        process = self.workers.pop(name)
        process.child.kill()
        process.child.wait()
        self.frozen.discard(name)

    def kill_and_miss(self, name):
        """As `kill`, and waits until the router knows."""
        self.kill(name)
        self.router.wait_until("it to be missed", lambda: self.router.state(name) in ("away", "gone"))

    def freeze(self, name):
        self.workers[name].child.send_signal(signal.SIGSTOP)
        self.frozen.add(name)

    def thaw(self, name):
        self.workers[name].child.send_signal(signal.SIGCONT)
        self.frozen.discard(name)

    def gone(self, name):
        """A worker that ended by itself, or was told to: its exit code."""
        return self.workers.pop(name).child.wait(60)

    def serving(self):
        """The worker that has most to do for the router."""

        def busy():
            work, name = max((worker["outstanding_tokens"], worker["name"]) for worker in self.router.cluster()["workers"])
            return name if work else None

        return self.router.wait_until("a worker that serves", busy)

    def other(self, name):
        (other,) = [one for one in self.names if one != name]
        return other

    def keeps_its_promises(self):
        """Whatever happened: when nothing is asked for, nothing is held."""
        for router in self.routers:
            router.wait_until("nothing to be held any more", router.is_idle)

    def stop(self):
        """In order, which is part of what every test proves."""
        for name in list(self.frozen):
            self.thaw(name)
        self.keeps_its_promises()
        for router in self.routers:
            router.http.close()
            router.process.stop()
        for process in self.workers.values():
            process.stop()
        self.relieve()

    def relieve(self):
        """Ends what a failed test has left."""
        processes = [router.process for router in self.routers if hasattr(router, "processes")] + list(self.workers.values())
        for process in processes:
            if process.alive():
                os.kill(process.pid, signal.SIGKILL)
                process.child.wait()
        for relay in self.relays.values():
            relay.stop()


class Ended:
    """How a stream ended, if not well: what was told before, and the error event."""

    def __init__(self, documents, error, headers):
        self.documents, self.error, self.headers = documents, error, headers

    def answer(self) -> Answer:
        return collect(self.documents, self.headers)


def ending(server, **body):
    """A stream with whatever end it has: (what was told, the error event or None). It must end with `[DONE]` all the same."""
    body = {"model": server.model, "stream": True, **body}
    documents, error, last = [], None, None
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if not line.startswith("data: "):
                assert line == "" or line.startswith(":"), line
                continue
            last = line.removeprefix("data: ")
            if last == "[DONE]":
                continue
            document = json.loads(last)
            if "error" in document:
                assert error is None and document.keys() == {"error"}, document
                error = document["error"]
            else:
                assert error is None, "something after the error"
                parse(document)
                documents.append(document)
    assert last == "[DONE]", f"the stream was cut after {last!r}"
    return Ended(documents, error, response.headers)
