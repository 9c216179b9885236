"""What a question costs is known and bounded before the work: rows, reply bytes, quota."""

from __future__ import annotations

import hashlib
import json
import struct

import msgspec
import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import ModelError, ProtocolError
from confide.he.backend import Homomorphic
from confide.he.paillier import Paillier
from confide.ideal import PlainPredict
from confide.model.graph import Graph, Linear, Square
from confide.net.http import InProcess
from confide.serve.client import Client
from confide.serve.keys import key_store
from confide.serve.limits import Limits
from confide.serve.protocol import Refusal
from confide.serve.served import Measured, Model, Served
from confide.serve.server import create_app
from confide.wire import MemoryStore, run
from serve.toy import LABEL, Toy, toy_model

RNG = SeededRandomness("served")
GENERATOR = np.random.Generator(np.random.PCG64(7))


def graph(outputs: int, features: int, hidden: int = 0) -> Graph:
    if not hidden:
        return Graph((Linear(GENERATOR.normal(size=(outputs, features)), np.zeros(outputs)),))
    first = Linear(GENERATOR.normal(size=(hidden, features)), np.zeros(hidden))
    return Graph((first, Square(), Linear(GENERATOR.normal(size=(outputs, hidden)), np.zeros(outputs))))


def served(backend, model: Graph, **limits) -> Served:
    limits = Limits(**limits)
    return Served(Model("m", model, LABEL, (backend,)), backend, store=key_store(None, limits), limits=limits, rng=RNG)


