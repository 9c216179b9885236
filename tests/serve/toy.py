"""A backend with keys whose arithmetic anybody can follow: it hides nothing and exercises everything around it."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass

import msgspec
import numpy as np

from confide.crypto.random import Randomness, SystemRandomness
from confide.errors import ProtocolError
from confide.guarantee import Adversary, Claim, Guarantee, PrivacyLabel, Trust
from confide.ideal import Backend, PlainPredict
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.serve.served import Model
from confide.wire import Array, Message, Party, Step, Store, decode

KEY_BYTES = 1000

LABEL = PrivacyLabel(aggregator="masked", parties=("north", "south"), quorum=2, colluding=0, rounds=3)
GRAPH = Graph((Linear(np.array([[1.5, -2.0, 0.25]]), np.array([0.125])), Sigmoid()), ("benign", "malignant"))
PREPROCESS = Preprocess((Scale(name="age", low=0, high=100), OneHot(name="sex", categories=("f", "m"))))


@dataclass(frozen=True)
class ToyKit:
    graph: Graph | None
    note: bytes = b"toy"

    def encode(self) -> bytes:
        return self.note


def mask(key: bytes, data: bytes) -> bytes:
    stream = hashlib.shake_256(key).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


class Toy(Backend):
    """Masks x with a stream from a key that the server has as well."""

    name = "toy"
    guarantee = Guarantee(
        claims=frozenset({Claim("query", "server"), Claim("prediction", "server"), Claim("weights", "client")}),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.NOBODY,
        security_bits=None,
        post_quantum=False,
        verified_result=False,
        leaks="Everything; it is a toy of the tests.",
        primary="toy",
        paper="",
    )

    def __init__(self, note: bytes = b"toy", key_bytes: int = KEY_BYTES) -> None:
        self.note = note
        self.key_bytes = key_bytes

    def check(self, graph: Graph) -> list:
        return []

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, ToyKit]:
        return {"client": ToyKit(None, self.note), "server": ToyKit(graph)}

    def decode_kit(self, role: str, body: bytes) -> ToyKit:
        if role != "client" or not body.startswith(b"toy"):
            raise ProtocolError("Expected a toy kit")
        return ToyKit(None, body)

    def setup(self, role: str, kit: ToyKit, store: Store, rng: Randomness) -> Party:
        return self._make_key(store, rng) if role == "client" else self._take_key()

    def _make_key(self, store: Store, rng: Randomness) -> Party:
        key = store.get("secret") or rng.bytes(self.key_bytes)
        message = Message("client", "server", "toy/key", key)
        received = yield Step(save={"secret": key}, send=(message,), await_tag="toy/key_id", wait_for=("server",))
        key_id = hashlib.sha256(key).hexdigest()
        if received["server"].body != key_id.encode():
            raise ProtocolError("Expected the id of the keys that were sent")
        return key_id

    def _take_key(self) -> Party:
        received = yield Step(await_tag="toy/key", wait_for=("client",))
        key = received["client"].body
        if len(key) < KEY_BYTES:
            raise ProtocolError(f"Expected a key of at least {KEY_BYTES} bytes")
        key_id = hashlib.sha256(key).hexdigest()
        yield Step(save={key_id: key}, send=(Message("server", "client", "toy/key_id", key_id.encode()),))
        return key_id

    def predict(self, role: str, kit: ToyKit, x: np.ndarray | None, store: Store, rng: Randomness) -> Party:
        return self._ask(store, x) if role == "client" else self._answer(kit.graph, store)

    def _ask(self, store: Store, x: np.ndarray) -> Party:
        key = store.get("secret")
        body = hashlib.sha256(key).digest() + mask(key, x.tobytes())
        received = yield Step(
            send=(Message("client", "server", "toy/query", body),), await_tag="toy/reply", wait_for=("server",)
        )
        return np.frombuffer(mask(key, received["server"].body)).reshape(len(x), -1)

    def _answer(self, graph: Graph, store: Store) -> Party:
        received = yield Step(await_tag="toy/query", wait_for=("client",))
        body = received["client"].body
        key = store.get(body[:32].hex())
        if key is None or len(body[32:]) % (8 * graph.features):
            raise ProtocolError("Expected a masked matrix under a key that is here")
        y = graph.apply(np.frombuffer(mask(key, body[32:])).reshape(-1, graph.features))
        yield Step(send=(Message("server", "client", "toy/reply", mask(key, y.tobytes())),))
        return len(y)


class Odd(PlainPredict):
    """The plain backend, whose process sleeps, fails or dies where the first feature says so."""

    name = "odd"
    SLEEP, FAIL, DIE = 7001.0, 7002.0, 7003.0

    def predict(self, role: str, kit: object, x: np.ndarray | None, store: Store, rng: Randomness) -> Party:
        party = super().predict(role, kit, x, store, rng)
        return party if role == "client" else self._watch(party)

    def _watch(self, party: Party) -> Party:
        received = yield next(party)
        first = decode(received["client"].body, _Values, max_bytes=1 << 20).values.numpy("float64", (None, 3))[0, 0]
        if first == self.SLEEP:
            time.sleep(30)
        if first == self.FAIL:
            raise ValueError(f"the secret is {first}")
        if first == self.DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        yield party.send(received)
        return 1


class _Values(msgspec.Struct):
    values: Array


def toy_model(name: str = "diagnosis", *backends: Backend, preprocess: Preprocess | None = None) -> Model:
    """Return the model of the tests under the toy backend, or under `backends`."""
    return Model(name, GRAPH, LABEL, backends or (Toy(),), preprocess.encode() if preprocess else b"")


def upload(key: bytes | None = None) -> bytes:
    """Return a body for the toy's `keys` endpoint."""
    return key or SystemRandomness().bytes(KEY_BYTES)
