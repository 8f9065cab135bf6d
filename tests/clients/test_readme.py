"""The examples of README.md, run as they stand but for the address."""

import re
import subprocess
import sys

import pytest

from servers import ROOT

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
EXAMPLES = [(kind, text) for kind, text in BLOCKS if kind == "python" or text.startswith("curl ")]


def test_there_are_examples_for_curl_and_both_families_of_clients():
    assert [kind for kind, _ in EXAMPLES] == ["sh", "python", "python"]


@pytest.mark.parametrize("kind, text", EXAMPLES, ids=["curl", "octoai", "openai"])
def test_an_example_runs(real, kind, text):
    text = text.replace("http://127.0.0.1:8080", real.url)
    command = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}[kind]
    result = subprocess.run([*command, text], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    if kind == "sh":
        assert "Paris" in result.stdout and result.stdout.endswith("data: [DONE]\n\n")
