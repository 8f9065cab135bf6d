"""What a client sees when workers die, freeze, hang or leave: docs/failures.md, by promise. Every answer is compared, to the
byte, with the one that a server at rest gives."""

import concurrent.futures
import contextlib
import time

import pytest

import chaos
from contract import refused, same, streamed, whole
from fleet import ending

# A second of silence is a death here.
pytestmark = pytest.mark.alone


# What a router logs of a worker that its witness has told of.
FAREWELL_MISSED = "a worker's process has ended without a farewell"


def bodies(count, tokens, name="stream"):
    """Requests that last for `tokens` steps."""
    return [
        {"prompt": f"{name} {k}", "n": 1 + k % 2, "max_tokens": tokens, "ignore_eos": True, "seed": k, "temperature": 1.2}
        for k in range(count)
    ]


@contextlib.contextmanager
def running(server, requests, ask=streamed):
    """Asks for all at once; the answers are awaited at the end, in order."""
    answers, before = [], server.metric("shoal_route_total")
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        asked = [pool.submit(ask, server, **body) for body in requests]
        server.wait_until("all to be taken", lambda: server.metric("shoal_route_total") >= before + len(requests))
        yield answers
        answers.extend(one.result() for one in asked)


def at_rest(server, requests):
    """What a server that nothing happens to answers."""
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda body: whole(server, **body), requests))


def all_equal(answers, requests, scripted):
    return all(map(same, answers, at_rest(scripted, requests))) and len(answers) == len(requests)


def test_a_worker_killed_before_the_first_token_costs_time_alone(fleets, scripted):
    fleet = fleets(step_ms=700)
    body = {"prompt": "not yet", "max_tokens": 3, "seed": 1}
    with running(fleet.router, [body], whole) as answers:
        fleet.kill(fleet.serving())
    assert all_equal(answers, [body], scripted)
    assert fleet.router.replays() == 1


def test_when_all_workers_die_streams_end_with_an_error_and_new_requests_are_told_to_come_back(fleets, scripted):
    fleet = fleets(timers="idle_ms = 1000")
    requests = bodies(6, 2000)
    with running(fleet.router, requests, ending) as ended:
        fleet.serving()
        time.sleep(0.2)
        for name in fleet.names:
            fleet.kill(name)
    beginnings = at_rest(scripted, [{**body, "max_tokens": 500} for body in requests])
    for one, body, expected in zip(ended, requests, beginnings, strict=True):
        assert one.error["code"] == "worker_failed"
        choices = one.answer().choices
        assert {choice.finish for choice in choices.values()} == {"cancelled"} and len(choices) == body["n"]
        for index, choice in choices.items():
            assert expected.choices[index].text.startswith(choice.text) and choice.text, "a gap, or nothing at all"
    response = fleet.router.http.post("/v1/completions", json={"model": "scripted", "prompt": "x"})
    assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
    assert fleet.router.http.get("/readyz").status_code == 503


def test_a_frozen_worker_s_streams_go_on_elsewhere_and_nothing_it_says_later_is_used(fleets, scripted):
    fleet = fleets(timers="idle_ms = 1000")
    requests = bodies(10, 500)
    with running(fleet.router, requests) as answers:
        fleet.freeze("alpha")
        fleet.router.wait_until("alpha to be missed", lambda: fleet.router.state("alpha") in ("away", "gone"))
        # While the streams run on: its late tokens are on streams that nobody reads.
        fleet.thaw("alpha")
        fleet.router.wait_until("alpha to be back", lambda: fleet.router.state("alpha") == "ready")
    assert all_equal(answers, requests, scripted)
    assert fleet.router.replays() > 0


def test_a_short_freeze_is_nothing(fleets, scripted):
    fleet = fleets(timers="idle_ms = 10000")
    requests = bodies(6, 150)
    with running(fleet.router, requests) as answers:
        fleet.freeze("alpha")
        time.sleep(1.5)
        fleet.thaw("alpha")
    assert all_equal(answers, requests, scripted)
    assert fleet.router.replays() == 0
    assert fleet.router.metric("shoal_worker_stalls_total") == 0, "a frozen worker vouches for nothing"


