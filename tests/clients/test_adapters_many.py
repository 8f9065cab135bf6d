"""More adapters than slots: scripts/adapters-load, at a tenth of its size."""

import re
import subprocess
import sys

from servers import ROOT, binary


def test_a_hundred_adapters_in_sixteen_slots_are_answered_without_a_fault():
    sizes = {"adapters": 100, "slots": 8, "requests": 1500}
    command = [sys.executable, ROOT / "scripts/adapters-load", "--shoal", binary()]
    command += [part for name, size in sizes.items() for part in (f"--{name}", size)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^faults +0$", done.stdout, re.MULTILINE), done.stdout
    loads = int(re.search(r"^cold loads +(\d+)", done.stdout, re.MULTILINE)[1])
    assert loads > 100, "they had to give way to each other"
