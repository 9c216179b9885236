"""The two ideal functions, `sum` and `predict`, what realises them, and the plain techniques that hide nothing.

Every aggregator realises `Aggregator.ideal`, every backend realises `Graph.apply`. The ideal function is the
specification, the baseline of every comparison and the oracle of every test.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import Aborted, ProtocolError, UsageError
from confide.guarantee import SUM_REVEALS, Guarantee, nothing_hidden
from confide.model.graph import Graph, Problem
from confide.wire import Array, Message, Party, Step, Store, decode, encode

Vector = NDArray[np.int64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who takes part in one sum.

    Args:
        clients: names of the parties that hold vectors, in a fixed order; all differ.
        quorum: smallest number of clients in a released sum, 1 <= quorum <= len(clients).
        server: the party that receives the sum.
        helper: the second server, the keyholder or the enclave, for aggregators that have such a role; the first two
            must not be run by whoever runs the first.
    """

    clients: tuple[str, ...]
    quorum: int
    server: str = "server"
    helper: str = "helper"

    def __post_init__(self) -> None:
        if len({self.server, self.helper, *self.clients}) != 2 + len(self.clients):
            raise UsageError("Expected clients with different names, none of them the server's or the helper's")
        if not 1 <= self.quorum <= len(self.clients):
            raise UsageError(f"Expected quorum={self.quorum} between 1 and the {len(self.clients)} clients")

    def parties(self, roles: Sequence[str]) -> dict[str, str]:
        """Return the role of each party by its name, for an aggregator with these `roles`."""
        servers = {"server": self.server} | dict.fromkeys(("helper", "keyholder", "enclave"), self.helper)
        return {servers[role]: role for role in roles if role in servers} | dict.fromkeys(self.clients, "client")


@dataclass(frozen=True, slots=True)
class Session:
    """What one sum is about; every party derives the same `context` from it or the sum cannot be opened.

    Args:
        run: the run's id.
        round, attempt: which sum of the run; a repeated round counts its attempts.
        cohort: who takes part.
        length: number of values d in each vector.
        bound: largest absolute value that any client may put into its vector.
        model_hash: SHA-256 of the model the vectors were computed on (32 bytes), or b"".
    """

    run: str
    round: int
    cohort: Cohort
    length: int
    bound: int
    attempt: int = 0
    model_hash: bytes = b""

    @property
    def ring_bits(self) -> int:
        """Return the smallest k with 2^k > 2 * clients * bound, so that no sum wraps."""
        return (2 * len(self.cohort.clients) * self.bound).bit_length()

    @property
    def context(self) -> bytes:
        """Return SHA-256 over every field, each prefixed by its length."""
        fields: list[Any] = [self.run, self.round, self.attempt, *self.cohort.clients, self.cohort.quorum]
        fields += [self.cohort.server, self.length, self.bound, self.ring_bits, self.model_hash.hex()]
        text = b"".join(len(part).to_bytes(4, "little") + part for part in (str(f).encode() for f in fields))
        return hashlib.sha256(b"confide session v1\0" + text).digest()

    def checked(self, vector: Vector) -> Vector:
        """Return `vector` if it fits this session.

        Raises:
            UsageError: wrong length, dtype, or a value beyond `bound`.
        """
        if vector.dtype != np.int64 or vector.shape != (self.length,):
            raise UsageError(f"Expected an int64 vector of length={self.length}; got {vector.dtype} {vector.shape}")
        if vector.size and (int(vector.max()) > self.bound or int(vector.min()) < -self.bound):
            raise UsageError(f"Expected values within bound={self.bound}; clip the vector or raise the bound")
        return vector


@dataclass(frozen=True, slots=True)
class Sums:
    """The output of an aggregator: one row of sums per group.

    Args:
        values: int64, shape (groups, d); exact integers.
        members: whose vectors are in each row.
    """

    values: NDArray[np.int64]
    members: tuple[frozenset[str], ...]


class Aggregator(ABC):
    """Realises `sum`: clients hold integer vectors, the server learns their sum and what `guarantee.leaks` says.

    `renews` says that a role's keys live only as long as its process: after a failed sum a new set-up may be needed.
    `upload` is the tag under which a client's vector leaves, protected or not. From then on others may open a sum with
    it, whatever the client does; so that is what a privacy budget is charged before.
    """

    name: ClassVar[str]
    upload: str
    guarantee: Guarantee  # a class attribute, or set by __init__ where it depends on settings
    roles: ClassVar[tuple[str, ...]] = ("server", "client")
    renews: ClassVar[bool] = False

    def check(self, cohort: Cohort) -> None:
        """Refuse a cohort over which this aggregator makes no sum; its parties refuse it too, when they are built.

        Raises:
            UsageError: too few clients or too small a quorum for what is promised.
        """
        return

    @abstractmethod
    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that prepares `me` for sums in `cohort`: keys, pinned roster. Saved in `store`."""

    @abstractmethod
    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum. `vector` is the client's, None elsewhere. The server's party returns `Sums`."""

    def ideal(self, vectors: Mapping[str, Vector]) -> Sums:
        """Return what the server must learn, computed in the clear."""
        total = np.stack(list(vectors.values())).sum(axis=0, dtype=np.int64, keepdims=True)
        return Sums(total, (frozenset(vectors),))


class _Vector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    values: Array


_PLAIN = "plain/vector"


