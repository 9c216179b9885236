"""Worker processes: real ones, that answer, fail, overrun, are killed, and end with their server."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest

import confide.serve
from confide.errors import ModelError, UsageError
from confide.he.backend import Homomorphic
from confide.model.graph import Graph, Linear, Sigmoid
from confide.net.http import InProcess
from confide.serve.client import Client
from confide.serve.limits import Limits
from confide.serve.pool import create_pooled_app
from confide.serve.protocol import Refusal
from confide.serve.server import create_app
from confide.serve.source import Source
from confide.store import SqliteStore
from confide.wire import MemoryStore
from serve.toy import GRAPH, LABEL, Model, Odd

X = np.array([[0.5, -0.25, 1.0]])
ENCRYPTED = Graph((Linear(np.array([[1.5, -2.0, 0.25]]), np.array([0.125])), Sigmoid()))


def encrypted(argument: bytes) -> list[Model]:
    return [Model("m", ENCRYPTED, LABEL, (Homomorphic(),))]


def impossible(argument: bytes) -> list[Model]:
    raise ModelError("Expected a model that can be run")


def broken(argument: bytes) -> list[Model]:
    raise ValueError("the secret is 42")


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(
        confide.serve, "BACKENDS", {**confide.serve.BACKENDS, "toy": "serve.toy:Toy", "odd": "serve.toy:Odd"}
    )


@contextmanager
def pooled(folder: Path, source: Source, **limits):
    """Yield an application over worker processes, and its log."""
    log = io.StringIO()
    app = create_pooled_app(
        source, store=folder / "keys.db", limits=Limits(**{"workers": 2, **limits}), log=log, metrics=True
    )
    try:
        yield app, log
    finally:
        app.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One application over two workers, for tests that leave it as it was."""
    with pooled(tmp_path_factory.mktemp("pool"), Source("serve.host:models", b"odd"), answer_seconds=20) as started:
        yield started


@pytest.fixture
def http(shared):
    with httpx2.Client(transport=InProcess(shared[0]), base_url="http://127.0.0.1") as client:
        yield client


def question(first: float) -> dict:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [first, -0.25, 1.0]}
    return {"inputs": [tensor]}


def odd_client(app) -> Client:
    return Client("http://localhost", model="odd", backend="odd", transport=InProcess(app))


def processes(app) -> list[int]:
    return [worker.process.pid for worker in app._done._alive]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(http, name: str) -> float:
    line = next(line for line in http.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_what_threads_of_one_process_answer(shared, http):
    local = create_app([Model("diagnosis", GRAPH, LABEL, (Odd(),))])
    for backend in ("toy", "plain"):
        with Client("http://localhost", model="diagnosis", backend=backend, transport=InProcess(shared[0])) as client:
            assert np.array_equal(client.predict(X), GRAPH.apply(X))
    with httpx2.Client(transport=InProcess(local), base_url="http://127.0.0.1") as other:
        here = other.post("/v2/models/diagnosis/infer", json=question(0.5)).json()["outputs"]
    assert http.post("/v2/models/diagnosis/versions/plain/infer", json=question(0.5)).json()["outputs"] == here


def test_the_work_is_done_in_other_processes(shared):
    for pid in processes(shared[0]):
        assert Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[1] == str(os.getpid())
    assert len(set(processes(shared[0]))) == 2


def test_refusals_come_through_with_their_status(http):
    told = http.post("/v2/models/diagnosis/versions/plain/infer", json={"inputs": []})
    assert (told.status_code, told.json()["code"]) == (400, "malformed")
    told = http.post("/v2/models/diagnosis/versions/toy/keys", content=b"short")
    assert (told.status_code, told.json()["code"]) == (400, "malformed")
    told = http.post("/v2/models/diagnosis/versions/plain/keys", content=b"x" * 1000)
    assert (told.status_code, told.json()["code"]) == (400, "no_keys")
    assert http.get("/v2/models/diagnosis/keys/" + "0" * 64).json()["code"] == "unknown_key"


def test_a_bug_in_a_worker_is_told_by_its_place_alone(shared):
    app, log = shared
    with odd_client(app) as client, pytest.raises(Exception, match="internal"):
        client.predict(np.array([[Odd.FAIL, 0, 0]]))
    line = json.loads(log.getvalue().splitlines()[-1])
    assert (line["status"], line["code"]) == (500, "internal")
    assert line["failure"].startswith("ValueError at _watch:")
    assert "7002" not in log.getvalue()
    with odd_client(app) as client:  # and the worker goes on
        assert np.array_equal(client.predict(X), GRAPH.apply(X))


def test_an_encrypted_model_is_prepared_once_in_each_worker_and_keys_stay_where_they_are_loaded(tmp_path):
    with pooled(tmp_path, Source("serve.test_pool:encrypted", b"")) as (app, _):
        assert app.pins == create_app(encrypted(b"")).pins
        used = []
        original = app._done._answered
        app._done._answered = lambda worker, key_id, *rest: (
            used.append((key_id, worker)) or original(worker, key_id, *rest)
        )
        with Client("http://localhost", transport=InProcess(app)) as client:
            for _ in range(5):
                np.testing.assert_allclose(client.predict(X), ENCRYPTED.apply(X), atol=1e-3)
        asked = {worker for key_id, worker in used if key_id}  # a question names its keys, an upload does not
        assert len(asked) == 1
        assert app._done.figures().loaded_keys == 1
        with httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http:
            assert metric(http, "confide_loaded_keys") == 1
            assert metric(http, "confide_loaded_keys_bytes") > 1e5
            assert metric(http, "confide_key_store_bytes") > 1e5


@pytest.mark.slow
def test_loaded_keys_are_bounded_and_parsed_again(tmp_path):
    with pooled(tmp_path, Source("serve.test_pool:encrypted", b""), workers=1, loaded_keys_bytes=1) as (app, _):
        clients = [Client("http://localhost", transport=InProcess(app), store=MemoryStore()) for _ in range(3)]
        for _ in range(2):
            for client in clients:
                np.testing.assert_allclose(client.predict(X), ENCRYPTED.apply(X), atol=1e-3)
                assert app._done.figures().loaded_keys == 1  # the one at work


# --- death ------------------------------------------------------------------------------------------------------------


def test_the_request_of_a_killed_worker_is_answered_and_the_worker_replaced(shared, http):
    app, _ = shared
    before, restarts = set(processes(app)), app._done.figures().restarts
    body = odd_question(app, Odd.SLEEP)
    answers: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: answers.append(http.post("/v2/models/odd/infer", **body)))
    asking.start()
    wait_for(lambda: len(app._done._free) == 1)
    working = next(worker for worker in app._done._alive if worker not in app._done._free)
    assert http.get("/v2/health/live").status_code == 200
    os.kill(working.process.pid, signal.SIGKILL)
    asking.join(30)
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "worker_ended")
    assert answers[0].headers["retry-after"] == "1"
    with Client("http://localhost", model="diagnosis", transport=InProcess(app)) as client:  # the other one works
        assert np.array_equal(client.predict(X), GRAPH.apply(X))
    wait_for(lambda: len(app._done._free) == 2)
    assert working.process.pid not in processes(app)
    assert len(set(processes(app)) & before) == 1
    assert metric(http, "confide_workers_alive") == 2
    assert metric(http, "confide_worker_restarts") == restarts + 1


