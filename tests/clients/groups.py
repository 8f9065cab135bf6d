"""A control group with a limit on memory, of either version, for tests in which the kernel kills for want of it. Called by the
fixture `memory_group` of `test_failures_memory`; knows no test."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path("/sys/fs/cgroup")

# Once it is told to, takes memory until the kernel has killed somebody for it; then gives it back.
HOG = """
import re, sys
def kills():
    return re.search(r"^oom_kill .*$", open(sys.argv[1]).read(), re.MULTILINE)[0]
print("ready", flush=True)
if sys.stdin.readline():
    held, before = [], kills()
    while kills() == before:
        held.append(bytearray(b"x") * (1 << 20))
"""


class NoGroups(Exception):
    """There is no right to make groups here, or no memory controller."""


class MemoryGroup:
    """A group of its own below the root of the hierarchy. No process is in it yet."""

    def __init__(self, limit):
        self.limit = limit
        self.is_v1 = (ROOT / "memory/memory.limit_in_bytes").exists()
        parent = ROOT / "memory" if self.is_v1 else ROOT
        self.path = parent / f"shoal-test-{os.getpid()}-{time.monotonic_ns()}"
        self.told = self.path / ("memory.oom_control" if self.is_v1 else "memory.events")
        try:
            if not self.is_v1 and "memory" not in (ROOT / "cgroup.subtree_control").read_text().split():
                raise NoGroups("memory is not among the controllers of child groups")
            self.path.mkdir()
            (self.path / ("memory.limit_in_bytes" if self.is_v1 else "memory.max")).write_text(str(limit))
            swap = self.path / ("memory.memsw.limit_in_bytes" if self.is_v1 else "memory.swap.max")
            if swap.exists():
                swap.write_text(str(limit) if self.is_v1 else "0")
        except OSError as error:
            raise NoGroups(str(error)) from error

    @property
    def within(self):
        """A command that runs the command behind it in the group, as the one that the kernel kills first, as
        deploy/systemd has it."""
        return ["sh", "-c", f'{self.enter} && echo 1000 >/proc/self/oom_score_adj && exec "$@"', "within"]

    @property
    def enter(self):
        return f'echo $$ >"{self.path}/cgroup.procs"'

    def has_no_swap(self):
        """Whether its limit is all that a process in it can have."""
        swap = self.path / ("memory.memsw.limit_in_bytes" if self.is_v1 else "memory.swap.max")
        return swap.exists() or re.search(r"^SwapTotal: +0 kB$", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE) is not None

    def kills(self):
        """How often the kernel has killed for want of memory."""
        return int(re.search(r"^oom_kill (\d+)$", self.told.read_text(), re.MULTILINE)[1])

    @contextlib.contextmanager
    def hog(self):
        """Gives a function that takes memory until the kernel kills whoever else is in the group. Somebody must be."""
        command = ["sh", "-c", f'{self.enter} && exec "$@"', "hog", sys.executable, "-c", HOG, str(self.told)]
        hog = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert hog.stdout.readline() == b"ready\n"
            yield lambda: hog.communicate(b"\n", timeout=60)
        finally:
            hog.kill()
            hog.communicate()

    def remove(self):
        """Nothing of it may run any more."""
        for _ in range(500):
            try:
                return self.path.rmdir()
            except OSError:
                # Those that have just ended are still being counted out.
                time.sleep(0.01)
        self.path.rmdir()