class PlainSum(Aggregator):
    """The baseline: every client sends its vector in the clear, the server adds."""

    name = "plain"
    upload = _PLAIN
    guarantee = nothing_hidden(
        "The server sees every client's update; from a linear model's update it can often read records. " + SUM_REVEALS
    )

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Nothing to prepare."""
        return
        yield Step()

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        if role == "client" and vector is not None:
            return self._client(me, session, session.checked(vector))
        return self._server(session)

    def _client(self, me: str, session: Session, vector: Vector) -> Party:
        body = encode(_Vector(Array.of(vector)))
        yield Step(send=(Message(me, session.cohort.server, _PLAIN, body),))

    def _server(self, session: Session) -> Party:
        total = np.zeros(session.length, np.int64)
        members: set[str] = set()
        waiting = dict.fromkeys(session.cohort.clients)
        while waiting:
            received = yield Step(await_tag=_PLAIN, wait_for=tuple(waiting), each=True)
            if not received:
                break
            src, message = next(iter(received.items()))
            del waiting[src]
            try:
                vector = decode(message.body, _Vector, max_bytes=8 * session.length + 256).values
                values = vector.numpy("int64", (session.length,))
                session.checked(values)
            except (ProtocolError, UsageError):
                continue  # a malformed vector counts as a dropout
            total += values
            members.add(src)
        if len(members) < session.cohort.quorum:
            raise Aborted(f"Expected quorum={session.cohort.quorum} vectors, got {len(members)}")
        return Sums(total[None, :], (frozenset(members),))


class Kit(Protocol):
    """What one role needs to take part in predictions with one model; public at the client, private at the server."""

    def encode(self) -> bytes:
        """Return the kit as bytes that `Backend.decode_kit` reads."""
        ...


class Backend(ABC):
    """Realises `predict`: the client holds x, the server the model; who learns what is in `guarantee`."""

    name: ClassVar[str]
    guarantee: Guarantee  # a class attribute, or set by __init__ where it depends on settings
    roles: ClassVar[tuple[str, ...]] = ("client", "server")
    public_role: ClassVar[str] = "client"  # whose kit travels; the other's stays where prepare ran

    @abstractmethod
    def check(self, graph: Graph) -> list[Problem]:
        """Return everything in `graph` that this backend cannot run, each with its replacement; [] if it can."""

    def guarantee_for(self, graph: Graph) -> Guarantee:
        """Return what holds for `graph`; it can say more than `guarantee`, which holds for every model."""
        return self.guarantee

    @abstractmethod
    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        """Return the kit of each role. Raises ModelError with every problem of `check`."""

    @abstractmethod
    def decode_kit(self, role: str, body: bytes) -> Kit:
        """Return the kit that `Kit.encode` wrote. Raises ProtocolError on anything else."""

    @abstractmethod
    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        """Return the party that prepares predictions (keys): once per client and model. Both sides return a key id."""

    @abstractmethod
    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        """Return the party of one prediction: `x` (batch, features) at the client only, who gets y (batch, outputs).

        The server's party returns how many rows it answered, as far as it can know; the query quota counts them.
        """

    def publish(self, kit: Kit, x: Matrix, store: Store, rng: Randomness) -> Party:
        """Return the client's party of a prediction whose y may be shown to others without harm to the client's keys.

        Raises:
            KeysExpired: nothing more may be published under the keys; set up again.
        """
        return self.predict("client", kit, x, store, rng)


class _PlainKit:
    def __init__(self, graph: Graph | None) -> None:
        self.graph = graph

    def encode(self) -> bytes:
        return b""

    def rows(self, query: bytes) -> int:
        assert self.graph is not None
        return len(decode(query, _Vector, max_bytes=1 << 26).values.numpy("float64", (None, self.graph.features)))

    def reply_bytes(self, rows: int) -> int:
        assert self.graph is not None
        return 25 * rows * self.graph.outputs + 1024  # as text; 8 bytes a number in binary form


class PlainPredict(Backend):
    """The baseline: the client sends x in the clear, the server applies the model."""

    name = "plain"
    guarantee = nothing_hidden(
        "The server sees every query and every prediction; the client learns a linear model from features + 1 queries, "
        "others from more."
    )

    def check(self, graph: Graph) -> list[Problem]:
        return []

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        return {"client": _PlainKit(None), "server": _PlainKit(graph)}

    def decode_kit(self, role: str, body: bytes) -> Kit:
        if role != "client" or body:
            raise ProtocolError("Expected an empty client kit")
        return _PlainKit(None)

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        """Nothing to prepare."""
        return "plain"
        yield Step()

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        if role == "client" and x is not None:
            return self._client(x)
        if not isinstance(kit, _PlainKit) or kit.graph is None:
            raise UsageError("Expected the server's kit, which holds the model")
        return self._server(kit.graph)

    def _client(self, x: Matrix) -> Party:
        query = Message("client", "server", "plain/query", encode(_Vector(Array.of(x))))
        received = yield Step(send=(query,), await_tag="plain/reply", wait_for=("server",))
        reply = decode(received["server"].body, _Vector, max_bytes=1 << 26)
        return reply.values.numpy("float64", (len(x), None))

    def _server(self, graph: Graph) -> Party:
        received = yield Step(await_tag="plain/query", wait_for=("client",))
        query = decode(received["client"].body, _Vector, max_bytes=1 << 26)
        y = graph.apply(query.values.numpy("float64", (None, graph.features)))
        yield Step(send=(Message("server", "client", "plain/reply", encode(_Vector(Array.of(y)))),))
        return len(y)


def names(registry: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the names of a registry for an error text."""
    return ", ".join(sorted(registry))
