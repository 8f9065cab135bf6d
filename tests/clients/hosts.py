"""Hosts for scripts/cluster that are directories here: a stand-in for `ssh` that hands the command to a shell, as sshd does,
with another home, another working directory and an empty environment. So what is quoted for a remote shell, and what is copied
there, is what would be on a real host. The fixture `lab` of `conftest` makes them."""

import os
import pathlib
import socket
import subprocess
import time

import httpx

from servers import ROOT, WORKER, binary, free_port

SSH = """#!/usr/bin/env bash
# ssh [-o OPTION]... -- [USER@]HOST COMMAND
while [[ "$1" != -- ]]; do shift; done
printf '%s\\n' "$2" >>"$HOSTS/ssh.log"
home="$HOSTS/${2##*@}"
if [[ ! -d "$home" || $# != 3 ]]; then
  echo "ssh: connect to host $2: No route to host" >&2
  exit 255
fi
cd "$home" && exec env -i HOME="$home" PATH="$home/path:$PATH" SHELL=/bin/sh /bin/sh -c "$3"
"""

CONFIG = """
[cluster]
name = "{name}"
remote_dir = "{dir}"
[cluster.timers]
drain_ms = {drain_ms}
[router]
listen = "127.0.0.1:{http}"
quic = "127.0.0.1:{quic}"
"""

MODEL = """
[[model]]
name = "scripted"
engine = "scripted"
step_ms = 5
"""


class Lab:
    """A cluster.toml, the script, and hosts that are directories."""

    def __init__(self, directory, workers, name="reef", dir="~/a shoal place", model=MODEL, drain_ms=20000):
        self.directory, self.name = directory, name
        self.home = directory / "home"
        self.hosts = directory / "hosts"
        for made in (self.home, self.hosts, directory / "path"):
            made.mkdir(parents=True, exist_ok=True)
        ssh = directory / "path/ssh"
        ssh.write_text(SSH)
        ssh.chmod(0o755)
        self.http, self.quic = free_port(), free_port(socket.SOCK_DGRAM)
        self.config = directory / "cluster.toml"
        text = CONFIG.format(name=name, dir=dir, http=self.http, quic=self.quic, drain_ms=drain_ms)
        for worker, host in workers.items():
            line = f'host = "{host}"\n' if host else ""
            # The stand-in hosts share one loopback; a router that is really elsewhere cannot be dialled there.
            dials = f'routers = ["127.0.0.1:{self.quic}"]\n' if host else ""
            model += WORKER.format(name=worker, slots=64) + line + dials
        self.config.write_text(text + model)
        self.workers = list(workers)
        self.dir = dir.removeprefix("~/")
        self.more = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http}"

    def host(self, name):
        """Another machine."""
        home = self.hosts / name
        (home / "path").mkdir(parents=True)
        return home

    def environment(self):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
        path = f"{self.directory / 'path'}:{clean['PATH']}"
        ours = {"HOME": str(self.home), "HOSTS": str(self.hosts), "PATH": path, "SHOAL_BIN": binary()}
        return {**clean, **ours, **self.more}

    def run(self, *arguments, expect=0):
        """The script; returns what it printed, stderr after stdout."""
        command = [ROOT / "scripts/cluster", *arguments, "--config", self.config]
        # Files, not pipes: whatever the script leaves running would hold a pipe open.
        out, err = self.directory / "out", self.directory / "err"
        with out.open("w") as stdout, err.open("w") as stderr:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self.environment(), timeout=240
            ).returncode
        said = out.read_text() + err.read_text()
        assert code == expect, f"{arguments} ended with {code}:\n{said}"
        return said

    def shoal(self, *arguments, expect=0):
        done = subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True, env=self.environment())
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def place(self, host=None):
        """Where the script keeps what belongs to the cluster, on a host."""
        return (self.hosts / host if host else self.home) / self.dir

    def pid(self, part, host=None):
        return int((self.place(host) / f"run/{part}.pid").read_text().split()[0])

    def log(self, part, host=None):
        return (self.place(host) / f"log/{part}.log").read_text(errors="replace")

    def processes(self):
        """Command lines of everything that runs out of the lab's directory."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except (OSError, ValueError):
                continue
            if str(self.directory) in line and entry.name != str(os.getpid()):
                found.append(f"{entry.name} {line}")
        return found

    def nothing_is_left(self):
        # The script does not wait for every subshell of its own, and a busy machine takes its time to end them.
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == [], left
        for kind, port in ((socket.SOCK_STREAM, self.http), (socket.SOCK_DGRAM, self.quic)):
            with socket.socket(socket.AF_INET, kind) as probe:
                # As servers do: what is left of closed connections does not count, a listener does.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if kind == socket.SOCK_STREAM else 0)
                probe.bind(("127.0.0.1", port))


class Asked:
    """As much of a server as `contract` needs; every request on a connection of its own, as different clients would."""

    model = "scripted"

    def __init__(self, lab):
        self.url = lab.url

    @property
    def http(self):
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)
