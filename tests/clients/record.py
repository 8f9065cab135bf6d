"""Writes recorded.json anew: the answers of the scripted engine to the requests of test_same_bytes. To be run by hand when a
change of the answers is meant: SHOAL_BIN=target/release/shoal target/tools/bin/python tests/clients/record.py"""

import json
import pathlib
import tempfile

from contract import whole
from servers import Server, scripted_config
from test_same_bytes import REQUESTS, seeded

with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    server = Server.dev(directory, "--config", scripted_config(directory))
    entries = []
    for request in seeded(REQUESTS):
        answer = whole(server, **request)
        entries.append({"request": request, "fingerprint": answer.fingerprint, "texts": answer.texts()})
    server.stop()
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (pathlib.Path(__file__).parent / "recorded.json").write_text(f"[\n{lines}\n]\n")
