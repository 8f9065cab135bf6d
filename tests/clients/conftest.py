"""Servers for the tests, each started once and stopped with SIGTERM, which must end it with exit code 0."""

import os
import signal

import pytest

from fleet import Fleet
from hosts import Lab
from servers import GOLDEN, Server, real_model, reference_config, scripted_config


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: what it proves depends on time, so no other test runs beside it")


def serving(server):
    yield server
    server.stop()


@pytest.fixture(scope="session")
def scripted(tmp_path_factory):
    """The scripted engine on two workers: exact answers, a step every millisecond."""
    directory = tmp_path_factory.mktemp("scripted")
    config = scripted_config(directory, workers=("alpha", "beta"))
    yield from serving(Server.dev(directory, "--config", config))


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """SmolLM2-135M-Instruct, Q4_1, on the engine that serves."""
    yield from serving(Server.dev(tmp_path_factory.mktemp("real"), "--model", real_model()))


@pytest.fixture(scope="session")
def exact(tmp_path_factory):
    """The same model on the engine that computes in f32, as the goldens were computed."""
    directory = tmp_path_factory.mktemp("exact")
    yield from serving(Server.dev(directory, "--config", reference_config(directory, "exact", real_model())))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random llama of four layers, in f32."""
    directory = tmp_path_factory.mktemp("tiny")
    yield from serving(Server.dev(directory, "--config", reference_config(directory, "tiny", GOLDEN / "tiny/base")))


@pytest.fixture
def narrow(tmp_path):
    """A server that serves one request at a time."""
    config = scripted_config(tmp_path, step_ms=5, more="[limits]\nrequests = 1\n")
    yield from serving(Server.dev(tmp_path, "--config", config))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A router and a worker as processes of their own, with certificates of their own."""
    yield from serving(Server.cluster(tmp_path_factory.mktemp("cluster"), "alpha", step_ms=15))


THREE = {"alpha": None, "beta": None, "org/gamma": None}


@pytest.fixture
def lab(tmp_path):
    """Makes labs; whatever a failed test leaves running is ended."""
    made = []

    def make(workers=THREE, **more):
        made.append(Lab(tmp_path / f"lab{len(made)}", workers, **more))
        return made[-1]

    yield make
    for one in made:
        for line in one.processes():
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.fixture
def fleets(tmp_path):
    """Makes fleets and starts them. Each must end in order; whatever a failed test leaves running is ended."""
    made = []

    def make(*workers, **rules):
        made.append(Fleet(tmp_path / f"fleet{len(made)}", workers or ("alpha", "beta"), **rules))
        return made[-1].start()

    try:
        yield make
        for one in made:
            one.stop()
    finally:
        for one in made:
            one.relieve()
