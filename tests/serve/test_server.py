"""The server in process: the Open Inference Protocol by hand-written requests, refusals, and what never leaks."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import struct
import threading

import httpx2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import ModelError, UsageError
from confide.ideal import PlainPredict
from confide.model.graph import Graph, Linear
from confide.net.http import InProcess
from confide.serve.access import hash_api_key
from confide.serve.limits import Limits
from confide.serve.protocol import ClientKit
from confide.serve.served import Model
from confide.serve.server import create_app
from serve.toy import GRAPH, KEY_BYTES, LABEL, PREPROCESS, Toy, toy_model

X = [[0.5, -0.25, 1.0], [0.0, 1.0, -1.0]]


def client_of(app, **headers) -> httpx2.Client:
    return httpx2.Client(transport=InProcess(app), base_url="http://127.0.0.1", headers=headers)


@pytest.fixture
def plain():
    with client_of(create_app([toy_model("diagnosis", PlainPredict())])) as client:
        yield client


@pytest.fixture
def toy():
    with client_of(create_app([toy_model("diagnosis", Toy(), PlainPredict(), preprocess=PREPROCESS)])) as client:
        yield client


def question(values=None, **changes) -> dict:
    flat = np.array(X if values is None else values)
    tensor = {"name": "x", "shape": list(flat.shape), "datatype": "FP64", "data": flat.ravel().tolist()}
    return {"inputs": [tensor | changes]}


def sealed(payload: bytes, **parameters) -> tuple[bytes, dict[str, str]]:
    element = struct.pack("<I", len(payload)) + payload
    head = {"name": "query", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    asked = {"inputs": [head], "outputs": [{"name": "reply", "parameters": {"binary_data": True}}]}
    text = json.dumps(asked | {"parameters": parameters}).encode()
    return text + element, {"Inference-Header-Content-Length": str(len(text))}


def plain_query() -> bytes:
    """Return the body of the plain backend's message for X."""
    return msgspec.msgpack.encode({"values": ["<f8", [2, 3], struct.pack("<6d", *X[0], *X[1])]})


# --- the Open Inference Protocol --------------------------------------------------------------------------------------


def test_server_metadata_and_health(plain):
    metadata = plain.get("/v2").json()
    assert metadata["name"] == "confide"
    assert "binary_tensor_data" in metadata["extensions"]
    assert metadata["models"] == ["diagnosis"]
    assert plain.get("/v2/health/live").json()["live"] is True
    assert plain.get("/v2/health/ready").json()["ready"] is True
    assert plain.get("/v2/models/diagnosis/ready").json() == {"name": "diagnosis", "ready": True}
    assert plain.get("/v2/models/diagnosis/versions/plain/ready").status_code == 200


