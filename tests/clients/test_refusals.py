"""Workers that a router does not take: what their own log says, and what the operator sees."""

import pytest

from hosts import Asked
from servers import Process


@pytest.fixture
def reef(lab):
    """A router and two workers whose names are taken."""
    lab = lab({"alpha": None, "beta": None})
    lab.run("up")
    yield lab
    lab.run("down")


def refusal(lab, directory, config, pki, name="alpha"):
    """What a worker that is refused logs, and what the router shows of it."""
    worker = Process(directory, "worker", "--config", config, "--name", name, env={"SHOAL__CLUSTER__PKI": str(pki)})
    try:
        log = worker.wait_for("a refusal", lambda: "no session with a router" in worker.log() and worker.log())
        incidents = worker.wait_for("an incident", lambda: Asked(lab).http.get("/v1/cluster").json()["incidents"])
    finally:
        worker.stop()
    return log, incidents[0]


def test_a_second_worker_of_a_name_hears_why_and_so_does_the_operator(reef, tmp_path):
    log, incident = refusal(reef, tmp_path / "twin", reef.config, reef.place() / "pki")
    assert "a worker of this name is connected already" in log and "stop the other worker of this name" in log
    assert (incident["event"], incident["cause"], incident["worker"]) == ("refused", "duplicate_name", "alpha")
    assert "alpha from 127.0.0.1" in reef.shoal("status", "--url", reef.url)


def test_a_worker_with_other_weights_hears_why(reef, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(reef.config.read_text().replace("step_ms = 5", "step_ms = 5\nsalt = 1").replace('"beta"', '"delta"'))
    pki = reef.place() / "pki"
    reef.shoal("cert", "issue", "--dir", pki, "--role", "worker", "--name", "delta")
    log, incident = refusal(reef, tmp_path / "delta", other, pki, "delta")
    assert "is served with weights" in log and "same files and settings" in log
    assert (incident["cause"], incident["worker"]) == ("model_mismatch", "delta")


def test_a_worker_of_another_authority_hears_why(reef, tmp_path):
    """It trusts both authorities, as after a careless copy, so it is the router that refuses."""
    ours, theirs = reef.place() / "pki", tmp_path / "pki"
    reef.shoal("cert", "init", "--dir", theirs, "--cluster", "reef")
    reef.shoal("cert", "issue", "--dir", theirs, "--role", "worker", "--name", "alpha")
    (theirs / "ca.pem").write_text((theirs / "ca.pem").read_text() + (ours / "ca.pem").read_text())
    log, incident = refusal(reef, tmp_path / "stranger", reef.config, theirs)
    assert "the peer refused the connection" in log and "of another cluster" in log
    assert "issue the certificates of both sides by the same authority" in log
    assert (incident["event"], incident["cause"], incident["worker"]) == ("refused", "certificate", None)
