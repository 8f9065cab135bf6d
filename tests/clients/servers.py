"""Shoal processes for tests: how one is started, watched and ended. Called by the fixtures in `conftest`; knows no test."""

import contextlib
import itertools
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import time

import httpx

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/fixtures/golden"
START_SECONDS = 60
STOP_SECONDS = 60
# Which of the processes that run tests side by side this one is; pytest-xdist calls them gw0, gw1, ...
SIDE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
# Ports for each side, from 10000 on: below those that a system gives to whoever asks for any, so that nobody is given one
# between the look and its use, and begun anywhere, so that two runs on one machine hardly meet.
SIDE_PORTS = 4_000
PORTS = (10_000 + SIDE * SIDE_PORTS + number % SIDE_PORTS for number in itertools.count(random.randrange(SIDE_PORTS)))

SCRIPTED = """
[[model]]
name = "scripted"
engine = "scripted"
step_ms = {step_ms}
"""

REFERENCE = """
[[model]]
name = "{name}"
path = "{path}"
engine = "reference"
"""

WORKER = """
[[worker]]
name = "{name}"
model = "scripted"
slots = {slots}
groups = 1024
"""


def binary():
    found = os.environ.get("SHOAL_BIN")
    assert found, "set SHOAL_BIN to the shoal binary; `scripts/test clients` does"
    return found


def real_model():
    found = os.environ.get("SHOAL_TEST_MODEL")
    assert found, "set SHOAL_TEST_MODEL to the file that scripts/fetch-model prints; `scripts/test clients` does"
    return found


def scripted_config(directory, step_ms=1, workers=("alpha",), slots=64, more=""):
    """A cluster.toml for the scripted engine; returns its path."""
    text = more + SCRIPTED.format(step_ms=step_ms) + "".join(WORKER.format(name=n, slots=slots) for n in workers)
    path = directory / "cluster.toml"
    path.write_text(text)
    return path


def reference_config(directory, name, path):
    """A cluster.toml for a model with the engine that computes in f32, as the goldens were; returns its path."""
    config = directory / "cluster.toml"
    config.write_text(REFERENCE.format(name=name, path=path))
    return config


def free_port(kind=socket.SOCK_STREAM):
    """A port that nobody has, and that no other test is told."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, kind) as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Process:
    """A running `shoal`. Its output goes to files, so that no pipe can block it."""

    # Signals that it does not die of.
    ignored_signals = ()

    def __init__(self, directory, *arguments, env=None, within=()):
        """`within`: a command that runs the command behind it, somewhere else."""
        directory.mkdir(parents=True, exist_ok=True)
        self.out, self.err = directory / "stdout", directory / "stderr"
        # Settings of the machine that runs the tests must not reach the server.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.child = subprocess.Popen(
                [*within, binary(), *map(str, arguments)],
                stdout=out,
                stderr=err,
                env={**clean, **(env or {})},
                preexec_fn=self.ignore_signals if self.ignored_signals else None,
            )

    def ignore_signals(self):
        for number in self.ignored_signals:
            signal.signal(number, signal.SIG_IGN)

    @property
    def pid(self):
        return self.child.pid

    def log(self):
        return self.err.read_text(errors="replace")

    def alive(self):
        return self.child.poll() is None

    def memory(self):
        """Resident bytes."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def wait_for(self, what, condition):
        """Polls until `condition` is truthy and returns that; fails when the process ends first."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert self.alive(), f"shoal ended with {self.child.returncode} before {what}:\n{self.log()}"
            time.sleep(0.02)
        raise AssertionError(f"no {what} within {START_SECONDS} s:\n{self.log()}")

    def stop(self):
        """Ends it as an init system would. A clean end is part of what every test proves."""
        if self.alive():
            self.child.send_signal(signal.SIGTERM)
        try:
            code = self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise AssertionError(f"still running {STOP_SECONDS} s after SIGTERM:\n{self.log()}") from None
        assert code == 0, f"ended with {code}:\n{self.log()}"
        assert "panicked" not in self.log(), self.log()


class Server:
    """A router that answers at `url`, and the processes behind it (the router's first)."""

    def __init__(self, url, *processes):
        self.url, self.processes = url, processes
        # Given up sooner than the server does, which would close a connection just when it is used again.
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=1)
        self.http = httpx.Client(base_url=url, timeout=120, limits=limits)
        processes[0].wait_for("readiness", self.ready)
        self.models = [model["id"] for model in self.http.get("/v1/models").json()["data"]]

    @classmethod
    def dev(cls, directory, *arguments, env=None):
        """`shoal dev` on a free port, ready."""
        process = Process(directory, "dev", "--listen", "127.0.0.1:0", "--data-dir", directory, *arguments, env=env)
        try:
            said = process.wait_for("address on stdout", lambda: re.search(r"http://[\d.:]+", process.out.read_text()))
            return cls(said[0], process)
        except BaseException:
            process.child.kill()
            raise

    @classmethod
    def cluster(cls, directory, *workers, step_ms=5, write=None):
        """`shoal router` and a `shoal worker` for each of `workers`, over certificates of their own. `write` makes another
        cluster.toml than the scripted engine's, of the sections that it is given."""

        def cert(*arguments):
            subprocess.run([binary(), "cert", *map(str, arguments)], check=True, capture_output=True)

        pki = directory / "pki"
        cert("init", "--dir", pki, "--cluster", "shoal")
        for role, name in [("router", "router"), *(("worker", name) for name in workers)]:
            cert("issue", "--dir", pki, "--role", role, "--name", name)
        url, quic = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        more = f'[cluster]\npki = "pki"\n\n[router]\nlisten = "{url}"\nquic = "{quic}"\n'
        more += "\n[limits]\nheader_timeout_ms = 2000\nbody_timeout_ms = 2000\n"
        config = write(more) if write else scripted_config(directory, step_ms=step_ms, workers=workers, more=more)
        router = ("router", "--config", config, "--data-dir", directory)
        commands = {"router": router} | {name: ("worker", "--config", config, "--name", name) for name in workers}
        parts = {name: Process(directory / name, *command) for name, command in commands.items()}
        try:
            server = cls(f"http://{url}", *parts.values())
        except BaseException:
            for process in parts.values():
                process.child.kill()
            raise
        server.directory, server.parts, server.commands = directory, parts, commands
        return server

    def kill(self, name):
        """Ends a part of a cluster as a power cut would."""
        self.parts[name].child.kill()
        self.parts[name].child.wait()

    def start(self, name):
        """Starts a part of a cluster that was killed again, and waits until the router is ready and knows it."""
        self.parts[name] = Process(self.directory / name, *self.commands[name])
        self.processes = tuple(self.parts.values())
        self.wait_until("readiness", self.ready)
        workers = set(self.parts) - {"router"}
        self.wait_until("all workers", lambda: {one["name"] for one in self.workers()} == workers)

    def workers(self):
        """What the router says of its workers."""
        return self.http.get("/v1/cluster").json()["workers"]

    @property
    def model(self):
        return self.models[0]

    def ready(self):
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name, label=""):
        """The sum over all series of one metric, or those that have `label`; 0 while it was never set."""
        text = self.http.get("/metrics").text
        labels = rf"\{{[^}}]*{re.escape(label)}[^}}]*\}}"
        values = re.findall(rf"^{name}{labels if label else f'(?:{labels})?'} (\S+)$", text, re.MULTILINE)
        return sum(map(float, values))

    def wait_until(self, what, condition):
        return self.processes[0].wait_for(what, condition)

    def stop(self):
        """The router first: it lets what runs finish, which needs the workers."""
        self.http.close()
        for process in self.processes:
            process.stop()