def test_model_metadata_states_tensors_guarantee_and_label(toy):
    told = toy.get("/v2/models/diagnosis").json()
    assert told["name"] == "diagnosis"
    assert told["versions"] == ["toy", "plain"]
    assert told["platform"] == "confide_toy"
    assert told["inputs"] == [{"name": "query", "datatype": "BYTES", "shape": [1]}]
    assert told["outputs"] == [{"name": "reply", "datatype": "BYTES", "shape": [1]}]
    parameters = told["parameters"]
    assert parameters["guarantee"] == Toy.guarantee.sentences()
    assert parameters["label"] == "trained by masked over 2 parties, no differential privacy"
    assert parameters["keys"] == "uploaded once"
    assert parameters["classes"] == ["benign", "malignant"]
    kit = toy.get("/v2/models/diagnosis/kit")
    assert parameters["kit_sha256"] == hashlib.sha256(kit.content).hexdigest()
    plain_told = toy.get("/v2/models/diagnosis/versions/plain").json()
    assert plain_told["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 3]}]
    assert plain_told["outputs"] == [{"name": "y", "datatype": "FP64", "shape": [-1, 1]}]
    assert plain_told["parameters"]["keys"] == "none"


def test_infers_from_json(plain):
    answer = plain.post("/v2/models/diagnosis/infer", json={"id": "42", **question()})
    assert answer.status_code == 200
    told = answer.json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("diagnosis", "plain", "42")
    assert told["outputs"][0]["shape"] == [2, 1]
    assert told["outputs"][0]["data"] == GRAPH.apply(np.array(X)).ravel().tolist()


def test_infers_from_nested_json(plain):
    nested = plain.post("/v2/models/diagnosis/infer", json=question(data=X)).json()
    assert nested["outputs"][0]["data"] == GRAPH.apply(np.array(X)).ravel().tolist()


@pytest.mark.parametrize(("datatype", "form"), [("FP32", "<6f"), ("FP64", "<6d")])
def test_infers_in_binary_both_ways(plain, datatype, form):
    data = struct.pack(form, *X[0], *X[1])
    tensor = {"name": "x", "shape": [2, 3], "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    answer = plain.post("/v2/models/diagnosis/infer", content=text + data, headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert struct.unpack("<2d", answer.content[length:]) == tuple(GRAPH.apply(np.array(X)).ravel())


def test_says_how_long_it_worked_and_that_nobody_may_cache_it(plain):
    answer = plain.post("/v2/models/diagnosis/infer", json=question())
    name, _, duration = answer.headers["server-timing"].partition(";dur=")
    assert name == "work"
    assert 0 <= float(duration) < 1e5
    assert answer.headers["cache-control"] == "no-store"


def test_head_is_get_without_a_body(plain):
    answer = plain.head("/v2/models/diagnosis")
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 100


# --- kits and keys ----------------------------------------------------------------------------------------------------


def test_the_kit_is_what_the_client_reads(toy):
    kit = ClientKit.decode(toy.get("/v2/models/diagnosis/versions/toy/kit").content)
    assert (kit.model, kit.backend, kit.kit, kit.needs_keys) == ("diagnosis", "toy", b"toy", True)
    assert kit.guarantee == Toy.guarantee
    assert kit.preprocess == PREPROCESS.encode()
    assert kit.classes == ("benign", "malignant")


def test_the_kit_is_the_same_in_every_process(toy):
    again = create_app([toy_model("diagnosis", Toy(), PlainPredict(), preprocess=PREPROCESS)])
    with client_of(again) as other:
        path = "/v2/models/diagnosis/kit"
        assert other.get(path).content == toy.get(path).content


def test_the_kit_holds_no_weight(toy):
    body = toy.get("/v2/models/diagnosis/kit").content
    for weight in GRAPH.layers[0].weight.ravel():
        assert struct.pack("<d", weight) not in body
        assert struct.pack(">d", weight) not in body


def test_keys_are_uploaded_once_and_known_by_their_id(toy):
    key = bytes(range(250)) * 4
    key_id = hashlib.sha256(key).hexdigest()
    where = "/v2/models/diagnosis/keys"
    assert toy.get(f"{where}/{key_id}").status_code == 404
    for _ in range(2):
        assert toy.post(where, content=key).content == key_id.encode()
    assert toy.head(f"{where}/{key_id}").status_code == 200
    assert toy.get(f"/v2/models/diagnosis/versions/plain/keys/{key_id}").status_code == 404


def test_unknown_keys_are_named_with_what_to_do(toy):
    body, headers = sealed(b"x" * 56, key_id="0" * 64)
    answer = toy.post("/v2/models/diagnosis/infer", content=body, headers=headers)
    assert answer.status_code == 404
    assert answer.json()["code"] == "unknown_key"
    assert "/v2/models/diagnosis/keys" in answer.json()["error"]
    body, headers = sealed(b"x" * 56)
    assert toy.post("/v2/models/diagnosis/infer", content=body, headers=headers).status_code == 404


def test_an_old_kit_is_refused(toy):
    body, headers = sealed(b"x" * 56, kit_sha256="0" * 64)
    answer = toy.post("/v2/models/diagnosis/infer", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "old_kit")


def test_a_backend_without_keys_takes_none(plain):
    answer = plain.post("/v2/models/diagnosis/keys", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (400, "no_keys")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_path"),
        ("GET", "/v1/models/diagnosis", 404, "unknown_path"),
        ("GET", "/v2/models", 404, "unknown_path"),
        ("GET", "/v2/models/diagnosis/kit/extra", 404, "unknown_path"),
        ("GET", "/v2/models/diagnosis/keys/a/b", 404, "unknown_path"),
        ("GET", "/v2/models/diagnosis/keys/../../x", 404, None),
        ("GET", "/metrics", 404, "unknown_path"),
        ("GET", "/v2/models/diagnosis/versions/he", 404, "unknown_version"),
        ("GET", "/v2/models/absent", 404, "unknown_model"),
        ("GET", "/v2/models/diagnosis/infer", 405, "method"),
        ("DELETE", "/v2/models/diagnosis", 405, "method"),
        ("POST", "/v2/models/diagnosis/kit", 405, "method"),
        ("PUT", "/v2", 405, "method"),
    ],
)
def test_refuses_unknown_paths_and_methods(toy, method, path, status, code):
    answer = toy.request(method, path)
    assert answer.status_code == status
    told = answer.json()
    assert code in (None, told["code"])
    assert set(told) == {"error", "code", "request_id"}
    assert len(told["request_id"]) == 16
    if status == 405:
        assert answer.headers["allow"]


def test_names_the_nearest_model(toy):
    assert 'did you mean "diagnosis"?' in toy.get("/v2/models/diagnose").json()["error"]


def test_names_the_models_that_there_are(toy):
    assert toy.get("/v2/models/zz").json()["error"].endswith("that is served here: diagnosis")


@pytest.mark.parametrize(
    "asked",
    [
        question(name="z"),
        question(values=[[1.0, 2.0]]),
        question(shape=[6]),
        question(shape=[1, 6]),
        question(shape=[3, 3]),
        question(datatype="INT64"),
        {"inputs": question()["inputs"] * 2},
        {"inputs": []},
    ],
    ids=str,
)
def test_refuses_tensors_that_do_not_fit(plain, asked):
    answer = plain.post("/v2/models/diagnosis/infer", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


def test_an_overflow_is_refused_and_not_sent_as_null():
    graph = Graph((Linear(np.array([[10.0]]), np.array([0.0])),))
    with client_of(create_app([Model("m", graph, LABEL, (PlainPredict(),))])) as client:
        answer = client.post("/v2/models/m/infer", json=question(values=[[1e308]]))
        assert answer.status_code == 400
        assert "finite" in answer.json()["error"]


def test_refuses_more_rows_than_a_batch_may_have():
    app = create_app([toy_model("m", PlainPredict())], limits=Limits(batch_rows=1))
    with client_of(app) as client:
        assert client.post("/v2/models/m/infer", json=question(values=X[:1])).status_code == 200
        assert client.post("/v2/models/m/infer", json=question()).status_code == 413


@pytest.mark.parametrize("header", ["x", "-1", "1.5", "9" * 13, ""])
def test_refuses_a_header_length_that_is_no_number(plain, header):
    answer = plain.post(
        "/v2/models/diagnosis/infer", json=question(), headers={"Inference-Header-Content-Length": header}
    )
    assert answer.status_code == 400


def test_refuses_compressed_bodies(plain):
    answer = plain.post("/v2/models/diagnosis/infer", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "encoding")


def test_refuses_a_declared_size_before_reading_it(toy):
    read = []

    def body():
        read.append(True)
        yield b"x"

    headers = {"content-length": str(10**11)}
    answer = toy.post("/v2/models/diagnosis/keys", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("failure", [ValueError, UsageError, KeyError, TimeoutError])
def test_a_bug_tells_the_client_nothing_but_the_request_id(failure):
    class Broken(PlainPredict):
        def predict(self, role, kit, x, store, rng):
            raise failure("MARKER weights 1.5")

    log = io.StringIO()
    with client_of(create_app([toy_model("m", Broken())], log=log)) as client:
        body, headers = sealed(plain_query())
        answer = client.post("/v2/models/m/infer", content=body, headers=headers)
    assert answer.status_code == 500
    line = json.loads(log.getvalue().splitlines()[-1])
    assert line["request_id"] == answer.json()["request_id"]
    assert line["failure"].startswith(f"{failure.__name__} at ")
    assert "MARKER" not in answer.text + log.getvalue()


# --- access -----------------------------------------------------------------------------------------------------------


def test_an_api_key_opens_everything_but_health():
    app = create_app([toy_model("m", PlainPredict())], api_keys={"clinic": hash_api_key("right")}, metrics=True)
    with client_of(app) as client:
        for path in ("/v2", "/v2/models/m", "/v2/models/m/kit", "/metrics"):
            refused = client.get(path)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorised")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(path, headers={"Authorization": "Basic right"}).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer right"}).status_code == 200
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200


def test_the_rate_limit_says_when_to_come_back():
    app = create_app([toy_model("m", PlainPredict())], limits=Limits(requests_per_second=0.01))
    with client_of(app) as client:
        assert client.get("/v2").status_code == 200
        refused = client.get("/v2")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 0 < int(refused.headers["retry-after"]) <= 100
        assert client.get("/v2/health/live").status_code == 200


def test_the_quota_counts_rows_on_every_way_to_ask():
    limits = Limits(query_quota=4)
    keys = {"one": hash_api_key("1"), "two": hash_api_key("2")}
    app = create_app([toy_model("m", PlainPredict())], limits=limits, api_keys=keys)
    with client_of(app) as client:
        one, two = {"Authorization": "Bearer 1"}, {"Authorization": "Bearer 2"}
        assert client.post("/v2/models/m/infer", json=question(), headers=one).status_code == 200
        body, headers = sealed(plain_query())
        assert client.post("/v2/models/m/infer", content=body, headers=one | headers).status_code == 200
        refused = client.post("/v2/models/m/infer", json=question(values=X[:1]), headers=one)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota")
        assert "outputs" not in refused.json()
        assert client.post("/v2/models/m/infer", json=question(), headers=two).status_code == 200


def test_a_quota_needs_somebody_to_count_against():
    with pytest.raises(UsageError, match="api_keys"):
        create_app([toy_model()], limits=Limits(query_quota=30))


# --- load -------------------------------------------------------------------------------------------------------------


def test_more_than_the_queue_holds_is_told_to_come_back():
    begun, go_on = threading.Semaphore(0), threading.Event()

    class Slow(PlainPredict):
        def predict(self, role, kit, x, store, rng):
            begun.release()
            assert go_on.wait(30)
            return super().predict(role, kit, x, store, rng)

    body, headers = sealed(plain_query())
    app = create_app([toy_model("m", Slow())], limits=Limits(workers=1, waiting=2))
    with client_of(app) as client:
        answers: list[httpx2.Response] = []
        ask = lambda: answers.append(client.post("/v2/models/m/infer", content=body, headers=headers))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert begun.acquire(timeout=30)
        threads[1].start()
        while app._working < 2:  # the second waits for the worker
            threading.Event().wait(0.01)
        refused = client.post("/v2/models/m/infer", content=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        assert refused.headers["retry-after"] == "1"
        assert client.get("/v2/health/ready").status_code == 200  # while the only worker is taken
        go_on.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert client.post("/v2/models/m/infer", content=body, headers=headers).status_code == 200


def test_an_answer_that_takes_too_long_keeps_its_place():
    go_on = threading.Event()

    class Slow(PlainPredict):
        def predict(self, role, kit, x, store, rng):
            assert go_on.wait(30)
            return super().predict(role, kit, x, store, rng)

    app = create_app([toy_model("m", Slow())], limits=Limits(workers=1, waiting=1, answer_seconds=0.05))
    with client_of(app) as client:
        body, headers = sealed(plain_query())
        late = client.post("/v2/models/m/infer", content=body, headers=headers)
        assert (late.status_code, late.json()["code"]) == (503, "late")
        assert app._working == 1  # the worker is still busy, so the next one is refused too
        assert client.post("/v2/models/m/infer", content=body, headers=headers).json()["code"] == "busy"
        go_on.set()
        while app._working:
            threading.Event().wait(0.01)


def test_a_body_counts_until_its_job_is_over_and_a_job_that_is_late_is_never_done():
    """The documented bound of memory: after a refusal the queue of the threads still holds the body."""
    go_on, begun, charged = threading.Event(), [], []

    class Slow(PlainPredict):
        def predict(self, role, kit, x, store, rng):
            begun.append(role)
            assert go_on.wait(30)
            return super().predict(role, kit, x, store, rng)

    body, headers = sealed(plain_query())
    app = create_app([toy_model("m", Slow())], limits=Limits(workers=1, answer_seconds=0.2))
    app._done._charge = lambda caller, model, rows: charged.append(rows)
    with client_of(app) as client:
        for asked in (1, 2):
            late = client.post("/v2/models/m/infer", content=body, headers=headers)
            assert (late.status_code, late.json()["code"]) == (503, "late")
            assert app._bodies.held_bytes == asked * len(body)
        go_on.set()
        while app._working:
            threading.Event().wait(0.01)
        assert app._bodies.held_bytes == 0
        assert (begun, charged) == (["server"], [2])  # the second one's turn came after its client was refused


def test_bodies_that_wait_behind_a_slow_answer_are_bounded():
    go_on = threading.Event()

    class Slow(PlainPredict):
        def predict(self, role, kit, x, store, rng):
            assert go_on.wait(30)
            return super().predict(role, kit, x, store, rng)

    body, headers = sealed(plain_query())
    length = int(headers["Inference-Header-Content-Length"])
    body = body[:length].ljust(length + 2000) + body[length:]
    headers["Inference-Header-Content-Length"] = str(length + 2000)
    sizes = dict.fromkeys(("query_bytes", "keys_bytes", "reply_bytes"), len(body))
    limits = Limits(workers=1, answer_seconds=0.5, buffered_bytes=3 * len(body), **sizes)
    app = create_app([toy_model("m", Slow())], limits=limits)
    with client_of(app) as client:
        codes = [client.post("/v2/models/m/infer", content=body, headers=headers).json()["code"] for _ in range(5)]
        assert codes == ["late", "late", "late", "busy", "busy"]
        assert app._bodies.held_bytes == 3 * len(body)
        go_on.set()
        while app._working:
            threading.Event().wait(0.01)
        assert client.post("/v2/models/m/infer", content=body, headers=headers).status_code == 200
        assert app._bodies.held_bytes == 0


def test_a_request_that_finds_the_queue_full_gives_its_body_back():
    app = create_app([toy_model("m", PlainPredict())], limits=Limits(waiting=1))
    with client_of(app) as client:
        app._working = 1
        assert client.post("/v2/models/m/infer", json=question()).json()["code"] == "busy"
        assert app._bodies.held_bytes == 0


def test_parallel_requests_get_their_own_answers(plain):
    rng = np.random.Generator(np.random.PCG64(7))
    inputs = [rng.normal(size=(1, 3)) for _ in range(40)]
    answers: dict[int, float] = {}

    def ask(number: int) -> None:
        told = plain.post("/v2/models/diagnosis/infer", json=question(values=inputs[number])).json()
        answers[number] = told["outputs"][0]["data"][0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: GRAPH.apply(x)[0, 0] for number, x in enumerate(inputs)}


def test_stops_when_told():
    app = create_app([toy_model("m", PlainPredict())])
    with client_of(app) as client:
        app.close()
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/m/ready").json()["ready"] is False
        assert client.post("/v2/models/m/infer", json=question()).status_code == 503


def scripted(app, events: list[dict], scope: dict | None = None) -> list[dict]:
    """Run the application against a script of ASGI events and return what it sent."""
    sent: list[dict] = []
    left = iter(events)

    async def receive():
        return next(left)

    async def send(event):
        sent.append(event)

    base = {"type": "http", "method": "POST", "path": "/v2/models/m/infer", "headers": []}
    asyncio.run(app(base | (scope or {}), receive, send))
    return sent


def test_nobody_is_answered_after_leaving():
    log = io.StringIO()
    app = create_app([toy_model("m", PlainPredict())], log=log)
    part = {"type": "http.request", "body": b"abc", "more_body": True}
    assert scripted(app, [part, {"type": "http.disconnect"}]) == []
    assert json.loads(log.getvalue())["code"] == "disconnected"
    assert app._bodies.held_bytes == 0


def test_the_lifespan_ends_the_server():
    app = create_app([toy_model("m", PlainPredict())])
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = scripted(app, events, {"type": "lifespan"})
    assert [event["type"] for event in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert scripted(app, [], {"type": "websocket"}) == []


@pytest.mark.parametrize("content_length", [b"abc", b"-5", b"\xff"])
def test_a_content_length_that_is_no_number_is_refused(content_length):
    app = create_app([toy_model("m", PlainPredict())])
    sent = scripted(app, [{"type": "http.request", "body": b""}], {"headers": [(b"content-length", content_length)]})
    assert sent[0]["status"] == 400


# --- what never leaks -------------------------------------------------------------------------------------------------

MARKERS = ("314159.2653", "mArKeR", "6d41724b6552")


def hostile_requests():
    """Requests that carry a marker in every place a client controls, well-formed and not."""
    number, word, _ = MARKERS
    infer = "/v2/models/diagnosis/infer"
    for changes in (
        {"data": [float(number), word] + [float(number)] * 4},
        {"data": word},
        {"shape": [word]},
        {"shape": [2, word]},
        {"datatype": word},
        {"name": word},
        {"parameters": {word: word}},
        {"parameters": {"binary_data_size": word}},
        {"data": [[float(number)] * 3, [float(number)]]},
    ):
        yield "POST", infer, json.dumps(question() | {"id": word * 40} | question(**changes)).encode(), {}
        yield "POST", infer, json.dumps(question(**changes)).encode(), {}
    yield "POST", infer, json.dumps({word: word, "inputs": word}).encode(), {}
    yield "POST", infer, word.encode() * 50, {}
    yield "POST", infer, word.encode(), {"inference-header-content-length": word}
    yield "POST", infer, word.encode(), {"content-encoding": word}
    yield "POST", infer, *sealed(word.encode() * 9, key_id=word)
    yield "POST", infer, *sealed(word.encode() * 9, kit_sha256=word)
    yield "POST", infer, *sealed(word.encode() * 9)
    yield "POST", "/v2/models/diagnosis/versions/toy/keys", word.encode(), {}
    yield "POST", "/v2/models/diagnosis/versions/toy/infer", *sealed(word.encode() * 9, key_id=word)
    yield "GET", f"/{word}", b"", {}
    yield "GET", f"/v2/models/{word}?q={word}", b"", {"x-header": word, "user-agent": word, "cookie": word}
    yield "GET", f"/v2/models/diagnosis/versions/{word}", b"", {}
    yield "GET", f"/v2/models/diagnosis/versions/toy/keys/{word}", b"", {"authorization": f"Bearer {word}"}
    yield "POST", f"/v2/models/diagnosis/{word}", word.encode(), {}
    yield "PATCH", f"/v2?{word}", word.encode(), {}
    yield word, "/v2", b"", {}
    yield "GET", "/v2/health/live", word.encode(), {"x": word}


def test_no_answer_and_no_log_line_holds_anything_of_a_request(capfd):
    log = io.StringIO()
    app = create_app([toy_model("diagnosis", PlainPredict(), Toy())], log=log, metrics=True)
    seen: list[str] = []
    with client_of(app) as client:
        for method, path, body, headers in hostile_requests():
            answer = client.request(method, path, content=body, headers=headers)
            seen.append(str(answer.status_code) + answer.text + str(dict(answer.headers)))
            assert answer.status_code != 500
            if answer.status_code != 200:
                assert set(answer.json()) == {"error", "code", "request_id"}
        seen.append(client.get("/metrics").text)
    statuses = {text[:3] for text in seen}
    assert {"400", "404", "405", "409", "415", "200"} <= statuses  # the requests did reach every layer
    seen += [log.getvalue(), *capfd.readouterr()]
    for text in seen:
        for marker in MARKERS:
            assert marker.lower() not in text.lower()


def test_the_marker_test_would_notice_an_echo():
    app = create_app([toy_model("m", PlainPredict())])
    with client_of(app) as client:  # a successful answer must return the id, so there the marker does appear
        assert MARKERS[1] in client.post("/v2/models/m/infer", json={"id": MARKERS[1], **question()}).text


def test_log_lines_hold_only_what_is_allowed():
    log = io.StringIO()
    app = create_app([toy_model("m", PlainPredict())], log=log, api_keys={"clinic": hash_api_key("k")})
    with client_of(app, Authorization="Bearer k") as client:
        client.post("/v2/models/m/infer", json=question())
        client.get("/v2/models/other")
    first, second = map(json.loads, log.getvalue().splitlines())
    allowed = {
        "time", "request_id", "method", "route", "model", "backend", "caller", "status", "code",
        "request_bytes", "reply_bytes", "seconds",
    }  # fmt: skip
    assert set(first) == set(second) == allowed
    assert (first["route"], first["model"], first["backend"], first["caller"]) == ("infer", "m", "plain", "clinic")
    assert (first["status"], first["code"]) == (200, "ok")
    assert (second["route"], second["model"], second["status"]) == ("model", "", 404)


def test_metrics_have_no_label_of_a_caller_and_count_what_happened():
    app = create_app([toy_model("m", PlainPredict())], metrics=True, api_keys={"clinic": hash_api_key("k")})
    with client_of(app, Authorization="Bearer k") as client:
        for _ in range(3):
            client.post("/v2/models/m/infer", json=question())
        client.get("/v2/models/other")
        text = client.get("/metrics").text
    assert 'confide_requests_total{backend="plain",code="ok",model="m",protection=""} 3.0' in text
    assert 'confide_requests_total{backend="",code="unknown_model",model="",protection=""} 1.0' in text
    assert "clinic" not in text
    assert 'confide_request_bytes_bucket{backend="plain",code="ok",le="256.0",model="m",protection=""} 3.0' in text


_PATHS = st.sampled_from(
    [
        ("POST", "/v2/models/diagnosis/infer"),
        ("POST", "/v2/models/diagnosis/versions/toy/infer"),
        ("POST", "/v2/models/diagnosis/versions/toy/keys"),
        ("POST", "/v2/models/diagnosis/versions/plain/keys"),
    ]
)


@pytest.fixture(scope="module")
def target():
    with client_of(create_app([toy_model("diagnosis", PlainPredict(), Toy())])) as client:
        key = bytes(KEY_BYTES)
        client.post("/v2/models/diagnosis/versions/toy/keys", content=key)
        client.headers["x-key-id"] = hashlib.sha256(key).hexdigest()
        yield client


@settings(deadline=None, max_examples=150)
@given(_PATHS, st.binary(max_size=200), st.none() | st.integers(0, 220))
def test_any_bytes_get_an_answer_and_never_a_failure(target, endpoint, body, length):
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    assert target.request(*endpoint, content=body, headers=headers).status_code in {200, 400, 404}


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["plain", "toy"]), st.binary(max_size=200))
def test_any_message_gets_an_answer_and_never_a_failure(target, backend, payload):
    body, headers = sealed(payload, key_id=target.headers["x-key-id"])
    answer = target.post(f"/v2/models/diagnosis/versions/{backend}/infer", content=body, headers=headers)
    assert answer.status_code in {200, 400}


@settings(deadline=None, max_examples=80)
@given(st.text(max_size=40), st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]))
def test_any_path_gets_an_answer_and_never_a_failure(path, method):
    app = create_app([toy_model("m", PlainPredict())])
    sent = scripted(app, [{"type": "http.request", "body": b""}], {"path": f"/{path}", "method": method})
    assert 200 <= sent[0]["status"] < 500


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä", "x" * 65, "..", ".hidden"])
def test_a_models_name_fits_into_a_path(name):
    with pytest.raises(ModelError, match="name"):
        toy_model(name, PlainPredict())


def test_models_and_backends_differ():
    with pytest.raises(UsageError):
        create_app([])
    with pytest.raises(UsageError):
        create_app([toy_model("m"), toy_model("m")])
    with pytest.raises(ModelError):
        toy_model("m", Toy(), Toy())


def test_serves_several_models():
    with client_of(create_app([toy_model("one", PlainPredict()), toy_model("two", Toy())])) as client:
        assert client.get("/v2").json()["models"] == ["one", "two"]
        assert client.get("/v2/models/two").json()["platform"] == "confide_toy"


def test_bytes_may_come_in_json_as_base64(toy):
    key = bytes(KEY_BYTES)
    toy.post("/v2/models/diagnosis/keys", content=key)
    query = {"name": "query", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(b"x").decode()]}
    asked = {"inputs": [query], "parameters": {"key_id": hashlib.sha256(key).hexdigest()}}
    assert toy.post("/v2/models/diagnosis/infer", json=asked).json()["code"] == "malformed"  # by the backend itself
