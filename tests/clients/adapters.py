"""Adapters for the tests: where the trained ones are, how random ones are made, and how a server is asked about them."""

import json
import shutil
import sys

from servers import GOLDEN, ROOT, Server

sys.path.append(str(ROOT / "scripts/bench"))
import lora  # noqa: E402

TRAINED = ("upper", "pirate", "json", "french")
BAD = GOLDEN / "bad-adapters"
TINY = GOLDEN / "tiny/base"
TINY_SHAPE = lora.shape_of(json.loads((TINY / "config.json").read_text()))


def cases(name):
    """The goldens of a trained adapter, made with the peft library."""
    lines = (GOLDEN / "public/adapters_greedy.jsonl").read_text().splitlines()
    return [case for case in map(json.loads, lines) if case["adapter"] == name]


def random_adapter(directory, seed, **more):
    """A PEFT directory for the tiny model whose answers are its own."""
    return lora.write(directory, TINY_SHAPE, seed, **{"rank": 4, "upper": lora.MIDDLE, **more})


def parts(directory):
    """The files of a PEFT directory as httpx uploads them."""
    return {name: (name, (directory / name).read_bytes()) for name in (lora.CONFIG, lora.WEIGHTS)}


def upload(server, name, directory, **query):
    """Uploads and returns the document."""
    response = server.http.put(f"/v1/adapters/{name}", files=parts(directory), params=query)
    assert response.status_code == 200, response.text
    return response.json()


def document(server, name):
    """What the server says of an adapter; None where it knows none."""
    response = server.http.get(f"/v1/adapters/{name}")
    return response.json() if response.status_code == 200 else None


def wait_for_state(server, name, state="ready"):
    return server.wait_until(
        f"{name} to be {state}", lambda: (found := document(server, name)) and found["state"] == state and found
    )


def wait_for_generation(server, name, other_than):
    """The document of `name` once it points at something else."""
    return server.wait_until(
        f"another {name}", lambda: (found := document(server, name)) and found["generation"] != other_than and found
    )


def watched(directory, adapters):
    """A directory to watch, with copies of `adapters` (name: directory) in it."""
    directory.mkdir()
    for name, source in adapters.items():
        shutil.copytree(source, directory / name)
    return directory


def serving_adapters(directory, adapters, *arguments):
    """`shoal dev` that watches copies of `adapters`, once all of them have been looked at."""
    server = Server.dev(directory, *arguments, "--adapters", watched(directory / "watched", adapters))
    names = set(adapters)

    def judged():
        data = server.http.get("/v1/adapters").json()["data"]
        return {one["id"] for one in data if one["state"] != "pending"} >= names

    try:
        server.wait_until("adapters to be judged", judged)
    except BaseException:
        server.processes[0].child.kill()
        raise
    return server


def header(document):
    """`x-shoal-adapter` of an answer with the adapter that `document` describes."""
    return f"{document['id']}@{document['generation'][:12]}"


