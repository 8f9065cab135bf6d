"""The promises of the measurement's own code: how ratios are made, and that no server is left behind."""

import json
import pathlib
import struct
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import contestants
import lora
import table
import zipf


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


def test_what_adapters_cost_is_told_of_each_server_by_itself_within_a_round():
    samples = []
    for number, pace in enumerate((1, 2, 1), start=1):
        for server, model, base, kept in (("shoal", "q", 300, 0.9), ("llama-server", "q", 200, 0.5), ("vllm", "x-bf16", 100, 0.8)):
            samples.append(sample(server, model, number, base * pace))
            samples.append(sample(server, model, number, base * pace * kept, "adapters"))
    told = table.tell(samples, [], 3).split("**Adapters**")[1]
    assert cells_of(told, "shoal") == [["q", "8", "shoal", "300", "270", "0.90", "2.70"]]
    assert cells_of(told, "llama-server")[0][3:] == ["200", "100", "0.50", ""]
    assert cells_of(told, "vllm")[0][2:] == ["vllm (x-bf16)", "100", "80.0", "0.80", ""]


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


def test_skewed_traffic_is_the_same_for_its_seed_and_meets_few_often():
    drawn = zipf.draws(100, 1.1, 5000, 7)
    assert drawn == zipf.draws(100, 1.1, 5000, 7) != zipf.draws(100, 1.1, 5000, 8)
    counts = sorted((drawn.count(rank) for rank in range(100)), reverse=True)
    assert 0.2 < counts[0] / 5000 < 0.3 and counts[50] > 0


def test_a_cache_lets_go_of_what_was_asked_for_longest_ago():
    cache = zipf.Lru(2)
    assert [cache.asks(name) for name in "abacba"] == [False, False, True, False, False, False]
    assert list(cache.names) == ["b", "a"]


def test_random_adapters_are_the_same_for_their_seed_and_have_numbers_of_one_size(tmp_path):
    shape = (64, 64, 32, 160, 2)
    one, again, other = (lora.write(tmp_path / name, shape, seed, 2) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    weights = [(directory / lora.WEIGHTS).read_bytes() for directory in (one, again, other)]
    assert weights[0] == weights[1] != weights[2]
    length = int.from_bytes(weights[0][:8], "little")
    header = json.loads(weights[0][8 : 8 + length])
    assert len(header) == 2 * 7 * 2
    values = struct.unpack(f"<{(len(weights[0]) - 8 - length) // 4}f", weights[0][8 + length :])
    assert all(2**-7 <= abs(value) < 2**-5 for value in values) and min(values) < 0 < max(values)
