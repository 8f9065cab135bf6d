"""The examples of README.md, run as they stand but for addresses: those for clients, and the clusters of several hosts."""

import re
import socket
import subprocess
import sys

import pytest

from contract import same, streamed, whole
from hosts import Asked
from servers import ROOT, free_port, real_model
from test_cluster_script import rows

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
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


HOSTS = "A cluster on three hosts, from nothing"
STAGES = "A model over several machines"


def settings(section):
    """The one block of a section that goes into cluster.toml."""
    (block,) = re.findall(r"```toml\n(.*?)```", README.split(f"\n## {section}\n")[1].split("\n## ")[0], re.DOTALL)
    return block


def replaced(text, shown, here):
    assert text.count(shown) == 1, f"{shown!r} is not in README.md as this test knows it"
    return text.replace(shown, here)


def on_stand_in_hosts(lab, text):
    """The same cluster where all hosts share one loopback: other addresses, and who dials one is told so."""
    for name in ("head", "gpu1", "gpu2"):
        assert f'host = "{name}"\n' in text
        models = lab.host(name) / "models"
        models.mkdir()
        if name != "head":
            (models / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(real_model())
    text = replaced(text, "127.0.0.1:8080", f"127.0.0.1:{lab.http}")
    text = replaced(text, "10.0.0.1:8443", f"127.0.0.1:{lab.quic}")
    if "stage_listen" in text:
        listen = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        text = replaced(text, "10.0.0.3:8444", listen)
        text = replaced(text, '{ worker = "beta", ', f'{{ worker = "beta", address = "{listen}", ')
    text = re.sub(r'^host = "gpu\d"$', rf'\g<0>\nrouters = ["127.0.0.1:{lab.quic}"]', text, flags=re.MULTILINE)
    # Nothing that a busy machine does is a failure here.
    return text + "\n[cluster.timers]\nidle_ms = 10000\nconnect_ms = 10000\n"


@pytest.mark.parametrize("section, parts", [(HOSTS, ["ready", "ready"]), (STAGES, ["ready", "connected"])], ids=["hosts", "stages"])
def test_the_cluster_of_a_section_comes_up_on_its_hosts_and_answers_as_one_machine_does(lab, real, section, parts):
    text = settings(HOSTS)
    if section == STAGES:
        # "Beside what the section above has": its workers are told anew.
        text = text.split("[[worker]]")[0] + settings(STAGES)
    lab = lab({})
    lab.config.write_text(on_stand_in_hosts(lab, text))
    table = rows(lab.run("up"))
    assert [table[name]["STATE"] for name in ("router", "alpha", "beta")] == ["answers", *parts]
    assert [table[name]["HOST"] for name in ("router", "alpha", "beta")] == ["head", "gpu1", "gpu2"]
    server = Asked(lab)
    server.model = "SmolLM2-135M-Instruct"
    assert [model["id"] for model in server.http.get("/v1/models").json()["data"]] == [server.model]
    for body in (
        {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0},
        {"prompt": "The sea is", "max_tokens": 12, "seed": 7, "n": 2, "logprobs": 2},
    ):
        expected = whole(real, **body)
        assert same(whole(server, **body), expected) and same(streamed(server, **body), expected), body
    lab.run("down")
    lab.nothing_is_left()
