"""Both clients, which share one sequence of steps: what they send, repeat, keep to themselves and give up."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx2
import numpy as np
import pytest

import confide.serve
from confide.crypto.random import SeededRandomness
from confide.errors import IntegrityError, ProtocolError, ServiceError, UsageError
from confide.ideal import PlainPredict
from confide.model.graph import Graph, Linear
from confide.net import oip
from confide.net.http import InProcess
from confide.serve.async_client import AsyncClient
from confide.serve.client import Client
from confide.serve.effects import Patience, Pause, Received, Send
from confide.serve.key_store import KeyStore
from confide.serve.limits import Limits
from confide.serve.protocol import Refusal
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.store import SqliteStore
from confide.wire import MemoryStore
from serve.toy import GRAPH, LABEL, PREPROCESS, Toy, toy_model

URL = "http://127.0.0.1:8080"
X = np.linspace(-1, 1, 3 * 40).reshape(40, 3)


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(confide.serve, "BACKENDS", {**confide.serve.BACKENDS, "toy": "serve.toy:Toy"})


class Watched(InProcess):
    """Counts requests by method and last part of the path, and changes answers on request."""

    def __init__(self, app, change=None) -> None:
        super().__init__(app)
        self.requests: list[str] = []
        self.change = change or (lambda name, response: response)

    async def _handle(self, request, body):
        name = f"{request.method} {request.url.path.rsplit('/', 1)[-1]}"
        name = name if len(name) < 30 else f"{request.method} key"
        self.requests.append(name)
        return self.change(name, await super()._handle(request, body))


def app(**limits):
    return create_app([toy_model("diagnosis", Toy(), PlainPredict(), preprocess=PREPROCESS)], limits=Limits(**limits))


def both(use, transport, **options):
    """Return what a use of the synchronous and of the asynchronous client gives; `use` gets a client and its runner."""
    with Client(URL, transport=transport, **options) as client:
        first = use(client, lambda result: result)
    with asyncio.Runner() as runner:
        client = AsyncClient(URL, transport=Later(transport), **options)
        second = use(client, lambda result: runner.run(result) if asyncio.iscoroutine(result) else result)
        runner.run(client.close())
    return first, second


class Later(httpx2.AsyncBaseTransport):
    """The same transport again, which closing leaves open."""

    def __init__(self, inner: InProcess) -> None:
        self.inner = InProcess(inner._transport.app)
        self.watched = inner

    async def handle_async_request(self, request):
        body = await request.aread()
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self.watched._handle(request, body), self.inner._loop)
        )


def test_both_clients_do_the_same():
    def use(client, wait):
        outputs = [wait(client.predict(X)), wait(client.probabilities(X)), wait(client.mean(X)), wait(client.decide(X))]
        return outputs, client.model, client.backend, client.classes, client.label, client.signer, client.preprocess

    first, second = both(use, Watched(app(batch_rows=16)))
    np.testing.assert_array_equal(first[0][0], GRAPH.apply(X))
    np.testing.assert_array_equal(first[0][1], np.hstack([1 - GRAPH.apply(X), GRAPH.apply(X)]))
    for one, other in zip(first[0], second[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[1:] == second[1:]


def test_an_async_client_says_when_it_is_not_open():
    client = AsyncClient(URL, transport=InProcess(app()))
    with pytest.raises(UsageError, match=r"await client\.open\(\)"):
        _ = client.kit


def test_rows_come_in_order_with_several_questions_under_way():
    transport = Watched(app(batch_rows=3))

    async def use() -> list[np.ndarray]:
        async with AsyncClient(URL, transport=transport) as client:
            return [part async for part in client.stream(X, concurrency=4)]

    parts = asyncio.run(use())
    assert len(parts) == 14
    np.testing.assert_array_equal(np.concatenate(parts), GRAPH.apply(X))
    assert transport.requests.count("POST keys") == 1
    with Client(URL, transport=InProcess(app(batch_rows=3))) as client:
        np.testing.assert_array_equal(np.concatenate(list(client.stream(X))), GRAPH.apply(X))


def test_tasks_and_threads_that_start_together_make_keys_once():
    transport = Watched(app())

    async def many() -> list[np.ndarray]:
        async with AsyncClient(URL, transport=Later(transport)) as client:
            return await asyncio.gather(*(client.predict(X) for _ in range(8)))

    for y in asyncio.run(many()):
        np.testing.assert_array_equal(y, GRAPH.apply(X))
    assert transport.requests.count("POST keys") == transport.requests.count("GET kit") == 1
    transport = Watched(app())
    answers: list[np.ndarray] = []
    with Client(URL, transport=transport) as client:
        threads = [threading.Thread(target=lambda: answers.append(client.predict(X))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 6
    assert all(np.array_equal(y, GRAPH.apply(X)) for y in answers)
    assert transport.requests.count("POST keys") == transport.requests.count("GET kit") == 1


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_second_run_uploads_nothing(tmp_path):
    shared = app()
    for expected in (["GET v2", "GET kit", "POST keys", "POST infer"], ["GET v2", "GET kit", "POST infer"]):
        transport = Watched(shared)
        with (
            KeyStore(tmp_path / "keys.sqlite") as store,
            Client(URL, store=store, transport=transport) as client,
        ):
            client.predict(X[:1])
            (kept,) = store.list()
        assert transport.requests == expected
        assert (kept.about.server, kept.about.model, kept.about.backend) == (URL, "diagnosis", "toy")
        assert len(kept.key_id) == 64


def test_an_upload_without_an_answer_is_found_again_and_not_repeated():
    """The answer to the upload is lost once: the next client asks whether the keys are there."""
    store, shared = MemoryStore(), app()

    def lose(name, response):
        if name == "POST keys":
            raise httpx2.ReadError("connection reset")
        return response

    with Client(URL, store=store, transport=Watched(shared, lose), retries=0) as client, pytest.raises(UsageError):
        client.setup()
    transport = Watched(shared)
    with Client(URL, store=store, transport=transport) as client:
        client.predict(X[:1])
    assert transport.requests == ["GET v2", "GET kit", "GET key", "POST infer"]


def test_forgetting_deletes_here_and_there():
    store, transport = MemoryStore(), Watched(app())
    with Client(URL, store=store, transport=transport) as client:
        client.predict(X[:1])
        key_id, path = client.setup().output("client"), client._open().path
        client.forget()
        assert store.keys() == []
        assert httpx2.Client(transport=transport, base_url=URL).get(f"{path}/keys/{key_id}").status_code == 404
        client.delete_at_server(path, key_id)  # none by that name: done
        with pytest.raises(UsageError, match="64 hex"):
            client.delete_at_server(path, "../infer")
        np.testing.assert_array_equal(client.predict(X[:1]), GRAPH.apply(X[:1]))
        assert client.setup().output("client") != key_id


def test_large_public_keys_are_not_kept_and_are_made_anew_with_another_secret(monkeypatch):
    monkeypatch.setattr("confide.he.setup.KEPT_PUBLIC_BYTES", 100)
    now = [0.0]
    graph = Graph((Linear(np.array([[0.5, -0.25, 0.125]]), np.zeros(1)),))
    server = create_app(
        [Model("m", graph, LABEL, (confide.serve.load_backend("he"),))],
        store=SqliteStore(None, lifetime_seconds=60, clock=lambda: now[0]),
    )
    store, transport = MemoryStore(), Watched(server)
    with Client(URL, store=store, transport=transport) as client:
        np.testing.assert_allclose(client.predict(X[:2]), graph.apply(X[:2]), atol=1e-2)
        before = {key: store.get(key) for key in store.keys("")}
        assert max(map(len, before.values())) < 100_000  # the public half has 190 kB
        now[0] += 61
        np.testing.assert_allclose(client.predict(X[:2]), graph.apply(X[:2]), atol=1e-2)
    after = {key: store.get(key) for key in store.keys("")}
    assert before.keys() == after.keys()
    assert {key.rpartition("/")[2] for key in after if after[key] != before[key]} == {"secret", "key_id"}
    assert transport.requests.count("POST keys") == 2


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_of_keys_upload_and_rows(monkeypatch):
    class Large(Toy):
        def __init__(self) -> None:
            super().__init__(key_bytes=700_000)

    monkeypatch.setattr("confide.serve.session.load_backend", lambda name: Large())
    seen: list[tuple[int, int, str]] = []

    def use(client, wait):
        seen.clear()
        wait(client.predict(X))
        return list(seen)

    transport = Watched(create_app([toy_model("m", Large())], limits=Limits(batch_rows=16)))
    for told in both(use, transport, progress=lambda *what: seen.append(what)):
        assert told[0] == (0, 0, "making keys")
        assert told[1:4] == [(n, 700_000, "uploading keys") for n in (262_144, 524_288, 700_000)]
        assert told[4:] == [(n, 40, "rows") for n in (16, 32, 40)]


# --- patience ---------------------------------------------------------------------------------------------------------


def patience(**options) -> Patience:
    settings = {"retries": 3, "give_up_seconds": 60.0, "repeat_questions": False, "clock": lambda: 0.0}
    return Patience(URL, **{**settings, "rng": SeededRandomness("jitter"), **options})


def play(steps, answers) -> tuple[list[float], object]:
    """Drive an exchange with scripted answers; return the pauses and what came out."""
    pauses: list[float] = []
    script = iter(answers)
    effect = next(steps)
    try:
        while True:
            if isinstance(effect, Pause):
                pauses.append(effect.seconds)
                effect = steps.send(None)
                continue
            answer = next(script)
            effect = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as stop:
        return pauses, stop.value
    except (UsageError, ServiceError, IntegrityError) as error:
        return pauses, error


def refused(status: int, code: str, after: str | None = None) -> Received:
    headers = {} if after is None else {"retry-after": after}
    return Received(status, headers, Refusal(status, code, "no").body("00"))


OK = Received(200, {}, b"fine")
ASK = Send("POST", "/infer", b"x")


@pytest.mark.parametrize(
    ("first", "repeated", "question"),
    [
        (refused(503, "busy", "1"), True, True),
        (refused(429, "rate_limited", "1"), True, True),
        (refused(429, "quota"), False, False),
        (refused(503, "late"), True, False),
        (refused(502, "unknown"), True, False),
        (refused(500, "internal"), False, False),
        (refused(404, "unknown_key"), False, False),
        (httpx2.ConnectTimeout("t"), True, True),
        (httpx2.PoolTimeout("t"), True, True),
        (httpx2.ReadTimeout("t"), True, False),
        (httpx2.ReadError("t"), True, False),
        (httpx2.RemoteProtocolError("t"), True, False),
        (httpx2.ConnectError("refused"), False, False),
        (httpx2.ConnectError("CERTIFICATE_VERIFY_FAILED"), False, False),
    ],
    ids=lambda value: str(getattr(value, "status", "")) or type(value).__name__,
)
def test_what_is_repeated_and_never_what_may_be_counted_twice(first, repeated, question):
    for counted, expected in ((False, repeated), (True, question)):
        pauses, result = play(patience().exchange(ASK, question=counted), [first, OK])
        assert (result == OK) == expected
        assert len(pauses) == expected
    _, insisted = play(patience(repeat_questions=True).exchange(ASK, question=True), [first, OK])
    assert (insisted == OK) == repeated


def test_a_server_that_was_there_may_start_anew():
    patient = patience()
    assert play(patient.exchange(ASK), [OK])[1] == OK
    pauses, result = play(patient.exchange(ASK, question=True), [httpx2.ConnectError("refused")] * 3 + [OK])
    assert (result, len(pauses)) == (OK, 3)


def test_a_lost_answer_says_that_it_may_have_been_counted():
    patient = patience()
    play(patient.exchange(ASK), [OK])
    _, error = play(patient.exchange(ASK, question=True), [httpx2.ReadError("reset")])
    assert "may have counted" in str(error)
    assert "repeat_questions" in str(error)


def test_pauses_grow_keep_to_retry_after_and_end():
    pauses, error = play(patience().exchange(ASK), [refused(503, "busy")] * 9)
    assert isinstance(error, Refusal)
    assert len(pauses) == 3
    assert all(low <= pause <= 1.5 * low for pause, low in zip(pauses, (0.5, 1.0, 2.0), strict=True))
    pauses, _ = play(patience().exchange(ASK), [refused(503, "busy", "7"), OK])
    assert 7 <= pauses[0] <= 10.5
    assert play(patience(retries=0).exchange(ASK), [refused(503, "busy")])[0] == []
    assert play(patience(give_up_seconds=6.9).exchange(ASK), [refused(503, "busy", "7")])[0] == []
    now = iter(range(0, 1000, 20))
    pauses, _ = play(patience(clock=lambda: float(next(now))).exchange(ASK), [refused(503, "busy")] * 9)
    assert len(pauses) == 2  # 60 s are over


@pytest.mark.parametrize("options", [{"retries": -1}, {"give_up_seconds": -1.0}, {"give_up_seconds": float("nan")}])
def test_patience_is_not_negative(options):
    with pytest.raises(UsageError):
        Client(URL, **options)


def test_a_busy_server_is_asked_again_by_both_clients(monkeypatch):
    monkeypatch.setattr("confide.serve.effects._FIRST_WAIT_SECONDS", 0.001)
    left = {"POST infer": 2, "POST keys": 1, "GET kit": 1}

    def busy(name, response):
        if left.get(name, 0) > 0:
            left[name] -= 1
            return httpx2.Response(503, content=Refusal(503, "busy", "no").body("00"))
        return response

    def use(client, wait):
        left.update({"POST infer": 2, "POST keys": 1, "GET kit": 1})
        return wait(client.predict(X))

    for y in both(use, Watched(app(), busy)):
        np.testing.assert_array_equal(y, GRAPH.apply(X))


# --- nothing is told about decryption ---------------------------------------------------------------------------------


def test_a_reply_that_cannot_be_read_changes_nothing_that_the_server_sees():
    """One of three replies is broken: the requests are those of a run in which all could be read."""

    def run(broken: int | None, ask) -> list[str]:
        count = [0]

        def change(name, response):
            if name != "POST infer":
                return response
            count[0] += 1
            cut = response.content[:-1] if count[0] - 1 == broken else response.content
            split = {oip.HEADER_LENGTH: response.headers[oip.HEADER_LENGTH]}
            return httpx2.Response(200, headers=split, content=cut)

        transport = Watched(app(batch_rows=16), change)
        ask(transport, broken is None)
        return transport.requests

    def sync(transport, fine) -> None:
        with Client(URL, transport=transport) as client:
            if fine:
                client.predict(X)
            else:
                with pytest.raises((ProtocolError, ValueError)):
                    client.predict(X)

    def streamed(transport, fine) -> None:
        async def use() -> None:
            async with AsyncClient(URL, transport=Later(transport)) as client:
                async for _ in client.stream(X, concurrency=1):
                    pass

        if fine:
            asyncio.run(use())
        else:
            with pytest.raises((ProtocolError, ValueError)):
                asyncio.run(use())

    for ask in (sync, streamed):
        expected = run(None, ask)
        assert expected.count("POST infer") == 3
        for broken in range(3):
            assert run(broken, ask) == expected


def test_whatever_a_backend_stumbles_over_is_kept_back_too(monkeypatch):
    class Stumbles(Toy):
        def _ask(self, store, x):
            yield from super()._ask(store, x)
            raise ZeroDivisionError

    monkeypatch.setattr("confide.serve.session.load_backend", lambda name: Stumbles())
    transport = Watched(app(batch_rows=16))
    with Client(URL, transport=transport) as client, pytest.raises(ZeroDivisionError):
        client.predict(X)
    assert transport.requests.count("POST infer") == 3


def test_a_cancelled_question_leaves_the_client_usable():
    class Slow(InProcess):
        async def _handle(self, request, body):
            if request.url.path.endswith("infer") and not waited:
                waited.append(True)
                await asyncio.sleep(30)
            return await super()._handle(request, body)

    waited: list[bool] = []

    async def use() -> np.ndarray:
        async with AsyncClient(URL, transport=Slow(app())) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.predict(X), 0.3)
            return await client.predict(X)

    begin = time.monotonic()
    np.testing.assert_array_equal(asyncio.run(use()), GRAPH.apply(X))
    assert waited
    assert begin <= time.monotonic()