def request(query: bytes, **parameters) -> tuple[bytes, int]:
    element = struct.pack("<I", len(query)) + query
    tensor = {"name": "query", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    text = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return text + element, len(text)


@pytest.mark.parametrize(
    ("backend", "model", "rows"),
    [
        (PlainPredict(), graph(7, 3), 5),
        (Homomorphic(), graph(40, 784), 11),
        (Homomorphic(), graph(1, 30), 200),
        (Homomorphic(protect_model=False), graph(3, 30), 30),
        (Homomorphic(), graph(2, 10, hidden=8), 2),
        (Paillier(insecure_test_key_bits=2048), graph(3, 2), 2),
    ],
    ids=["plain", "he wide", "he narrow", "he open", "he squares", "paillier"],
)
def test_the_size_of_a_reply_is_predicted(backend, model, rows):
    kits, stores = backend.prepare(model, RNG), {"client": MemoryStore(), "server": MemoryStore()}
    assert isinstance(kits["server"], Measured)
    run({role: backend.setup(role, kits[role], stores[role], RNG) for role in kits}, stores=stores)
    x = {"client": GENERATOR.uniform(-1, 1, (rows, model.features)), "server": None}
    asked = run({role: backend.predict(role, kits[role], x[role], stores[role], RNG) for role in kits}, stores=stores)
    actual, predicted = asked.sizes[1], kits["server"].reply_bytes(rows)
    assert actual <= predicted
    assert predicted <= (4 if backend.name == "plain" else 1.05) * actual + 1100  # plain numbers may leave as text
    assert [kits["server"].reply_bytes(n) for n in range(1, 50)] == sorted(
        kits["server"].reply_bytes(n) for n in range(1, 50)
    )


def test_a_wide_encrypted_model_is_asked_in_rows_that_its_reply_has_room_for():
    """400 outputs of 784 features: 3 MiB of query would be answered with 75 MiB."""
    one = served(Homomorphic(), graph(400, 784))
    kit = one.backend.prepare(one.model.graph, RNG)["server"]
    assert 1 <= one.max_rows < 100
    assert kit.reply_bytes(one.max_rows) <= one.limits.reply_bytes < kit.reply_bytes(one.max_rows + 1)
    assert one.metadata()["parameters"]["max_rows"] == one.max_rows


def test_a_model_whose_smallest_reply_is_too_large_is_not_served():
    with pytest.raises(ModelError, match=r"raise reply_bytes"):
        served(Homomorphic(), graph(400, 784), reply_bytes=1 << 20)


class Idle(Homomorphic):
    """Fails the test that lets it work."""

    def predict(self, role, kit, x, store, rng):
        raise AssertionError


def he_query(rows: int) -> bytes:
    return msgspec.msgpack.encode({"key_id": "0" * 64, "rows": rows, "ciphertexts": [b"not looked at"]})


@pytest.fixture
def idle(monkeypatch):
    one = served(Idle(), graph(1, 3), batch_rows=10)
    monkeypatch.setattr(one.uploads, "knows", lambda key_id: True)
    return one


def test_too_many_rows_are_refused_before_the_work(idle):
    charged: list[int] = []
    with pytest.raises(Refusal, match="at most 10 rows") as refusal:
        idle.infer(*request(he_query(11)), charge=charged.append)
    assert (refusal.value.status, charged) == (413, [])
    with pytest.raises(AssertionError):  # the control: ten are let through
        idle.infer(*request(he_query(10)), charge=charged.append)
    assert charged == [10]


def test_the_quota_is_charged_before_the_work(idle):
    def spent(rows: int) -> None:
        raise Refusal(429, "quota", "spent")

    with pytest.raises(Refusal, match="spent"):
        idle.infer(*request(he_query(1)), charge=spent)


@pytest.mark.parametrize("query", [he_query(-5), b"", b"\x81\xa4rows\xa1x", b"\xc0"])
def test_a_query_that_does_not_say_its_rows_charges_nothing(idle, query):
    charged: list[int] = []
    with pytest.raises(ProtocolError):
        idle.infer(*request(query), charge=charged.append)
    assert charged == []


def test_a_backend_that_cannot_predict_its_work_is_bounded_after_it():
    backend = Toy()
    one, mine = served(backend, graph(1, 3), batch_rows=2), MemoryStore()
    key = RNG.bytes(1000)
    one.register(key, "")
    mine.commit({"secret": key})
    for rows, fits in ((2, True), (3, False)):
        party = backend.predict("client", None, np.zeros((rows, 3)), mine, RNG)
        body = next(party).send[0].body
        charged: list[int] = []
        whole = request(body, key_id=hashlib.sha256(key).hexdigest())
        if fits:
            one.infer(*whole, charge=charged.append)
            assert charged == [2]
        else:
            with pytest.raises(Refusal, match="at most 2 rows"):
                one.infer(*whole, charge=charged.append)
            assert charged == []


def test_keys_that_the_store_cannot_hold_are_refused_whole():
    limits = Limits(keys_bytes=1000, key_store_bytes=2000)
    store = key_store(None, limits)
    one = Served(toy_model("m"), Toy(), store=store, limits=limits, rng=RNG)
    with pytest.raises(Refusal, match="at most 2000 bytes") as caught:
        one.register(RNG.bytes(1999), "")
    assert (caught.value.status, caught.value.code) == (413, "too_large")
    assert store.keys() == []
    one.register(RNG.bytes(1900), "")
    assert len(store.keys("m/toy/known/")) == 1


def test_clients_send_as_many_rows_as_the_reply_has_room_for():
    model = graph(50, 2)
    app = create_app([Model("m", model, LABEL, (PlainPredict(),))], limits=Limits(reply_bytes=4000))
    with Client("http://localhost", backend="plain", transport=InProcess(app)) as client:
        assert client.kit.max_rows == 2
        x = GENERATOR.uniform(-1, 1, (9, 2))
        assert np.allclose(client.predict(x), model.apply(x), rtol=1e-12)


def test_a_model_whose_keys_no_client_could_upload_is_refused():
    graph = Graph((Linear(np.ones((16, 30)) / 30, np.zeros(16)), Square(), Linear(np.ones((1, 16)), np.zeros(1))))
    small = Limits(keys_bytes=1 << 20)
    with pytest.raises(ModelError, match="keys_bytes="):
        create_app([Model("net", graph, LABEL, (Homomorphic(),))], limits=small)
    assert create_app([Model("net", graph, LABEL, (Homomorphic(),))]).pins