def odd_question(app, first: float) -> dict:
    """Return the request of a client of the odd backend."""
    caught: list[httpx2.Request] = []

    class Spy(InProcess):
        def handle_request(self, request):
            if request.url.path.endswith("/infer"):
                caught.append(request)
                raise httpx2.ConnectError("caught")
            return super().handle_request(request)

    with (
        Client("http://localhost", model="odd", backend="odd", transport=Spy(app)) as client,
        suppress(Exception),  # whatever the client makes of it
    ):
        client.predict(np.array([[first, 0, 0]]))
    return {"content": caught[0].read(), "headers": dict(caught[0].headers)}


@pytest.mark.slow
def test_a_request_that_kills_its_worker_takes_no_other_with_it(shared, http):
    app, log = shared
    refused = http.post("/v2/models/odd/infer", **odd_question(app, Odd.DIE))
    assert (refused.status_code, refused.json()["code"]) == (503, "worker_ended")
    assert "7003" not in log.getvalue()
    wait_for(lambda: len(app._done._free) == 2)


@pytest.mark.slow
def test_both_workers_killed_while_idle_are_replaced(shared, http):
    app, _ = shared
    for pid in processes(app):
        os.kill(pid, signal.SIGKILL)
    answers = [http.post("/v2/models/diagnosis/versions/plain/infer", json=question(0.5)) for _ in range(3)]
    assert {answer.status_code for answer in answers} <= {200, 503}
    wait_for(lambda: len(app._done._free) == 2)
    assert http.post("/v2/models/diagnosis/versions/plain/infer", json=question(0.5)).status_code == 200


@pytest.mark.slow
def test_a_worker_that_overruns_is_ended(tmp_path):
    with (
        pooled(tmp_path, Source("serve.host:models", b"odd"), workers=1, answer_seconds=0.5) as (app, _),
        httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http,
    ):
        (stuck,) = processes(app)
        refused = http.post("/v2/models/odd/infer", **odd_question(app, Odd.SLEEP))
        assert (refused.status_code, refused.json()["code"]) == (503, "late")
        wait_for(lambda: processes(app) not in ([], [stuck]) and app._done._free)
        assert http.post("/v2/models/diagnosis/versions/plain/infer", json=question(0.5)).status_code == 200


