"""How an adapter gets its name and loses it: uploads, paths, vLLM's endpoints, the watched directory, a restart. On the tiny
model, with random adapters: each answers in a way that is its own."""

import pathlib
import shutil
import subprocess

import httpx
import pytest

from adapters import (
    TINY,
    document,
    header,
    lora,
    parts,
    random_adapter,
    serving_adapters,
    upload,
    wait_for_generation,
    wait_for_state,
    watched,
)
from contract import refused, same, streamed, whole
from servers import GOLDEN, Server, binary, free_port, reference_config

ASK = {"prompt": "The light came round", "max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 1}
DOCUMENT_KEYS = {
    *("id", "object", "model", "state", "reason", "source", "pinned", "generation", "previous", "rank", "bytes", "created"),
    *("system_fingerprint", "workers"),
}
WORKER_KEYS = {"worker", "generation", "tier", "bytes", "rank", "load_ms", "idle_ms", "pinned", "reason"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes random adapters, each with its own number."""
    directory = tmp_path_factory.mktemp("made")
    return lambda number, **more: random_adapter(directory / str(number), number, **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory, made):
    """Watches a directory, takes paths of another."""
    directory = tmp_path_factory.mktemp("registry")
    (directory / "allowed").mkdir()
    config = reference_config(directory, "tiny", TINY)
    config.write_text(f'[router]\nadapter_paths = ["{directory}/allowed"]\n' + config.read_text())
    server = serving_adapters(directory, {"lying": made(1)}, "--config", config)
    server.allowed, server.watched = directory / "allowed", directory / "watched"
    yield server
    server.stop()


def post(server, path, body, status=200):
    response = server.http.post(path, json=body)
    assert response.status_code == status, response.text
    return response


def answers_as_itself(server, name, base):
    """Its answer, which is not the base model's and says who gave it."""
    answer = whole(server, **ASK, peft=name)
    assert answer.headers["x-shoal-adapter"] == header(document(server, name))
    assert not same(answer, base) and answer.texts() != base.texts()
    return answer


@pytest.fixture(scope="module")
def base(server):
    return whole(server, **ASK)


def test_an_upload_is_listed_described_answered_and_removed(server, base, made):
    said = upload(server, "sent", made(2))
    assert said == {**document(server, "sent"), "workers": []} and said.keys() == DOCUMENT_KEYS
    assert (said["state"], said["source"], said["model"], said["rank"]) == ("ready", "api", server.model, 4)
    assert said["generation"] and said["previous"] is None and said["pinned"] is False and said["reason"] is None
    answers_as_itself(server, "sent", base)
    # The last word that was heard of the worker may be from when it was still fetching.
    (worker,) = server.wait_until(
        "the worker to say that it has it",
        lambda: [on for on in document(server, "sent")["workers"] if on["tier"] == "memory"],
    )
    assert worker.keys() == WORKER_KEYS
    assert (worker["worker"], worker["generation"], worker["rank"]) == ("worker-1", said["generation"], 4)
    assert worker["bytes"] > 0
    listed = server.http.get("/v1/adapters").json()
    assert listed["object"] == "list" and {"sent", "lying"} == {one["id"] for one in listed["data"]}
    assert server.http.delete("/v1/adapters/sent").status_code in (200, 204)
    assert document(server, "sent") is None
    refused(server, 404, **ASK, peft="sent")


def test_an_upload_over_a_name_is_its_next_generation_and_the_same_files_again_are_not(server, base, made):
    first = upload(server, "changing", made(3))
    one = answers_as_itself(server, "changing", base)
    second = upload(server, "changing", made(4))
    two = answers_as_itself(server, "changing", base)
    assert second["previous"] == first["generation"] != second["generation"]
    assert one.fingerprint != two.fingerprint and one.texts() != two.texts()
    again = upload(server, "changing", made(4))
    assert (again["generation"], again["previous"], again["created"]) == (
        second["generation"],
        second["previous"],
        second["created"],
    )
    back = upload(server, "changing", made(3))
    assert back["generation"] == first["generation"]
    assert same(whole(server, **ASK, peft="changing"), one)
    server.http.delete("/v1/adapters/changing")


def test_a_bad_upload_replaces_nothing(server, base, made):
    upload(server, "kept", made(5))
    before = answers_as_itself(server, "kept", base)
    good = parts(made(5))
    broken = {**good, lora.WEIGHTS: (lora.WEIGHTS, good[lora.WEIGHTS][1][:-1])}
    for files in (broken, {lora.CONFIG: good[lora.CONFIG]}, parts(GOLDEN / "adapters/upper")):
        response = server.http.put("/v1/adapters/kept", files=files)
        assert response.status_code == 422 and response.json()["detail"][0]["msg"], response.text
    assert same(whole(server, **ASK, peft="kept"), before)
    server.http.delete("/v1/adapters/kept")


def test_a_path_that_the_operator_listed_is_registered_and_no_other_is(server, base, made):
    shutil.copytree(made(6), server.allowed / "six")
    said = post(server, "/v1/adapters", {"name": "by-path", "path": str(server.allowed / "six")}).json()
    assert (said["id"], said["state"], said["source"]) == ("by-path", "ready", "api")
    answers_as_itself(server, "by-path", base)
    for path in (made(6), server.allowed / "../watched/lying", "relative", "/etc"):
        post(server, "/v1/adapters", {"name": "elsewhere", "path": str(path)}, status=422)
    assert document(server, "elsewhere") is None
    server.http.delete("/v1/adapters/by-path")


def test_vllm_s_endpoints_load_and_unload(server, base, made):
    shutil.copytree(made(7), server.allowed / "seven")
    load = {"lora_name": "seven", "lora_path": str(server.allowed / "seven")}
    assert post(server, "/v1/load_lora_adapter", load).text == "Success: LoRA adapter 'seven' added successfully."
    answers_as_itself(server, "seven", base)
    post(server, "/v1/load_lora_adapter", load, status=400)
    post(server, "/v1/load_lora_adapter", {**load, "load_inplace": True, "base_model_name": server.model})
    other = post(server, "/v1/load_lora_adapter", {**load, "load_inplace": True, "base_model_name": "other"}, status=422)
    assert other.json()["detail"][0]["loc"] == ["body", "base_model_name"]
    unload = post(server, "/v1/unload_lora_adapter", {"lora_name": "seven"})
    assert unload.text == "Success: LoRA adapter 'seven' removed successfully."
    post(server, "/v1/unload_lora_adapter", {"lora_name": "seven"}, status=404)
    refused(server, 404, **ASK, model="seven")


def test_what_the_directory_has_is_not_changed_by_requests(server, made):
    response = server.http.put("/v1/adapters/lying", files=parts(made(8)))
    assert response.status_code == 409 and "watched directory" in response.json()["error"]["message"]
    assert server.http.delete("/v1/adapters/lying").status_code == 409


def test_a_directory_dropped_in_appears_a_changed_one_is_re_pointed_and_a_removed_one_is_gone(server, base, made):
    place = server.watched / "dropped"
    shutil.copytree(made(9), server.watched / ".dropped")
    assert document(server, "dropped") is None and document(server, ".dropped") is None
    (server.watched / ".dropped").rename(place)
    first = wait_for_state(server, "dropped")
    assert (first["source"], first["previous"]) == ("directory", None)
    one = answers_as_itself(server, "dropped", base)

    for file in parts(made(10)):
        shutil.copyfile(made(10) / file, place / file)
    second = wait_for_generation(server, "dropped", first["generation"])
    assert second["previous"] == first["generation"]
    two = answers_as_itself(server, "dropped", base)
    assert one.texts() != two.texts() and one.fingerprint != two.fingerprint

    # Broken files over good ones: these stay in service, and the document says why the new ones are not.
    (place / lora.WEIGHTS).write_bytes(b"broken")
    said = server.wait_until("a reason", lambda: (now := document(server, "dropped"))["reason"] and now)
    assert (said["state"], said["generation"]) == ("ready", second["generation"])
    assert same(whole(server, **ASK, peft="dropped"), two)

    shutil.rmtree(place)
    server.wait_until("it to be gone", lambda: document(server, "dropped") is None)
    refused(server, 404, **ASK, peft="dropped")


def test_streams_that_run_when_their_adapter_is_removed_end_with_it(server, base, made):
    upload(server, "leaving", made(11))
    body = {**ASK, "max_tokens": 200, "peft": "leaving"}
    expected = whole(server, **body)
    with server.http.stream("POST", "/v1/completions", json={"model": server.model, "stream": True, **body}) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.http.delete("/v1/adapters/leaving").status_code in (200, 204)
        rest = list(lines)
    assert "data: [DONE]" in rest and not any(line.startswith("event: error") for line in rest)
    assert sum(line.startswith("data: {") for line in rest) >= 198
    refused(server, 404, **body)
    upload(server, "leaving", made(11))
    assert same(streamed(server, **body), expected)
    server.http.delete("/v1/adapters/leaving")


def test_names_survive_a_restart_with_their_content(tmp_path, made):
    """Uploads too: nobody has their files but the router."""
    arguments = ("--model", TINY, "--model-name", "tiny", "--adapters", watched(tmp_path / "lying", {"lying": made(12)}))
    first = Server.dev(tmp_path, *arguments)
    wait_for_state(first, "lying")
    upload(first, "sent", made(13))
    names = ("lying", "sent")
    before = {name: (document(first, name)["generation"], whole(first, **ASK, peft=name)) for name in names}
    first.stop()

    shutil.rmtree(tmp_path / "lying/lying")
    random_adapter(tmp_path / "lying/new", 14)
    second = Server.dev(tmp_path, *arguments)
    sent = document(second, "sent")
    assert (sent["state"], sent["generation"]) == ("ready", before["sent"][0])
    assert same(whole(second, **ASK, peft="sent"), before["sent"][1])
    second.wait_until("the removed directory to be noticed", lambda: document(second, "lying") is None)
    refused(second, 404, **ASK, peft="lying")
    wait_for_state(second, "new")
    second.stop()


def check(*arguments):
    done = subprocess.run([binary(), "check", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_shoal_check_shows_good_adapters_and_fails_for_bad_ones_with_their_reasons(tmp_path, made):
    config = reference_config(tmp_path, "tiny", TINY)
    place = watched(tmp_path / "adapters", {"good": made(15)})
    shutil.copytree(made(16), tmp_path / "named")
    named = f'\n[[adapter]]\nname = "named"\npath = "{tmp_path}/named"\npin = true\n'
    config.write_text(f'[router]\nadapters = "{place}"\n' + config.read_text() + named)
    code, out, err = check("--config", config)
    assert (code, err) == (0, ""), err
    assert "good: for tiny, rank 4" in out and "named: for tiny, rank 4" in out and "pinned" in out

    shutil.copytree(GOLDEN / "bad-adapters/config-dora", place / "dora")
    shutil.copytree(GOLDEN / "adapters/upper", place / "of-another-model")
    (place / "two words").mkdir()
    code, out, err = check("--config", config)
    assert code == 1 and "good: for tiny" in out
    for name, reason in (("dora", "use_dora"), ("of-another-model", "for another base model"), ("two words", "name")):
        assert name in err and reason in err, err
    assert str(pathlib.Path(place) / "dora") in err


def test_a_workers_own_process_shows_what_it_does_with_adapters_where_it_is_told_to(fleets, made):
    port = free_port()
    fleet = fleets("alpha", per_worker={"alpha": {"more": f'metrics = "127.0.0.1:{port}"\n'}})
    upload(fleet.router, "counted", made(71))
    for _ in range(2):
        whole(fleet.router, prompt="who counts?", peft="counted", max_tokens=3, seed=1)
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    for line in [
        'shoal_worker_adapter_fetches_total{from="router"} 1',
        'shoal_worker_adapter_loads_total{outcome="loaded"} 1',
        "shoal_worker_adapter_load_seconds_count 1",
        'shoal_worker_adapter_acquires_total{from="router"} 1',
        'shoal_worker_adapter_acquires_total{from="memory"} 1',
    ]:
        assert line in text.splitlines(), f"{line} is not in\n{text}"
    assert "shoal_http_requests_total{" not in text, "that is the router's"
    assert "shoal_worker_adapter_loads_total{" not in fleet.router.http.get("/metrics").text
