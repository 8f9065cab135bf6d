"""The JavaScript libraries, unmodified: runs `js/*.test.mjs` under Node's own test runner against the scripted engine."""

import os
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize("library", ["octoai", "openai"])
def test_every_promise_holds_for_the_javascript_library(scripted, narrow, library):
    result = subprocess.run(
        ["node", "--test", "--test-reporter=spec", f"js/{library}.test.mjs"],
        cwd=HERE,
        env={**os.environ, "SHOAL_URL": scripted.url, "SHOAL_NARROW_URL": narrow.url, "SHOAL_MODEL": scripted.model},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "pass 0" not in result.stdout
