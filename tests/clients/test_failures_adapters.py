"""What happens to requests with adapters when files, disks and workers fail: docs/failures.md, by promise."""

import hashlib
import os
import subprocess

import pytest

from contract import refused, same, streamed, whole
from servers import GOLDEN
from test_failures_workers import running

QV, ALL = GOLDEN / "tiny/tiny-qv", GOLDEN / "tiny/tiny-all"
FILES = ("adapter_config.json", "adapter_model.safetensors")


def put(router, name, directory):
    response = router.http.put(f"/v1/adapters/{name}", files={file: (file, (directory / file).read_bytes()) for file in FILES})
    assert response.status_code in (200, 201), response.text
    return response.json()


def test_an_adapter_that_is_given_new_content_in_the_middle_of_an_answer_does_not_change_it_even_through_a_death(fleets):
    fleet = fleets(step_ms=3)
    put(fleet.router, "changing", QV)
    body = {"prompt": "which one", "peft": "changing", "max_tokens": 900, "ignore_eos": True, "seed": 5}
    expected = whole(fleet.router, **body)
    before = fleet.router.metric("shoal_route_total")
    with running(fleet.router, [body, {**body, "n": 2, "prompt": "and that"}]) as answers:
        fleet.router.wait_until("both to run", lambda: fleet.router.metric("shoal_route_total") >= before + 2)
        put(fleet.router, "changing", ALL)
        changed = whole(fleet.router, **{**body, "max_tokens": 20})
        assert changed.fingerprint != expected.fingerprint and not expected.text.startswith(changed.text)
        fleet.kill(fleet.serving())
    assert same(answers[0], expected) and answers[1].fingerprint == expected.fingerprint
    assert fleet.router.replays() > 0


def test_an_adapter_whose_files_are_gone_from_a_worker_is_fetched_again_and_never_replaced_by_the_base_model(fleets):
    fleet = fleets("alpha")
    put(fleet.router, "lost", QV)
    body = {"prompt": "here?", "peft": "lost", "max_tokens": 30, "ignore_eos": True, "seed": 5}
    expected, base = whole(fleet.router, **body), whole(fleet.router, **{**body, "peft": None})
    assert expected.text != base.text
    fleet.kill_and_miss("alpha")
    kept = [path for path in (fleet.directory / "data-alpha/adapters").rglob("*") if path.is_file()]
    assert kept, "the worker keeps no files: nothing to lose"
    for path in kept:
        path.write_bytes(b"\0" * path.stat().st_size)
    fleet.start_worker("alpha")
    fleet.router.await_workers(1)
    assert same(whole(fleet.router, **body), expected)
    fleet.router.http.delete("/v1/adapters/lost")
    assert refused(fleet.router, 404, **body)["code"] == "adapter_not_found"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_costs_the_adapter_that_it_has_no_room_for_and_nothing_else(fleets, small_disk):
    fleet = fleets("alpha", per_worker={"alpha": {"data_dir": small_disk}})
    put(fleet.router, "early", QV)
    early = {"prompt": "early", "peft": "early", "max_tokens": 10, "seed": 1}
    expected = whole(fleet.router, **early)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"\0" * 512)
    put(fleet.router, "late", ALL)
    late = {"prompt": "late", "peft": "late", "max_tokens": 10, "seed": 1}
    said = refused(fleet.router, 503, **late)
    assert said["code"] == "adapter_unavailable", said
    # The one that is in memory serves, and so does the base model; nothing partial is kept.
    assert same(whole(fleet.router, **early), expected)
    assert whole(fleet.router, prompt="base", max_tokens=3).text
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (small_disk / "adapters").rglob("*") if path.is_file() and path.stat().st_size}
    filler.unlink()
    assert same(fleet.router.wait_until("room", lambda: answered(fleet.router, late)), streamed(fleet.router, **late))
    left = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (small_disk / "adapters").rglob("*") if path.is_file() and path.stat().st_size}
    assert digests <= left, "a part of a file was kept"


def answered(router, body):
    """The answer, or None while it is put off."""
    response = router.http.post("/v1/completions", json={"model": router.model, **body})
    assert response.status_code in (200, 503), response.text
    return whole(router, **body) if response.status_code == 200 else None