def test_an_engine_that_hangs_while_its_network_lives_loses_its_requests_to_another_worker(fleets, scripted):
    fleet = fleets(per_worker={"alpha": {"model": 'faults = "on"\nhang_ms = 7000'}})
    router = fleet.router
    # A worker whose speed is known is not waited for as long as one that has never computed anything.
    warm = bodies(4, 8, "warm")
    with running(router, warm):
        pass
    before = router.worker("alpha")["incarnation"]
    requests = bodies(8, 500)
    hanging = {"prompt": "a !!hang!!", "max_tokens": 4, "seed": 1}
    with running(router, requests) as answers, contextlib.ExitStack() as hung:
        # Only alpha has the fault, so it must be alpha that takes this one.
        router.order("beta", "drain")
        last = hung.enter_context(running(router, [hanging]))
        router.order("beta", "undrain")
        router.wait_until("alpha to be missed", lambda: router.state("alpha") == "stuck")
        # Nothing goes there until it moves, and the worker itself is not taken for dead.
        assert whole(router, prompt="meanwhile", max_tokens=2).text
        assert router.worker("alpha")["incarnation"] == before
        assert router.http.get("/v1/models").json()["data"] and router.http.get("/readyz").status_code == 200
    assert all_equal(answers + last, [*requests, hanging], scripted)
    assert router.metric("shoal_worker_stalls_total") == 1 and router.replays() > 0
    router.wait_until("alpha to move again", lambda: router.state("alpha") == "ready")
    assert router.worker("alpha")["incarnation"] == before and router.cluster()["incidents"] == []
    fleet.keeps_its_promises()


def test_a_request_that_crashes_workers_ends_after_two_and_the_others_do_not_notice(fleets, scripted):
    fleet = fleets("alpha", "beta", "gamma", model='faults = "on"', timers="idle_ms = 1000")
    requests = bodies(9, 900)
    with running(fleet.router, requests) as answers:
        fleet.serving()
        time.sleep(0.5)
        poison = fleet.router.http.post("/v1/completions", json={"model": "scripted", "prompt": "a !!crash!!", "max_tokens": 4})
        assert poison.status_code == 502 and poison.json()["code"] == "worker_failed", poison.text
    assert all_equal(answers, requests, scripted)
    assert fleet.router.metric("shoal_replays_refused_total", 'why="poison"') == 1
    crashed = [name for name in fleet.names if not fleet.workers[name].alive()]
    assert len(crashed) == 2
    for name in crashed:
        fleet.gone(name)


def test_a_request_at_which_the_engine_fails_ends_alone(fleets, scripted):
    fleet = fleets(model='faults = "on"')
    requests = bodies(8, 200)
    with running(fleet.router, requests) as answers:
        said = refused(fleet.router, 502, prompt="a !!fail!! b", max_tokens=4)
        assert said["code"] == "worker_failed"
    assert all_equal(answers, requests, scripted)
    assert fleet.router.replays() == 1, "others were lost with it"
    assert all(process.alive() for process in fleet.workers.values())


def test_what_a_worker_cannot_finish_before_it_must_end_goes_on_elsewhere(fleets, scripted):
    fleet = fleets(timers="drain_ms = 300")
    requests = bodies(8, 500)
    with running(fleet.router, requests) as answers:
        alpha = fleet.workers.pop("alpha")
        alpha.stop()
    assert all_equal(answers, requests, scripted)
    assert fleet.router.replays() > 0
    assert FAREWELL_MISSED not in fleet.router.process.log(), "it had ended in order"


def test_of_two_workers_of_one_name_one_serves_and_the_other_takes_its_place_when_it_is_gone(fleets, scripted):
    fleet = fleets("alpha")
    first = fleet.router.worker("alpha")["incarnation"]
    twin = fleet.start_worker("alpha", key="twin")
    twin.wait_for("the refusal", lambda: "a worker of this name is connected already" in twin.log())
    body = {"prompt": "one of two", "max_tokens": 30, "seed": 2}
    assert same(whole(fleet.router, **body), whole(scripted, **body))
    shown = fleet.router.cluster()
    assert [(worker["name"], worker["incarnation"]) for worker in shown["workers"]] == [("alpha", first)]
    assert "duplicate_name" in [incident["cause"] for incident in shown["incidents"]]
    fleet.kill("alpha")
    fleet.router.wait_until("the other to serve", lambda: (fleet.router.worker("alpha") or {}).get("incarnation") not in (None, first))
    assert same(whole(fleet.router, **body), whole(scripted, **body))


def test_requests_of_every_kind_survive_kill_after_kill(tmp_path):
    """The short form of `scripts/chaos`."""
    report = chaos.play(chaos.Rules(tmp_path / "fleet", kills=4, streams=16, requests=20))
    assert report.faults == [] and report.kills == 4 and report.replays > 0 and report.across > 0, report


def test_a_killed_worker_s_streams_go_on_elsewhere_though_its_silence_would_be_borne_for_a_minute(fleets, scripted):
    # What is left behind of it tells the router, or this would take longer than a client waits.
    fleet = fleets(timers="idle_ms = 60000")
    requests = bodies(8, 400)
    with running(fleet.router, requests) as answers:
        fleet.kill(fleet.serving())
    assert all_equal(answers, requests, scripted)
    assert fleet.router.replays() > 0 and FAREWELL_MISSED in fleet.router.process.log()
    assert "its process has ended" in fleet.router.cluster()["incidents"][0]["why"]
