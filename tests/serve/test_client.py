"""The client against the real server in process, and against servers that lie."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import confide.serve
from confide.crypto.random import SeededRandomness
from confide.errors import (
    DataError,
    IntegrityError,
    MissingExtra,
    ModelError,
    PrivacyError,
    ProtocolError,
    ServiceError,
    UsageError,
)
from confide.guarantee import Claim
from confide.ideal import PlainPredict
from confide.model.graph import Graph
from confide.model.preprocess import OneHot, Preprocess
from confide.net import oip
from confide.net.http import InProcess
from confide.serve import load_backend
from confide.serve.access import hash_api_key
from confide.serve.client import Client
from confide.serve.keys import key_store
from confide.serve.limits import Limits
from confide.serve.protocol import ClientKit, Refusal, digest
from confide.serve.server import create_app
from confide.serve.session import Session
from confide.store import SqliteStore
from confide.wire import MemoryStore
from serve.toy import GRAPH, LABEL, PREPROCESS, Toy, toy_model

URL = "http://127.0.0.1:8080"
X = np.array([[0.5, -0.25, 1.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 0.0]])


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(confide.serve, "BACKENDS", {**confide.serve.BACKENDS, "toy": "serve.toy:Toy"})


class Counting(InProcess):
    """Counts requests by method and path."""

    def __init__(self, app) -> None:
        super().__init__(app)
        self.requests: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(f"{request.method} {request.url.path.rsplit('/', 1)[-1]}")
        return super().handle_request(request)


def toy_app(**options):
    return create_app([toy_model("diagnosis", Toy(), PlainPredict(), preprocess=PREPROCESS)], **options)


@pytest.fixture
def client():
    with Client(URL, transport=InProcess(toy_app())) as made:
        yield made


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, "toy", "plain"])
def test_predicts_what_the_graph_would(backend):
    with Client(URL, backend=backend, transport=InProcess(toy_app())) as client:
        assert np.array_equal(client.predict(X), GRAPH.apply(X))
        assert client.predict(X[0]).shape == (1, 1)
        assert client.predict(X.tolist()).dtype == np.float64


def test_predicts_under_encryption_within_the_stated_precision():
    seen = []

    class Spy(InProcess):
        def handle_request(self, request):
            seen.append(request.read())
            return super().handle_request(request)

    backend = load_backend("he")
    x = np.random.Generator(np.random.PCG64(3)).uniform(-1, 1, (50, 3))
    with Client(URL, transport=Spy(create_app([toy_model("m", backend)]))) as client:
        y = client.predict(x)
        assert client.guarantee == backend.guarantee_for(GRAPH)
    logit_range = 2 * (np.abs(GRAPH.layers[0].weight).sum() + 0.125)
    assert np.abs(y - GRAPH.apply(x)).max() <= 2**-10 * logit_range / 4  # a sigmoid's slope is at most 1/4
    assert not any(row.tobytes() in body for row in x for body in seen)


def test_shows_what_the_server_states(client):
    assert (client.model, client.backend) == ("diagnosis", "toy")
    assert client.guarantee == Toy.guarantee
    assert client.label == LABEL
    assert client.classes == ("benign", "malignant")
    assert client.kit.features == 3


def test_takes_raw_columns_and_text_as_a_csv_gives_it(client):
    expected = GRAPH.apply(np.array([[-0.5, 0.0, 1.0], [1.0, 1.0, 0.0]]))
    assert np.allclose(client.predict({"age": [25, 100], "sex": ["m", "f"]}), expected)
    assert np.allclose(client.predict({"age": ["25", "100.0"], "sex": ["m", "f"], "name": ["x", "y"]}), expected)
    assert np.allclose(client.predict({"age": np.array([25.0]), "sex": np.array(["m"])}), expected[:1])
    assert np.allclose(client.predict({"age": 25, "sex": "m"}), expected[:1])


def test_decides_for_the_likeliest_class(client):
    x = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    assert GRAPH.apply(x)[0, 0] > 0.5 > GRAPH.apply(x)[1, 0]
    assert client.decide(x) == ["malignant", "benign"]


def test_the_transcript_has_bytes_and_seconds(client):
    transcript = client.ask(X)
    assert [message.tag for message in transcript.messages] == ["toy/query", "toy/reply"]
    assert transcript.bytes_sent("client") == 32 + X.nbytes
    assert transcript.bytes_received("client") == 8 * len(X)
    assert transcript.seconds("client") > 0
    assert transcript.seconds("server") > 0
    assert transcript.depth == 2


def test_large_inputs_go_in_several_questions():
    transport = Counting(toy_app(limits=Limits(batch_rows=2)))
    with Client(URL, transport=transport) as client:
        x = np.linspace(-1, 1, 15).reshape(5, 3)
        transcript = client.ask(x)
        assert np.array_equal(transcript.output("client"), GRAPH.apply(x))
        assert transport.requests.count("POST infer") == 3
        assert len(transcript.messages) == 6


# --- nothing leaves by mistake ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "text"),
    [
        ([[1.5, 0, 0]], "row 1, feature 1"),
        ([[0, 0, 0], [0, 0, np.nan]], "row 2, feature 3"),
        ([[0, 0]], "shape"),
        (np.zeros((0, 3)), "at least one row"),
        (np.zeros((2, 2, 3)), "shape"),
        ([["a", "b", "c"]], "numbers"),
        ([[0, 0, 0], [0]], "numbers"),
        ({"age": [200], "sex": ["f"]}, "age"),
        ({"age": ["old"], "sex": ["f"]}, "numbers"),
        ({"age": [""], "sex": ["f"]}, "age"),
        ({"age": [20], "sex": ["x"]}, "sex"),
        ({"sex": ["f"]}, "age"),
        ({"age": [20, 30], "sex": ["f"]}, "sex"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_refused_here(x, text):
    transport = Counting(toy_app())
    with Client(URL, transport=transport) as client:
        with pytest.raises(DataError, match=text):
            client.predict(x)
        assert transport.requests == ["GET v2", "GET kit"]


def test_columns_need_preprocessing_and_without_it_there_are_no_bounds():
    with Client(URL, transport=InProcess(create_app([toy_model()]))) as client:
        with pytest.raises(DataError, match="columns"):
            client.predict({"age": [1]})
        assert client.predict([[5.0, 0.0, 0.0]]).shape == (1, 1)
        with pytest.raises(DataError, match="finite"):
            client.predict([[np.inf, 0.0, 0.0]])


def test_a_server_that_prefers_plain_gets_no_query_by_that():
    transport = Counting(create_app([toy_model("m", PlainPredict(), Toy())]))
    with Client(URL, transport=transport) as client:
        with pytest.raises(PrivacyError, match="backend='plain'"):
            client.predict(X)
        assert transport.requests == ["GET v2", "GET kit"]
    with Client(URL, backend="toy", transport=InProcess(create_app([toy_model("m", PlainPredict(), Toy())]))) as client:
        assert np.array_equal(client.predict(X), GRAPH.apply(X))


def test_the_secret_never_leaves_the_store():
    store, sent = MemoryStore(), []

    class Spy(InProcess):
        def handle_request(self, request):
            sent.append(request.read() + str(request.url).encode() + str(request.headers.raw).encode())
            return super().handle_request(request)

    class Honest(Toy):
        """As the toy, but what it keeps is more than what it sends."""

        def _make_key(self, store, rng):
            party = Toy._make_key(self, store, rng)
            step = next(party)
            received = yield replace(step, save={**step.save, "private": b"PRIVATE" * 4})
            try:
                party.send(received)
            except StopIteration as stop:
                return stop.value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.toy.Toy", Honest)
        with Client(URL, store=store, transport=Spy(toy_app())) as client:
            client.predict(X)
    assert any(b"PRIVATE" in value for value in store._entries.values())
    assert sent
    assert not any(b"PRIVATE" in request for request in sent)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_made_and_uploaded_once(tmp_path):
    app = toy_app()
    transport = Counting(app)
    with Client(URL, store=SqliteStore(tmp_path / "client.db"), transport=transport) as client:
        client.predict(X)
        client.predict(X)
    assert transport.requests == ["GET v2", "GET kit", "POST keys", "POST infer", "POST infer"]
    transport = Counting(app)
    with Client(URL, store=SqliteStore(tmp_path / "client.db"), transport=transport) as client:  # another process
        client.predict(X)
    assert transport.requests == ["GET v2", "GET kit", "POST infer"]


def test_keys_that_the_server_forgot_are_uploaded_again_and_not_made_again():
    now = [1000.0]
    limits = Limits(key_lifetime_seconds=60)
    server_store = SqliteStore(None, lifetime_seconds=60, clock=lambda: now[0])
    store = MemoryStore()
    transport = Counting(toy_app(store=server_store, limits=limits))
    with Client(URL, store=store, transport=transport) as client:
        client.predict(X)
        before = dict(store._entries)
        now[0] += 61
        assert np.array_equal(client.predict(X), GRAPH.apply(X))
        assert store._entries == before
    assert transport.requests[2:] == ["POST keys", "POST infer", "POST infer", "POST keys", "POST infer"]


def test_keys_evicted_by_others_come_back_by_themselves():
    limits = Limits(keys=1)
    app = toy_app(store=key_store(None, limits), limits=limits)
    one, two = (Client(URL, transport=InProcess(app)) for _ in range(2))
    with one, two:
        for _ in range(2):
            assert np.array_equal(one.predict(X), GRAPH.apply(X))
            assert np.array_equal(two.predict(X), GRAPH.apply(X))


def test_keys_can_be_made_ahead(client):
    made = client.setup()
    assert made.messages[0].tag == "toy/key"
    again = client.setup()
    assert again.messages == []  # the server has them
    assert again.output("client") == made.output("client")


def test_other_servers_get_other_keys():
    store = MemoryStore()
    for url in (URL, "http://127.0.0.1:9090"):
        with Client(url, store=store, transport=InProcess(toy_app())) as client:
            client.setup()
    assert len({value for key, value in store._entries.items() if key.endswith("keys/secret")}) == 2


def test_a_server_that_never_remembers_ends_in_an_error():
    class Forgetful(MemoryStore):
        def get(self, key):
            return None

    transport = InProcess(toy_app(store=Forgetful()))
    with Client(URL, transport=transport) as client, pytest.raises(ServiceError, match="404"):
        client.predict(X)


# --- another kit ------------------------------------------------------------------------------------------------------


class Switch(httpx2.BaseTransport):
    """Talks to whatever application is in `app` now."""

    def __init__(self, app) -> None:
        self.use(app)

    def use(self, app) -> None:
        self.inner = InProcess(app)

    def handle_request(self, request):
        return self.inner.handle_request(request)


def test_a_new_kit_is_fetched_and_x_prepared_anew():
    switch = Switch(toy_app())
    with Client(URL, transport=switch) as client:
        columns = {"age": [25], "sex": ["m"]}
        client.predict(columns)
        old = client.kit
        wider = msgspec.structs.replace(PREPROCESS.rules[0], high=50.0)
        changed = msgspec.structs.replace(PREPROCESS, rules=(wider, *PREPROCESS.rules[1:]))
        switch.use(create_app([toy_model("diagnosis", Toy(b"toy2"), preprocess=changed)]))
        assert np.allclose(client.predict(columns), GRAPH.apply(np.array([[0.0, 0.0, 1.0]])))
        assert client.kit != old


def test_a_pinned_kit_is_the_only_one():
    kit = httpx2.Client(transport=InProcess(toy_app()), base_url=URL).get("/v2/models/diagnosis/kit").content
    switch = Switch(toy_app())
    with Client(URL, kit_sha256=digest(kit), transport=switch) as client:
        client.predict(X)
        switch.use(create_app([toy_model("diagnosis", Toy(b"toy2"))]))
        with pytest.raises(IntegrityError, match="kit_sha256"):
            client.predict(X)


# --- servers that lie -------------------------------------------------------------------------------------------------


def kit_of(**changes) -> ClientKit:
    base = ClientKit(
        model="m", backend="toy", kit=b"toy", preprocess=b"", label=LABEL, guarantee=Toy.guarantee, features=3,
        outputs=1, classes=(), needs_keys=False, max_rows=10, max_query_bytes=10**6, max_keys_bytes=10**6,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def test_a_server_that_takes_everything_is_not_sent_everything_at_once():
    """A question is in memory some times over, so the server's word is not its only bound."""
    kit = kit_of(max_rows=10**9, max_query_bytes=10**18)
    session = SimpleNamespace(kit=kit, rows=16, _block_rows=1)
    Session.learn_rows(session, 16, 16 << 20)
    assert 32 <= session.rows <= 64


