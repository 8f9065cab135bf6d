"""Starts a server for a measurement, waits until it answers, and stops it with all that it started. bench-peers calls it;
one server runs at a time, on loopback, with the same number of threads as every other."""

import ctypes
import dataclasses
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

# What every server calls its model.
MODEL_NAME = "m"

# Seconds that a server has to end by itself.
PATIENCE = 20

# prctl: the signal that a process gets when its parent dies, however it dies.
PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """It ended, or did not become ready."""


@dataclasses.dataclass
class Adapter:
    """A LoRA adapter under its name."""

    name: str
    # PEFT directory, and the same as GGUF.
    directory: pathlib.Path
    gguf: pathlib.Path


@dataclasses.dataclass
class Setup:
    """What all servers of a measurement have in common."""

    threads: int
    # Requests at once at most.
    slots: int
    # Tokens of one request at most, prompt and answer.
    context: int
    # Folder for logs and for what servers write.
    work: pathlib.Path
    # Of the family that is measured, and their largest rank.
    adapters: list = dataclasses.field(default_factory=list)
    rank: int = 8


@dataclasses.dataclass
class Contestant:
    """A server with a model file."""

    server: str
    model: str
    command: list
    environment: dict
    # Path that answers 200 once the model is loaded, and seconds for that.
    ready_path: str
    ready_within: int
    # Paths that answer 200 once adapters can be asked for too.
    adapter_paths: list = dataclasses.field(default_factory=list)
    # Flags of `shoal bench` that ask for the adapters in turn, and for the base model.
    ask_for_adapters: list = dataclasses.field(default_factory=list)
    ask_for_base: list = dataclasses.field(default_factory=lambda: ["--model", MODEL_NAME])

    @property
    def title(self):
        return f"{self.server} {self.model}"


def shoal(binary, model, file, setup, port):
    command = [binary, "dev", "--listen", f"127.0.0.1:{port}", "--data-dir", setup.work / "shoal", "--log", "warn"]
    if not setup.adapters:
        command += ["--model", file, "--model-name", MODEL_NAME, "--threads", setup.threads]
        return Contestant("shoal", model, [*command, "--slots", max(32, setup.slots)], {}, "/readyz", 120)
    # How many adapters a worker holds is said in a file alone.
    worker = f"threads = {setup.threads}\nslots = {max(32, setup.slots)}\n"
    worker += f"adapter_slots = {len(setup.adapters)}\nadapter_bytes = {4 << 30}\n"
    text = f'[[model]]\nname = "{MODEL_NAME}"\npath = "{file}"\n[[worker]]\nname = "w"\n{worker}'
    text += "".join(f'[[adapter]]\nname = "{one.name}"\npath = "{one.directory}"\n' for one in setup.adapters)
    config = setup.work / "shoal.toml"
    config.write_text(text)
    names = [one.name for one in setup.adapters]
    paths = [f"/v1/models/{name}" for name in names]
    command += ["--config", config]
    return Contestant("shoal", model, command, {}, "/readyz", 120, paths, ["--models", ",".join(names)])


def llama_server(binary, model, file, setup, port):
    command = [binary, "--model", file, "--alias", MODEL_NAME, "--host", "127.0.0.1", "--port", port]
    command += ["--threads", setup.threads, "--threads-batch", setup.threads, "--parallel", setup.slots]
    # The context is divided among the slots. States of past prompts in RAM cost time, and no prompt comes again.
    command += ["--ctx-size", setup.slots * setup.context, "--cache-ram", 0]
    contestant = Contestant("llama-server", model, command, {}, "/health", 180)
    if setup.adapters:
        command += ["--lora", ",".join(str(one.gguf) for one in setup.adapters)]
        numbers = range(len(setup.adapters))
        contestant.ask_for_adapters = ["--model", MODEL_NAME]
        contestant.ask_for_adapters += [flag for number in numbers for flag in ("--extra", adapter_of(number, 1.0))]
        # Who says nothing gets all of them.
        contestant.ask_for_base += ["--extra", adapter_of(0, 0.0)]
    return contestant


