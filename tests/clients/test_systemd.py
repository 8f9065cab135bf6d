"""The units of deploy/systemd, as far as they can be judged without starting one."""

import re
import shutil
import subprocess

import pytest

from servers import ROOT, binary

UNITS = ROOT / "deploy/systemd"
# Settings that systemd learnt with version 254; an older one says that it ignores them.
YOUNG = {"RestartSteps", "RestartMaxDelaySec"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_no_fault_in_the_units(tmp_path):
    for unit, instance in (("shoal-router.service", ""), ("shoal-worker@.service", "alpha")):
        file = tmp_path / unit.replace("@", f"@{instance}")
        file.write_text((UNITS / unit).read_text().replace("/usr/local/bin/shoal", binary()))
        done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if unit.split(".")[0].split("@")[0] in line]
        unknown = [re.search(r"Unknown key '(\w+)'|$", line)[1] for line in said]
        assert done.returncode == 0 and set(unknown) <= YOUNG, done.stderr


def test_a_unit_is_stopped_later_than_its_drain_ends():
    """The default drain, and for a worker ten seconds for the step under way: then systemd may lose patience."""
    example = (ROOT / "cluster.toml").read_text()
    drain = int(re.search(r"drain_ms = (\d+)", example)[1]) / 1000
    for unit in ("shoal-router.service", "shoal-worker@.service"):
        text = (UNITS / unit).read_text()
        assert int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1]) >= drain + 15, unit
        assert re.search(r"^KillSignal=SIGTERM$", text, re.MULTILINE), unit
