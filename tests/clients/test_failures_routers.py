"""What happens when routers die, are several, lose their names or their clocks: docs/failures.md, by promise."""

import concurrent.futures
import shutil
import signal
import subprocess
import threading

import httpx
import pytest

from contract import same, streamed, whole
from servers import ROOT
from test_failures_workers import all_equal, bodies, running

# A second of silence is a death here.
pytestmark = pytest.mark.alone

HOUR = 3600


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library that lies about wall clock and names."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, ROOT / "tests/clients/shim.c", "-ldl"], check=True)
    return library


@pytest.fixture
def lies(shim, tmp_path):
    """(environment of a process that is lied to, directory of the lies)"""
    return {"LD_PRELOAD": str(shim), "SHIM": str(tmp_path)}, tmp_path


def test_a_router_that_is_killed_leaves_nothing_behind_and_its_workers_come_back_to_the_next(fleets, scripted):
    """Six of them, at once: more workers than cores, each with a wait of its own."""
    names = [f"w{number}" for number in range(6)]
    fleet = fleets(*names, timers="idle_ms = 1000", slots=8)
    router = fleet.router
    lives = {name: router.worker(name)["incarnation"] for name in names}
    requests = bodies(8, 3000)

    def cut(body):
        with pytest.raises(httpx.TransportError):
            streamed(router, **body)

    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        asked = [pool.submit(cut, body) for body in requests]
        router.wait_until("all to be taken", lambda: router.metric("shoal_route_total") >= len(requests))
        router.process.child.send_signal(signal.SIGKILL)
        router.process.child.wait()
        for one in asked:
            one.result()
    router.start().await_workers(len(names))
    assert {name: router.worker(name)["incarnation"] for name in names} == lives
    fleet.keeps_its_promises()
    requests = bodies(6, 20)
    with running(router, requests) as answers:
        pass
    assert all_equal(answers, requests, scripted)


def test_two_routers_share_workers_and_the_death_of_one_touches_only_its_own(fleets, scripted):
    fleet = fleets(routers=2, slots=6, step_ms=4, timers="idle_ms = 1000")
    one, other = fleet.routers
    most, over = 0, threading.Event()

    def watch():
        nonlocal most
        while not over.wait(0.05):
            most = max([most, *(worker["load"]["running"] for worker in one.cluster()["workers"] if worker["load"])])

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept, lost = bodies(8, 400), bodies(8, 3000, "lost")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        doomed = [pool.submit(streamed, other, **body) for body in lost]
        other.wait_until("the other's to be taken", lambda: other.metric("shoal_route_total") >= len(lost))
        with running(one, kept) as answers:
            other.process.child.send_signal(signal.SIGKILL)
            other.process.child.wait()
            assert all(isinstance(one.exception(), httpx.TransportError) for one in doomed)
    over.set()
    watcher.join()
    assert all_equal(answers, kept, scripted) and one.replays() == 0
    assert 0 < most <= 6, "more ran on a worker than it has slots for"
    one.wait_until("the other's sequences to be let go", one.is_idle)
    other.start().await_workers(2)


def test_a_wall_clock_that_is_wrong_and_jumps_is_noticed_by_nobody(fleets, scripted, lies):
    environment, directory = lies
    (directory / "clock").write_text(str(-HOUR // 4))
    fleet = fleets(env=environment)
    requests = bodies(8, 500)
    with running(fleet.router, requests) as answers:
        for jump in (HOUR, -HOUR // 2, 24 * HOUR, 0, HOUR):
            (directory / "clock").write_text(str(jump))
            body = {"prompt": f"meanwhile {jump}", "max_tokens": 5, "seed": 1}
            assert same(whole(fleet.router, **body), whole(scripted, **body))
    assert all_equal(answers, requests, scripted)
    assert fleet.router.replays() == 0 and fleet.router.metric("shoal_worker_stalls_total") == 0
    shown = [worker["heard_ms"] for worker in fleet.router.cluster()["workers"]]
    assert max(shown) < 10_000, "the jump is in the times"


def test_a_clock_before_its_certificate_is_told_in_a_sentence(fleets, lies):
    environment, directory = lies
    fleet = fleets("alpha", env=environment, timers="idle_ms = 1000")
    fleet.kill_and_miss("alpha")
    (directory / "clock").write_text(str(-400 * 24 * HOUR))
    late = fleet.start_worker("alpha")
    said = late.wait_for("the reason", lambda: late.log() if "not valid" in late.log() or "clock" in late.log() else None)
    assert "clock" in said, said
    (directory / "clock").write_text("0")
    fleet.kill("alpha")
    fleet.start_worker("alpha")
    fleet.router.wait_until("alpha", lambda: fleet.router.state("alpha") == "ready")


def test_a_name_that_cannot_be_resolved_for_a_while_breaks_no_connection(fleets, scripted, lies):
    environment, directory = lies
    fleet = fleets("alpha", env=environment, timers="idle_ms = 1000")
    # By name from now on.
    fleet.kill_and_miss("alpha")
    fleet.per_worker = {"alpha": {"routers": [f"router.test:{fleet.router.quic}"]}}
    alpha = fleet.start_worker("alpha")
    fleet.router.wait_until("alpha", lambda: fleet.router.state("alpha") == "ready")
    (directory / "nxdomain").touch()
    requests = bodies(4, 150)
    with running(fleet.router, requests) as answers:
        pass
    assert all_equal(answers, requests, scripted) and fleet.router.replays() == 0
    # A router that starts again is looked for on and on.
    fleet.router.process.stop()
    alpha.wait_for("the failed look-up", lambda: "the address cannot be resolved" in alpha.log())
    fleet.router.start()
    (directory / "nxdomain").unlink()
    fleet.router.wait_until("alpha", lambda: fleet.router.state("alpha") == "ready")
    body = {"prompt": "found again", "max_tokens": 9, "seed": 1}
    assert same(whole(fleet.router, **body), whole(scripted, **body))
