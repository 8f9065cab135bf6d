"""Workers of a zone fetch adapters from each other, and from the router where that fails: by its metrics, and by what they
answer."""

import socket

import pytest

from adapters import TINY_SHAPE, document, lora
from contract import same, whole
from relay import Relay
from servers import free_port

pytestmark = pytest.mark.alone

ADAPTER = "everywhere"
SENT = "shoal_adapter_blob_bytes_total"


@pytest.fixture
def neighbours(fleets, tmp_path):
    """alpha, beta and gamma, of which alpha alone is there yet and has the adapter that all of them must keep in memory. alpha
    lends to beta, which is of its zone; gamma is of another, as the router is. Gives the fleet and the relay before alpha."""
    made = []

    def make(rank=4, timers=""):
        directory = lora.write(tmp_path / ADAPTER, TINY_SHAPE, 1, rank=rank)
        port = free_port(socket.SOCK_DGRAM)
        relay = Relay(("127.0.0.1", port))
        made.append(relay)
        lends = f'zone = "rack"\npeer_listen = "127.0.0.1:{port}"\npeer_address = "127.0.0.1:{relay.port}"\n'
        fleet = fleets(
            *("alpha", "beta", "gamma"),
            start=["alpha"],
            timers=timers,
            shares_settings=True,
            in_router='zone = "office"',
            limits=f'[[adapter]]\nname = "{ADAPTER}"\npath = "{directory}"\npin = true\n',
            per_worker={"alpha": {"more": lends}, "beta": {"more": 'zone = "rack"\n'}, "gamma": {"more": 'zone = "yard"\n'}},
        )
        fleet.router.wait_until("alpha to have it", lambda: has(fleet.router, "alpha"))
        return fleet, relay

    yield make
    for relay in made:
        relay.stop()


def has(router, worker):
    """Whether the adapter is in a worker's memory."""
    return any(on["worker"] == worker and on["tier"] == "memory" for on in document(router, ADAPTER)["workers"])


def answer_of(fleet, worker, **body):
    """What one worker answers, while the others take nothing."""
    others = [name for name in fleet.workers if name != worker]
    for other in others:
        fleet.router.order(other, "drain")
    answer = whole(fleet.router, peft=ADAPTER, max_tokens=30, ignore_eos=True, seed=5, **body)
    for other in others:
        fleet.router.order(other, "undrain")
    fleet.router.await_workers(len(fleet.workers))
    return answer


def test_the_second_worker_of_a_zone_has_an_adapter_from_the_first_and_not_from_the_router(neighbours):
    fleet, relay = neighbours()
    router = fleet.router
    once = router.metric(SENT)
    assert once > 0
    fleet.start_worker("beta")
    router.wait_until("beta to have it", lambda: has(router, "beta"))
    assert router.metric(SENT) == once, "the router has sent it again"
    assert router.metric("shoal_adapter_hints_total", 'nearest="peers"') == 1
    assert router.metric("shoal_adapter_hints_in_vain_total") == 0
    assert "from=worker alpha" in fleet.workers["beta"].log()
    assert relay.down.seen > 0
    fleet.start_worker("gamma")
    router.wait_until("gamma to have it", lambda: has(router, "gamma"))
    assert router.metric(SENT) == 2 * once, "nobody is nearer to gamma"
    router.await_workers(3)
    answers = [answer_of(fleet, name, prompt="which one?") for name in ("alpha", "beta", "gamma")]
    assert same(answers[0], answers[1]) and same(answers[0], answers[2])


def test_a_neighbour_that_dies_in_the_middle_of_a_fetch_costs_nothing_but_time(neighbours):
    fleet, relay = neighbours(rank=256, timers="idle_ms = 1000")
    router = fleet.router
    expected = whole(router, peft=ADAPTER, prompt="still there?", max_tokens=30, ignore_eos=True, seed=5)
    once = router.metric(SENT)
    # Some seconds for all of it.
    relay.down.rate = once / 6
    fleet.start_worker("beta")
    router.wait_until("the fetch to be under way", lambda: relay.down.seen > 200)
    assert not has(router, "beta") and router.metric(SENT) == once
    fleet.kill_and_miss("alpha")
    answered = whole(router, peft=ADAPTER, prompt="still there?", max_tokens=30, ignore_eos=True, seed=5)
    assert same(answered, expected)
    assert router.metric(SENT) == 2 * once
    assert router.metric("shoal_adapter_hints_in_vain_total") == 1
    log = fleet.workers["beta"].log()
    assert "from=worker alpha" in log and "an adapter was not fetched" in log and "from=the router" in log