def lying(answer) -> httpx2.BaseTransport:
    """Return a server whose answers to everything but the metadata come from `answer(path)`."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v2":
            return httpx2.Response(200, json={"name": "confide", "models": ["m"]})
        return answer(request.url.path)

    return httpx2.MockTransport(handle)


def serving(kit: ClientKit, reply: bytes = b"", headers: dict | None = None):
    def answer(path: str) -> httpx2.Response:
        if path.endswith("/kit"):
            return httpx2.Response(200, content=kit.encode())
        return httpx2.Response(200, content=reply, headers=headers or {})

    return lying(answer)


@pytest.mark.parametrize(
    ("kit", "error"),
    [
        (kit_of(format=2), ProtocolError),
        (kit_of(features=0), ProtocolError),
        (kit_of(max_rows=0), ProtocolError),
        (kit_of(model="other"), ProtocolError),
        (kit_of(kit=b"nonsense"), ProtocolError),
        (kit_of(backend="toys"), ModelError),
        (kit_of(preprocess=b"nonsense"), ModelError),
        (kit_of(preprocess=PREPROCESS.encode(), features=4), ProtocolError),
    ],
    ids=range(8),
)
def test_a_kit_that_makes_no_sense_is_refused(kit, error):
    with Client(URL, transport=serving(kit)) as client, pytest.raises(error):
        client.predict(X)


def test_the_backend_that_was_named_is_the_one_that_is_used():
    transport = serving(kit_of())
    with Client(URL, backend="plain", transport=transport) as client, pytest.raises(ProtocolError, match="plain"):
        client.predict(X)


def test_a_server_cannot_claim_more_against_itself_than_the_code_gives():
    overstated = Toy.guarantee.claims | {Claim("everything", "server")}
    kit = kit_of(guarantee=replace(Toy.guarantee, claims=overstated))
    with Client(URL, transport=serving(kit)) as client, pytest.raises(IntegrityError, match="overstates"):
        client.predict(X)


@pytest.mark.parametrize(
    ("reply", "headers"),
    [
        (b"", {}),
        (b"{}", {"inference-header-content-length": "2"}),
        (b"{}", {"inference-header-content-length": "x"}),
        (b"{}", {"inference-header-content-length": "9"}),
        (b'{"outputs":[]}', {"inference-header-content-length": "14"}),
        (b"\xff" * 9, {"inference-header-content-length": "9"}),
    ],
    ids=range(6),
)
def test_a_reply_that_makes_no_sense_is_refused(reply, headers):
    with (
        Client(
            URL,
            backend="plain",
            transport=serving(kit_of(backend="plain", kit=b"", guarantee=PlainPredict.guarantee), reply, headers),
        ) as client,
        pytest.raises(ProtocolError),
    ):
        client.predict(X)


def test_a_reply_of_another_shape_is_refused():
    app = create_app([toy_model("m", PlainPredict())])
    kit = kit_of(backend="plain", kit=b"", guarantee=PlainPredict.guarantee, outputs=2)

    class Liar(InProcess):
        def handle_request(self, request):
            if request.url.path.endswith("/kit"):
                return httpx2.Response(200, content=kit.encode())
            if request.method == "GET":
                return super().handle_request(request)
            body = request.read()
            head = msgspec.json.decode(body[: int(request.headers[oip.HEADER_LENGTH])])
            head["parameters"].pop("kit_sha256")
            text = msgspec.json.encode(head)
            body = text + body[int(request.headers[oip.HEADER_LENGTH]) :]
            return super().handle_request(
                httpx2.Request("POST", request.url, content=body, headers={oip.HEADER_LENGTH: str(len(text))})
            )

    with Client(URL, backend="plain", transport=Liar(app)) as client, pytest.raises(ProtocolError, match="2 outputs"):
        client.predict(X)


def test_an_endless_reply_is_cut_off():
    def endless():
        while True:
            yield bytes(1 << 20)

    transport = lying(lambda path: httpx2.Response(200, content=endless()))
    with Client(URL, transport=transport) as client, pytest.raises(ProtocolError, match="at most"):
        client.predict(X)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"less\\u001b[2J","code":"busy","request_id":"00ff"}', r"less\?\[2J \[busy, request 00ff\]"),
        (b"<html>", "no reason given"),
        (b"", "no reason given"),
        (b'{"error":5}', "no reason given"),
        (b'{"error":"' + b"x" * 9000 + b'"}', "x{500}$"),
    ],
    ids=range(5),
)  # fmt: skip
def test_a_refusal_is_shown_in_one_clean_line(body, text):
    transport = lying(lambda path: httpx2.Response(503, content=body, headers={"retry-after": "7"}))
    with Client(URL, transport=transport, retries=0) as client, pytest.raises(Refusal, match=text) as refusal:
        client.predict(X)
    assert refusal.value.status == 503
    assert refusal.value.retry_after_seconds == 7
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("body", [b"{}", b"nonsense", b'{"models":5}'])
def test_something_else_than_confide_is_named_so(body):
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=body))
    with Client(URL, transport=transport) as client, pytest.raises(ProtocolError, match="confide server"):
        client.predict(X)


def test_redirects_are_not_followed():
    moved = lying(lambda path: httpx2.Response(302, headers={"location": "http://example.org/"}))
    with Client(URL, transport=moved) as client, pytest.raises(ServiceError, match="302"):
        client.predict(X)


def test_several_models_need_a_name():
    app = create_app([toy_model("one"), toy_model("two")])
    with Client(URL, transport=InProcess(app)) as client, pytest.raises(UsageError, match="'one', 'two'"):
        client.predict(X)
    with Client(URL, model="two", transport=InProcess(app)) as client:
        assert client.model == "two"
    with Client(URL, model="twos", transport=InProcess(app)) as client, pytest.raises(ServiceError, match='"two"'):
        client.predict(X)
    with Client(URL, model="../../v2", transport=InProcess(app)) as client, pytest.raises(ServiceError, match="404"):
        client.predict(X)


def test_the_api_key_goes_with_every_request():
    app = toy_app(api_keys={"clinic": hash_api_key("right")})
    with Client(URL, api_key="right", transport=InProcess(app)) as client:
        client.predict(X)
    with Client(URL, api_key="wrong", transport=InProcess(app)) as client, pytest.raises(Refusal, match="401"):
        client.predict(X)


def tight(query_bytes: int) -> Counting:
    limits = Limits(
        query_bytes=query_bytes, keys_bytes=6000, reply_bytes=6000, buffered_bytes=10000, key_store_bytes=12000
    )
    return Counting(create_app([toy_model("m", PlainPredict())], limits=limits))


def test_questions_grow_and_shrink_to_what_the_server_takes():
    x = np.linspace(-1, 1, 300).reshape(100, 3)
    for query_bytes, questions in ((10000, 2), (5000, 4), (4096 + 300, 10)):
        transport = tight(query_bytes)
        with Client(URL, backend="plain", transport=transport) as client:
            assert np.array_equal(client.predict(x), GRAPH.apply(x))
            assert transport.requests.count("POST infer") == questions


def test_a_row_that_is_too_large_is_not_sent():
    transport = tight(4096 + 30)
    with Client(URL, backend="plain", transport=transport) as client, pytest.raises(UsageError, match="4126 bytes"):
        client.predict(np.zeros((100, 3)))
    assert "POST infer" not in transport.requests


# --- construction and errors of the network ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "ftp://example.org", "https://", "https://u:p@example.org", "https://example.org/?q=1"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match="url"):
        Client(url)


def test_plain_http_to_another_machine_must_be_asked_for():
    with pytest.raises(UsageError, match="insecure_plain_http"):
        Client("http://example.org")
    Client("http://example.org", insecure_plain_http=True).close()
    Client("http://localhost:1").close()


def test_a_wrong_ca_file_is_named(tmp_path):
    (tmp_path / "ca.pem").write_text("nonsense")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(UsageError, match=name):
            Client("https://127.0.0.1", ca_file=tmp_path / name)


def test_nobody_there_is_one_clear_line():
    with Client("http://127.0.0.1:1", timeout_seconds=5) as client, pytest.raises(UsageError, match="127.0.0.1:1"):
        client.predict(X)


def test_a_broken_connection_is_said_with_what_to_try():
    def broken(request):
        raise httpx2.ReadError("connection reset")

    with Client(URL, transport=httpx2.MockTransport(broken)) as client, pytest.raises(UsageError, match="ReadError"):
        client.predict(X)


class Frame:
    """What pandas, polars and others have in common."""

    def __init__(self, columns: dict) -> None:
        self._columns = columns

    @property
    def columns(self) -> list:
        return list(self._columns)

    def __getitem__(self, name):
        return np.array(self._columns[name], object)


def test_a_frame_is_asked_by_its_columns(client):
    columns = {"age": [61, 47], "sex": ["f", "m"], "comment": ["not asked for", ""]}
    expected = GRAPH.apply(PREPROCESS.apply({"age": np.array([61.0, 47.0]), "sex": np.array(["f", "m"], object)}))
    assert np.array_equal(client.predict(Frame(columns)), expected)
    assert np.array_equal(client.predict(columns), expected)
    with pytest.raises(DataError, match="age"):
        client.predict(Frame({"ages": [61], "sex": ["f"]}))


@pytest.mark.parametrize("missing", [float("nan"), np.float64("nan"), None, ""])
def test_a_missing_category_of_a_frame_is_missing(client, missing):
    with pytest.raises(DataError, match="Expected a value of 'sex' in row 2"):
        client.predict(Frame({"age": [61, 47], "sex": ["f", missing]}))
    rules = Preprocess((PREPROCESS.rules[0], OneHot(name="sex", categories=("f",), missing="level")))
    app = create_app([toy_model("diagnosis", Toy(), preprocess=rules)])
    with Client(URL, transport=InProcess(app)) as tolerant:
        features = tolerant.features(Frame({"age": [61, 47], "sex": ["f", missing]}))
    assert np.allclose(features, [[0.22, 1, 0], [-0.06, 0, 1]])


def test_decide_needs_names():
    nameless = replace(toy_model("m"), graph=Graph(GRAPH.layers))
    with Client(URL, transport=InProcess(create_app([nameless]))) as client, pytest.raises(UsageError, match="classes"):
        client.decide(X)


def test_the_registry_names_what_it_knows(monkeypatch):
    with pytest.raises(ModelError, match='did you mean "plain"'):
        load_backend("plane")
    monkeypatch.setattr(confide.serve, "BACKENDS", {"paillier": "paillier_that_is_absent:X", "toy": "absent_module:X"})
    monkeypatch.setattr(confide.serve, "_EXTRAS", {"paillier_that_is_absent": "paillier"})
    with pytest.raises(MissingExtra, match=r"confide\[paillier\]"):
        load_backend("paillier")
    with pytest.raises(ModuleNotFoundError):
        load_backend("toy")


def test_the_client_needs_nothing_but_the_light_installation():
    """Blocks every optional package, then predicts in process."""
    script = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxruntime", "starlette", "uvicorn", "sklearn", "opacus",
                                      "sqlalchemy", "prometheus_client", "websockets", "paillier", "scipy"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
from confide.serve.client import Client
client_alone = {name for name in sys.modules if name.startswith("confide.serve")}
assert "confide.serve.server" not in client_alone, client_alone
import numpy as np
from confide.ideal import PlainPredict
from confide.model.graph import Graph
from confide.net import oip
from confide.net.http import InProcess
from confide.serve.server import create_app
from serve.toy import GRAPH, toy_model
app = create_app([toy_model("m", PlainPredict())])
with Client("http://localhost", backend="plain", transport=InProcess(app)) as c:
    assert np.array_equal(c.predict([[1.0, 2.0, 3.0]]), GRAPH.apply(np.array([[1.0, 2.0, 3.0]])))
"""
    root = Path(__file__).parents[2]
    path = f"{root / 'src'}:{root / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400))
def test_any_kit_is_a_kit_or_a_protocol_error(body):
    with suppress(ProtocolError):
        ClientKit.decode(body)


def test_seeded_randomness_repeats_the_run():
    bodies = []
    for _ in range(2):
        with Client(URL, rng=SeededRandomness("client"), transport=InProcess(toy_app())) as client:
            client.setup()
            bodies.append([message.body for message in client.ask(X).messages])
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("name", ["plain", "he", "paillier"])
def test_every_backend_of_the_registry_is_there_under_its_name(name):
    try:
        backend = load_backend(name)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    assert backend.name == name
    assert backend.roles == ("client", "server")
