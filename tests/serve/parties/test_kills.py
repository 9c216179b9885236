"""kill -9 of each role at each stage: the others end in bounded time and say why, and the next prediction works."""

from __future__ import annotations

import time

import numpy as np
import pytest

from confide import serve
from confide.errors import ConfideError
from confide.serve.client import Client
from confide.serve.key_store import KeyStore
from serve.parties.processes import Process, organisations
from serve.toy import GRAPH

X = np.array([[0.5, -0.25, 0.125]])


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(serve, "BACKENDS", {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"})


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with organisations(tmp_path_factory.mktemp("kills"), "standin", {"dealer": "broker"}) as found:
        yield found


def asked(running, tmp_path, *, ahead: int = 0):
    """Return what a client with a store of its own is answered."""
    with (
        KeyStore(tmp_path / "keys") as store,
        Client(
            running.url,
            identity=running.folder / "clinic",
            insecure_colocated_dealer=True,
            store=store,
            ahead=ahead,
            timeout_seconds=20,
        ) as client,
    ):
        return client.predict(X)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["server", "dealer"])
@pytest.mark.parametrize("stage", ["setup/1", "deal/0", "predict/1"])
def test_a_killed_process_ends_a_session_at_once_and_comes_back(running, tmp_path, role, stage):
    running.restart(role, dies=f"{role}/{stage}")
    if role == "server":
        time.sleep(0.1)
    begin = time.monotonic()
    ahead = 4 if stage.startswith("deal") or role == "server" else 0
    with pytest.raises(ConfideError, match="lost|ended it|Expected") as caught:
        asked(running, tmp_path, ahead=ahead)
    assert time.monotonic() - begin < 15, caught.value
    assert running.running[role].process.wait(10) == -9
    running.restart(role)
    assert np.allclose(asked(running, tmp_path), GRAPH.apply(X), atol=1e-3), running.logs()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["setup/1", "deal/1", "predict/1", "predict/3"])
def test_a_killed_client_disturbs_nobody_and_never_asks_under_an_id_again(running, tmp_path, stage):
    (tmp_path / "x.csv").write_text("age,sex\n" + "1,f\n")
    program = (
        "predict", running.url, tmp_path / "x.csv", "--identity", running.folder / "clinic", "--keys",
        tmp_path / "keys", "--ahead", 4, "--insecure-colocated-dealer",
    )  # fmt: skip
    process = Process(*program, log=tmp_path / "client.log", dies=f"client/{stage}")
    try:
        assert process.process.wait(60) == -9, (tmp_path / "client.log").read_text()
    finally:
        process.kill()
    for _ in range(4):
        again = Process(*program, log=tmp_path / "client.log")
        assert again.process.wait(60) == 0, (tmp_path / "client.log").read_text() + running.logs()
        again.kill()


@pytest.mark.slow
def test_two_processes_cannot_share_a_stock(running, tmp_path):
    with KeyStore(tmp_path / "keys") as store, KeyStore(tmp_path / "keys") as other:
        settings = {"identity": running.folder / "clinic", "insecure_colocated_dealer": True}
        with Client(running.url, store=store, **settings), pytest.raises(ConfideError, match="stop it first"):
            Client(running.url, store=other, **settings)
