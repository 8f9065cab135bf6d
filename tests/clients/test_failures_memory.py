"""What clients see when the kernel kills a worker for want of memory, and what keeps that from happening: docs/failures.md, by
promise. Workers run in control groups with a limit, which takes the right to make some."""

import contextlib
import signal

import pytest

from contract import chunks, collect, same, whole
from groups import MemoryGroup, NoGroups
from servers import GOLDEN
from test_failures_workers import all_equal, bodies, running
from test_stages import TINY_CUTS, Cluster

pytestmark = pytest.mark.alone

MIB = 1 << 20
TINY = GOLDEN / "tiny/gguf/tiny-q4_1.gguf"
# What a token of its KV takes, as `shoal check` says.
TINY_KV = 512


@pytest.fixture
def memory_group():
    made = []

    def make(limit):
        try:
            made.append(MemoryGroup(limit))
        except NoGroups as error:
            pytest.skip(f"no control group with a limit on memory can be made: {error}")
        return made[-1]

    yield make
    for one in made:
        one.remove()


@contextlib.contextmanager
def killer(group):
    """Gives a function that has the kernel kill the one process in the group, and sees that it was for want of memory."""
    with group.hog() as fill:

        def kill(process):
            before = group.kills()
            fill()
            assert process.child.wait(60) == -signal.SIGKILL
            assert group.kills() > before, "something else killed it"

        yield kill


def test_a_worker_that_the_kernel_kills_for_want_of_memory_again_and_again_costs_no_answer_anything(memory_group, fleets, scripted):
    group = memory_group(192 * MIB)
    fleet = fleets(timers="idle_ms = 1000", per_worker={"alpha": {"within": group.within}})
    for life in range(3):
        replays, requests = fleet.router.replays(), bodies(10, 600, f"life {life}")
        with killer(group) as kill, running(fleet.router, requests) as answers:
            fleet.router.wait_until("alpha to serve", lambda: fleet.router.worker("alpha")["outstanding_tokens"])
            kill(fleet.workers["alpha"])
            del fleet.workers["alpha"]
        assert all_equal(answers, requests, scripted)
        assert fleet.router.replays() > replays, "nothing ran on it"
        fleet.router.wait_until("alpha to be missed", lambda: fleet.router.state("alpha") in ("away", "gone"))
        fleet.start_worker("alpha")
        fleet.router.await_workers(2)
    assert fleet.router.metric("shoal_replays_refused_total") == 0


def test_a_stage_that_the_kernel_kills_for_want_of_memory_is_taken_back_when_it_is_started_again(memory_group, tmp_path):
    group = memory_group(192 * MIB)
    cluster = Cluster(tmp_path, TINY, ["alpha", "beta"], TINY_CUTS[2], within={"beta": group.within}, idle_ms=4000)
    try:
        cluster.await_state("solo", "ready")
        cluster.await_state("alpha", "ready")
        body = {"model": "m", "prompt": "Once", "n": 8, "max_tokens": 480, "ignore_eos": True, "seed": 3, "logprobs": 1}
        expected = whole(cluster, **body)
        cluster.order("solo", "drain")
        replays = cluster.metric("shoal_replays_total")
        with killer(group) as kill, cluster.http.stream("POST", "/v1/completions", json={"stream": True, **body}) as response:
            documents, arriving = [], chunks(response)
            documents.append(next(arriving))
            kill(cluster.started["beta"])
            del cluster.started["beta"]
            cluster.order("solo", "undrain")
            documents += arriving
        assert same(collect(documents, response.headers), expected)
        assert cluster.metric("shoal_replays_total") > replays, "nothing ran on the replica"
        cluster.await_state("alpha", "incomplete")
        cluster.begin("beta")
        cluster.await_state("alpha", "ready")
        cluster.order("solo", "drain")
        assert same(whole(cluster, **body), expected)
        cluster.order("solo", "undrain")
        cluster.stop()
    finally:
        cluster.kill_all()


def test_a_worker_takes_the_memory_that_its_control_group_has_and_not_the_machine_s(memory_group, fleets):
    group = memory_group(128 * MIB)
    fleet = fleets(weights=TINY, slots=1024, per_worker={"alpha": {"within": group.within}})
    kv = {name: fleet.router.worker(name)["capacity"]["kv_tokens"] * TINY_KV for name in fleet.names}
    assert 0 < kv["alpha"] < group.limit / 4 < group.limit < kv["beta"], kv


def test_a_worker_that_can_never_have_the_memory_for_its_kv_says_so_and_what_to_do_before_it_serves(memory_group, fleets):
    group = memory_group(128 * MIB)
    if not group.has_no_swap():
        pytest.skip("swap cannot be kept out of the control group")
    fleet = fleets("beta", "alpha", weights=TINY, slots=1024, start=["beta"])
    fleet.per_worker["alpha"] = {"within": group.within, "more": "kv_tokens = 400000\n"}
    process = fleet.start_worker("alpha")
    assert fleet.gone("alpha") == 1 and group.kills() == 0
    said = process.log()
    assert "but this process can have no more than 128 MiB: lower kv_tokens" in said, said
    assert [worker["name"] for worker in fleet.router.cluster()["workers"]] == ["beta"]
