"""What the tests of `confide.he` compare with: integers and polynomials in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np

from confide.crypto.random import SystemRandomness
from confide.he.enrolment import Mine
from confide.he.envelope import SealedQuery, SealedReply
from confide.he.kits import ClientKit, ServerKit
from confide.he.linear import LinearServer
from confide.he.machines import Keys
from confide.he.seal import Evaluation, PublicKeys
from confide.he.setup import owned
from confide.ideal import Backend, Kit
from confide.model.graph import Graph, Linear, Sigmoid, Square
from confide.model.trees import Trees, perfect
from confide.wire import MemoryStore, Transcript, alter, decode, encode, run

RNG = SystemRandomness()


def linear(seed: int, outputs: int, inputs: int, scale: float = 1.0) -> Linear:
    stream = np.random.default_rng(seed)
    return Linear(scale * stream.normal(size=(outputs, inputs)), scale * stream.normal(size=outputs))


def logistic(seed: int, features: int, outputs: int = 1) -> Graph:
    return Graph((linear(seed, outputs, features), Sigmoid()))


def mlp(seed: int, *sizes: int) -> Graph:
    layers: list[Linear | Square | Sigmoid] = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [Square()] * (place > 0) + [linear(seed + place, outputs, inputs, 0.5)]
    return Graph(tuple(layers))


def forest(seed: int, features: int, trees: int, depth: int, *, outputs: int = 1, steps: int = 64) -> Trees:
    """Perfect trees with random comparisons and leaves; thresholds are edges of `steps` even intervals of [-1, 1]."""
    stream = np.random.default_rng(seed)
    shape = perfect(trees, depth, features=features, outputs=outputs)
    return replace(
        shape,
        feature=stream.integers(0, features, len(shape.feature)),
        threshold=2 * stream.integers(1, steps, len(shape.feature)) / steps - 1,
        value=stream.normal(size=len(shape.value)),
        offset=stream.normal(size=outputs),
    )


class Pair:
    """A client and a server that have set up, with a store each."""

    def __init__(self, backend: Backend, graph: Graph, **stores: MemoryStore) -> None:
        self.backend = backend
        self.graph = graph
        kits = backend.prepare(graph, RNG)
        kits |= {role: backend.decode_kit(role, kits[role].encode()) for role in [backend.public_role]}
        self.server: Kit = kits["server"]
        self.client: Kit = kits["client"]
        self.stores = {"client": stores.get("client", MemoryStore()), "server": stores.get("server", MemoryStore())}

    def setup(self, fault=None) -> Transcript:
        parties = {
            "client": self.backend.setup("client", self.client, self.stores["client"], RNG),
            "server": self.backend.setup("server", self.server, self.stores["server"], RNG),
        }
        return run(parties, stores=self.stores, fault=fault)

    def predict(self, x, fault=None) -> Transcript:
        parties = {
            "client": self.backend.predict("client", self.client, np.asarray(x, float), self.stores["client"], RNG),
            "server": self.backend.predict("server", self.server, None, self.stores["server"], RNG),
        }
        return run(parties, stores=self.stores, fault=fault)

    def altered(self, x, tag: str, change) -> Transcript:
        """A prediction in which one message's struct is changed by whoever holds the keys, so that its tag holds."""

        def query(body: bytes) -> bytes:
            sealed = decode(body, SealedQuery, max_bytes=1 << 28)
            rows, inner = change(sealed.rows, sealed.body)
            return encode(self.keys.channel.query(sealed.key_id, rows, inner, sealed.nonce))

        asked: list[SealedQuery] = []

        def listen(body: bytes) -> bytes:
            asked.append(decode(body, SealedQuery, max_bytes=1 << 28))
            return body

        def reply(body: bytes) -> bytes:
            sealed = decode(body, SealedReply, max_bytes=1 << 28)
            return encode(self.keys.channel.reply(asked[0], change(sealed.body)))

        def fault(message):
            if message.tag == "he/query":
                return alter(query if tag == "he/query" else listen, tag="he/query")(message)
            return alter(reply, tag="he/reply")(message) if tag == "he/reply" else [(0, message)]

        return self.predict(x, fault=fault)

    @property
    def keys(self) -> Mine:
        """The client's keys."""
        assert isinstance(self.client, ClientKit)
        return self.client.keys(owned("he", self.client.encoded, self.stores["client"]))


def public_keys(kit: ServerKit, keys: PublicKeys) -> Keys:
    """What the server makes of a client's public keys."""
    if isinstance(kit.engine, LinearServer):
        return Evaluation(kit.engine.context, keys, kit.plan.needs)
    return kit.engine.keys(keys)


def ready(backend: Backend, graph: Graph) -> Pair:
    pair = Pair(backend, graph)
    pair.setup().output("client")
    return pair


def seconds(client, replies) -> list[bytes]:
    """The second polynomials of replies under CKKS: in the first one what is not read is random."""
    ciphers = [client.context.load(body, client._reply) for body in replies]
    return [client.context.residues(cipher, client._reply)[1].tobytes() for cipher in ciphers]


def corners(rows: int, features: int, seed: int = 0) -> np.ndarray:
    """Rows at corners of the box, then rows inside it."""
    stream = np.random.default_rng(seed)
    x = stream.uniform(-1, 1, size=(rows, features))
    x[: rows // 2] = np.sign(x[: rows // 2])
    return x


# --- integers ---------------------------------------------------------------------------------------------------------


def nearest(value: Fraction) -> int:
    """The nearest integer, ties to even, from exact arithmetic."""
    return round(value)


def dot_integers(
    weights: Sequence[Sequence[int]], biases: Sequence[int], x: Sequence[Sequence[int]]
) -> list[list[int]]:
    return [
        [sum(w * v for w, v in zip(row, values, strict=True)) + bias for row, bias in zip(weights, biases, strict=True)]
        for values in x
    ]


# --- polynomials modulo X^N + 1 ---------------------------------------------------------------------------------------


def compose(residues: np.ndarray, primes: Sequence[int]) -> list[int]:
    """Numbers modulo the product from numbers modulo each prime, shape (primes, n)."""
    q = math.prod(primes)
    parts = [(q // prime) * pow(q // prime, -1, prime) for prime in primes]
    columns = residues.T.tolist()
    return [sum(part * value for part, value in zip(parts, column, strict=True)) % q for column in columns]


def product_at(a: Sequence[int], s: Sequence[int], place: int) -> int:
    """One coefficient of a·s modulo X^N + 1."""
    degree = len(a)
    low = sum(a[i] * s[place - i] for i in range(place + 1) if s[place - i])
    high = sum(a[i] * s[place - i + degree] for i in range(place + 1, degree) if s[place - i + degree])
    return low - high


def centred(value: int, modulus: int) -> int:
    value %= modulus
    return value - modulus if 2 * value > modulus else value


def ternary_secret(context, secret) -> list[int]:
    """The secret polynomial, read off by decrypting the ciphertext (0, q/t): its phase is s·q/t."""
    parameters = context.parameters
    q, t, degree = parameters.modulus, parameters.plain_modulus, parameters.degree
    residues = np.zeros((2, len(parameters.data_primes), degree), np.uint64)
    residues[1, :, 0] = [(q // t) % prime for prime in parameters.data_primes]
    form = context.form(limbs=len(parameters.data_primes), ntt=False)
    found = context.coefficients(secret.decrypt(context.from_residues(residues, form)))
    return [centred(value, t) for value in found.tolist()]
