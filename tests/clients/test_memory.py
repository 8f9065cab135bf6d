"""What ten thousand requests leave behind in the server: nothing."""

import subprocess

import pytest

from servers import GOLDEN, Server, binary

KV_TOKENS = 8192

CONFIG = """
[[model]]
name = "tiny"
path = "{path}"

[[worker]]
name = "alpha"
kv_tokens = {kv_tokens}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The engine that serves, with a tiny model and so little KV that all of it is in use soon."""
    directory = tmp_path_factory.mktemp("small")
    config = directory / "cluster.toml"
    config.write_text(CONFIG.format(path=GOLDEN / "tiny/gguf/tiny-q4_1.gguf", kv_tokens=KV_TOKENS))
    server = Server.dev(directory, "--config", config)
    yield server
    server.stop()


def load(server, requests):
    """The same prompts each time: what is remembered of prompts is bounded, but by far more than a test sends."""
    arguments = ["--url", server.url, "--concurrency", "3", "--requests", str(requests), "--runs", "1", "--warm", "0"]
    sizes = ["--prompt-tokens", "32", "--max-tokens", "32"]
    ran = subprocess.run([binary(), "bench", *arguments, *sizes], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr


def grown_by_ten_thousand(server):
    before = server.processes[0].memory()
    for _ in range(5):
        load(server, 2000)
    grown = server.processes[0].memory() - before
    print(f"memory grew by {grown >> 10} kB of {before >> 10}")
    return grown / before


def test_ten_thousand_requests_leave_no_memory_behind_though_nobody_asks_for_the_metrics(small):
    for _ in range(2):
        load(small, 2000)
    # The allocator's arenas settle in jumps; what is left behind by requests is left by each ten thousand of them.
    assert any(grown_by_ten_thousand(small) < 1 / 20 for _ in range(3))
