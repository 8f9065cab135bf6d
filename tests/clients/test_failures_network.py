"""What a client sees of a bad network between workers and router: nothing. docs/failures.md, by promise."""

import pytest

from contract import same, streamed, whole
from test_failures_workers import all_equal, bodies, running

# A second of silence is a death here.
pytestmark = pytest.mark.alone


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_link_that_is_cut_one_way_is_noticed_and_nothing_is_left_on_the_worker(fleets, scripted, way):
    fleet = fleets(relayed=True, timers="idle_ms = 1000")
    requests = bodies(8, 450)
    before = fleet.router.worker("alpha")["incarnation"]
    with running(fleet.router, requests) as answers:
        getattr(fleet.relays["alpha"], way).cut = True
        fleet.router.wait_until("alpha to be missed", lambda: fleet.router.state("alpha") in ("away", "gone"))
    assert all_equal(answers, requests, scripted)
    assert fleet.router.replays() > 0
    fleet.relays["alpha"].heal()
    fleet.router.wait_until("alpha to be back", lambda: fleet.router.state("alpha") == "ready")
    # The same process: what it held for the groups that it lost is free again.
    assert fleet.router.worker("alpha")["incarnation"] == before
    fleet.keeps_its_promises()


def test_loss_delay_doubles_and_reordering_change_nothing(fleets, scripted):
    fleet = fleets(relayed=True)
    for relay in fleet.relays.values():
        relay.both(loss=0.05, delay=0.05, jitter=0.03, twice=0.05)
    requests = bodies(12, 60) + [{"prompt": "scored " * 40, "loglikelihood": True, "logprobs": 3, "max_tokens": 20, "seed": 1}]
    with running(fleet.router, requests) as answers:
        pass
    assert all_equal(answers, requests, scripted)
    assert sum(relay.up.lost for relay in fleet.relays.values()) > 0, "nothing was lost"
    assert fleet.router.replays() == 0, "a bad link was taken for a dead worker"
    for relay in fleet.relays.values():
        relay.heal()


def test_a_slow_link_slows_its_own_streams_and_grows_no_queue(fleets, scripted):
    """1 Mbit/s, for an answer of four times what that carries in the time it takes to compute."""
    fleet = fleets("alpha", relayed=True, step_ms=2)
    heavy = {"prompt": "heavy", "n": 8, "max_tokens": 200, "ignore_eos": True, "logprobs": 20, "seed": 3}
    light = {"prompt": "light", "max_tokens": 20, "ignore_eos": True, "seed": 4}
    expected = [whole(scripted, **body) for body in (heavy, light)]
    with running(fleet.router, [heavy, light]):
        pass
    before = fleet.workers["alpha"].memory()
    fleet.relays["alpha"].both(rate=125_000)
    found = [streamed(fleet.router, **body) for body in (heavy, light)]
    assert all(map(same, found, expected))
    assert fleet.workers["alpha"].memory() - before < 16 << 20
    assert fleet.router.replays() == 0