@pytest.mark.slow
def test_a_worker_that_does_not_even_read_is_ended(tmp_path):
    """More than the socket between them holds: the server would wait for it to be read, forever."""
    with (
        pooled(tmp_path, Source("serve.host:models", b""), workers=1, answer_seconds=1) as (app, _),
        httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http,
    ):
        (stuck,) = processes(app)
        os.kill(stuck, signal.SIGSTOP)
        refused = http.post("/v2/models/diagnosis/versions/plain/infer", content=bytes(4 << 20))
        assert (refused.status_code, refused.json()["code"]) == (503, "late")
        wait_for(lambda: processes(app) not in ([], [stuck]) and app._done._free)
        assert http.post("/v2/models/diagnosis/versions/plain/infer", json=question(0.5)).status_code == 200


def test_the_turn_and_the_work_have_one_deadline(shared):
    """A worker that becomes free late is not given another `answer_seconds`, nor one to who came too late."""
    pool = shared[0]._done
    about = next(about for about in pool.abouts if about.backend == "plain")
    begin = time.monotonic()
    with pytest.raises(Refusal, match="no worker is free"):
        pool.infer(about, b"{}", None, "", deadline=begin)
    with pytest.raises(Refusal, match="no worker is free"):
        pool.register(about, b"", "", deadline=begin)
    assert len(pool._free) == 2
    told: list[float] = []

    class Silent:
        def send(self, head, body, *, deadline):
            told.append(deadline)
            raise EOFError

        def close(self):
            pass

    worker = pool._free[0]
    pipe, kill = worker.pipe, worker.process.kill
    worker.pipe, worker.process.kill = Silent(), lambda: None
    try:
        with pytest.raises(Refusal, match="Expected the worker process to live"):
            pool.infer(about, b"{}", None, "", deadline=begin + 20)
    finally:
        worker.pipe, worker.process.kill = pipe, kill
        pool._give_back(worker)
    assert told == [begin + 20]


@pytest.mark.slow
def test_json_beyond_the_limit_is_not_read_in_the_server(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(confide.serve.pool, "_key_id", lambda body, length: read.append(len(body)) or "")
    with (
        pooled(tmp_path, Source("serve.test_pool:encrypted", b""), workers=1, json_bytes=1000) as (app, _),
        httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http,
    ):
        bomb = b'{"parameters":{"a":[' + b"[]," * 1000 + b"[]]}}"
        for headers in ({}, {"inference-header-content-length": str(len(bomb))}):
            refused = http.post("/v2/models/m/infer", content=bomb, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (400, "malformed")
        assert not read
        http.post("/v2/models/m/infer", content=b"{}")
        assert read == [2]


@pytest.mark.slow
def test_more_than_the_queue_holds_is_told_to_come_back_while_metrics_and_health_answer(tmp_path):
    with (
        pooled(tmp_path, Source("serve.host:models", b"odd"), workers=1, waiting=2) as (app, _),
        httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1") as http,
    ):
        body = odd_question(app, Odd.SLEEP)
        asking = [threading.Thread(target=lambda: http.post("/v2/models/odd/infer", **body)) for _ in range(2)]
        for thread in asking:
            thread.start()
        wait_for(lambda: app._working == 2)
        refused = http.post("/v2/models/odd/infer", **body)
        assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        assert refused.headers["retry-after"] == "1"
        assert metric(http, "confide_requests_waiting") == 2
        assert http.get("/v2/health/ready").status_code == 200
        app.close()
        for thread in asking:
            thread.join(30)


# --- beginning and end ------------------------------------------------------------------------------------------------


def test_workers_end_with_the_application(tmp_path):
    with pooled(tmp_path, Source("serve.host:models", b"")) as (app, _):
        pids = processes(app)
        app.close()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        app.close()  # a second time changes nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("maker", "kind", "text"),
    [
        ("serve.test_pool:impossible", ModelError, "Expected a model that can be run"),
        ("serve.test_pool:broken", UsageError, "ValueError at broken:"),
        ("serve.test_pool:absent", UsageError, "AttributeError"),
    ],
)
def test_what_keeps_workers_from_starting_is_told(tmp_path, maker, kind, text):
    with pytest.raises(kind, match=text) as caught:
        create_pooled_app(Source(maker, b""), store=tmp_path / "keys.db", limits=Limits(workers=1))
    assert "42" not in str(caught.value)


def test_a_store_that_is_none_is_told(tmp_path):
    (tmp_path / "keys.db").write_text("nonsense" * 1000)
    (tmp_path / "keys.db").chmod(0o600)
    with pytest.raises(UsageError, match="to be a store"):
        create_pooled_app(Source("serve.host:models", b""), store=tmp_path / "keys.db")


@pytest.mark.slow
def test_the_store_keeps_what_workers_wrote(tmp_path):
    mine = SqliteStore(tmp_path / "client.db")
    for known in (False, True):
        with pooled(tmp_path, Source("serve.host:models", b""), workers=1) as (app, log):
            with Client("http://localhost", model="diagnosis", store=mine, transport=InProcess(app)) as client:
                assert np.array_equal(client.predict(X), GRAPH.apply(X))
            assert ('"route":"keys","model":"diagnosis"' in log.getvalue()) != known
    mine.close()
