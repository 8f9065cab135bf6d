"""The promises of the measurement's own code: how ratios are made, and that no server is left behind."""

import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import contestants
import table


def sample(server, model, round_number, tokens_per_s, kind="load", ttft=100.0):
    return table.Sample("smollm2", model, server, round_number, kind, 8, tokens_per_s, 512, ttft, ttft * 2, 5.0, 9.0)


def cells_of(text, server):
    lines = [line for line in text.splitlines() if f"| {server} " in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_ratio_is_made_within_a_round_and_against_the_best_of_it():
    # The machine is twice as fast in the second round, and the best peer is another one in each.
    samples = []
    for number, pace in enumerate((1, 2, 1), start=1):
        samples.append(sample("shoal", "smollm2-q4_1", number, 300 * pace))
        samples.append(sample("llama-server", "smollm2-q4_1", number, (100 if number == 2 else 50) * pace))
        samples.append(sample("vllm", "smollm2-bf16", number, (50 if number == 2 else 150) * pace))
    told = table.tell(samples, [], 3)
    (shoal,) = cells_of(told, "shoal")
    assert shoal[:5] == ["smollm2-q4_1", "8", "shoal", "300", "300-600"]
    assert shoal[7] == "2.00"
    (vllm,) = cells_of(told, "vllm")
    assert vllm[2] == "vllm (smollm2-bf16)" and vllm[7] == ""


def test_a_peer_with_other_files_is_compared_with_every_model_of_its_family():
    samples = [sample("shoal", "smollm2-q4_1", 1, 300), sample("shoal", "smollm2-q8_0", 1, 200)]
    samples += [sample("llama-server", "smollm2-q4_1", 1, 100), sample("vllm", "smollm2-bf16", 1, 50)]
    told = table.tell(samples, [], 1)
    ratios = {cells[0]: cells[7] for cells in cells_of(told, "shoal")}
    assert ratios == {"smollm2-q4_1": "3.00", "smollm2-q8_0": "4.00"}


def test_prefill_is_told_in_prompt_tokens_per_second():
    samples = [
        sample("shoal", "smollm2-q4_1", 1, 1, "prefill", 50.0),
        sample("vllm", "smollm2-bf16", 1, 1, "prefill", 100.0),
    ]
    samples.append(sample("llama-server", "smollm2-q4_1", 1, 1, "prefill", 400.0))
    (shoal,) = cells_of(table.tell(samples, [], 1), "shoal")
    assert shoal == ["smollm2-q4_1", "shoal", "512", "50.0", "10240", "0.50", "0.12"]


def test_peers_are_told_without_shoal():
    told = table.tell([sample("vllm", "smollm2-bf16", 1, 50)], [], 1)
    assert [cells[3] for cells in cells_of(told, "vllm")] == ["50.0"]


def test_a_machine_that_others_use_is_told():
    start = table.Start("smollm2-q4_1", "shoal", 1, 1.0, 500, 0.05)
    assert "Not to be trusted" not in table.tell([], [start], 1)
    start.others = 1.2
    assert "others kept up to 1.2 cores busy in 1 of 1 measurements" in table.tell([], [start], 1)


SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[2], "w").write(str(child.pid))
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def contestant(port, note, code=SERVER):
    command = [sys.executable, "-c", code, port, note]
    return contestants.Contestant("stand-in", "none", command, {}, "/", 30)


def lives(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError:
        return False
    return state != "Z"


def test_nothing_of_a_server_is_left_not_even_its_children(tmp_path):
    port = contestants.free_port()
    with contestants.Running(contestant(port, tmp_path / "child"), port, tmp_path / "log") as server:
        child = int((tmp_path / "child").read_text())
        assert lives(child) and lives(server.process.pid)
        assert server.memory() > 1 << 20 and server.ready_after > 0
    deadline = time.monotonic() + 10
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not lives(child) and not lives(server.process.pid)


def test_a_server_that_ends_is_a_failure_at_once(tmp_path):
    port = contestants.free_port()
    broken = contestant(port, tmp_path / "child", "raise SystemExit(3)")
    with pytest.raises(contestants.ServerFailed, match="ended with code 3"):
        with contestants.Running(broken, port, tmp_path / "log"):
            pass


def test_what_the_server_uses_is_not_the_others(monkeypatch):
    class Server:
        used = iter([10.0, 12.0])

        def cpu_seconds(self):
            return next(self.used)

    busy, clock = iter([100.0, 103.0]), iter([0.0, 2.0])
    monkeypatch.setattr(contestants, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(contestants.time, "monotonic", lambda: next(clock))
    assert contestants.Others(Server()).cores() == 0.5