def adapter_of(number, scale):
    """What a request to llama-server says of its adapter."""
    return json.dumps({"lora": [{"id": number, "scale": scale}]})


def vllm(venv, model, folder, setup, port, name="vllm"):
    """By itself vLLM leaves one core to its HTTP process and computes on the others; `vllm-all-cores` computes on as many
    as every other server. Which is faster depends on the model and on how free the machine is."""
    command = [venv / "bin/vllm", "serve", folder, "--served-model-name", MODEL_NAME, "--host", "127.0.0.1"]
    command += ["--port", port, "--dtype", "bfloat16", "--max-num-seqs", setup.slots]
    command += ["--max-model-len", max(2048, setup.context)]
    ask = ["--models", ",".join(one.name for one in setup.adapters)]
    if setup.adapters:
        count = len(setup.adapters)
        command += ["--enable-lora", "--max-loras", count, "--max-cpu-loras", count, "--max-lora-rank", setup.rank]
        command += ["--lora-modules", *(f"{one.name}={one.directory}" for one in setup.adapters)]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CACHE_ROOT": str(venv / "cache"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if name == "vllm-all-cores":
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{setup.threads - 1}", "OMP_NUM_THREADS": str(setup.threads)}
    # Its documentation asks for both; what is not there is done without.
    wanted = [venv / "lib/libiomp5.so", pathlib.Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")]
    environment["LD_PRELOAD"] = ":".join(str(file) for file in wanted if file.exists())
    return Contestant(name, model, command, environment, "/health", 900, [], ask)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Others:
    """What everybody else takes of the machine while a server is measured: the figures are worth less for it."""

    def __init__(self, server):
        self.server = server
        self.began, self.before = time.monotonic(), self.of_others()

    def of_others(self):
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return busy_seconds() - self.server.cpu_seconds() - children.ru_utime - children.ru_stime

    def cores(self):
        """Cores that were kept busy by others since the beginning."""
        return max(0.0, (self.of_others() - self.before) / (time.monotonic() - self.began))


def busy_seconds():
    """Of all processors, since the machine came up; what a virtual machine's host took of them is busy too."""
    user, nice, system, _idle, _waiting, *rest = map(
        int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


class Running:
    """`with Running(contestant, port, log) as server:` it answers within, and nothing of it is left after."""

    def __init__(self, contestant, port, log):
        self.contestant, self.url, self.log = contestant, f"http://127.0.0.1:{port}", log

    def __enter__(self):
        libc = ctypes.CDLL(None)
        began = time.monotonic()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in self.contestant.command],
                env=os.environ | self.contestant.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        try:
            self.wait_until_ready(began + self.contestant.ready_within)
        except BaseException:
            self.stop()
            raise
        self.ready_after = time.monotonic() - began
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_until_ready(self, deadline):
        # One request at a time, and rarely: the processor belongs to the server.
        paths = [self.contestant.ready_path, *self.contestant.adapter_paths]
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailed(f"{self.contestant.title} ended with code {self.process.returncode}; see {self.log}")
            try:
                while paths:
                    with urllib.request.urlopen(self.url + paths[0], timeout=5):
                        paths.pop(0)
                return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        raise ServerFailed(f"{self.contestant.title} was not ready in {self.contestant.ready_within} s; see {self.log}")

    def processes(self):
        """The fields of /proc/PID/stat after the name, of all its processes: state, parent, group, session, ..."""
        for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rsplit(") ", 1)[1].split()
            except (OSError, IndexError):
                continue
            if int(fields[3]) == self.process.pid:
                yield fields

    def memory(self):
        """Resident bytes; pages that its processes share count for each."""
        return sum(int(fields[21]) for fields in self.processes()) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self):
        """Processor time that it has used, with that of its children that ended."""
        ticks = sum(sum(map(int, fields[11:15])) for fields in self.processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and group_lives(self.process):
                time.sleep(0.1)
        self.process.wait()


def group_lives(process):
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
