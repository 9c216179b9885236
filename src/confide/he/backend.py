"""The backend "he": the client's inputs stay encrypted from its own machine and back.

A linear model runs under BFV (exact integers, no evaluation key), a network with squares and trees under CKKS; the plan
is chosen from the model's shape. A last sigmoid runs at the client, which therefore sees the logit.

    client -> server   he/keys    public keys, their dates, a key for envelopes
    server -> client   he/key-id  their hash
    client -> server   he/query   an envelope (`envelope`) with ciphertexts, packed (`packed`)
    server -> client   he/reply   an envelope with ciphertexts, packed, and one power of two per output
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Literal

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import Guarantee
from confide.he.encode import LARGEST_EXPONENT, Integers, quantise
from confide.he.engine_batch import BatchClient, BatchServer
from confide.he.engine_native import MOST_THREADS, Engine, executor
from confide.he.engine_seal import NetworkClient, NetworkServer
from confide.he.engine_trees import TreesClient, TreesServer
from confide.he.enrolment import (
    LIFETIME_SECONDS,
    LONGEST_SECONDS,
    Mine,
    channel,
    current,
    make,
    mine,
    public_keys,
    record,
    uploaded,
)
from confide.he.envelope import NONCE_BYTES, SealedQuery, SealedReply
from confide.he.guarantees import guarantee
from confide.he.linear import LinearClient, LinearServer
from confide.he.machines import Keys
from confide.he.message_bytes import block_rows, keys_bytes, query_bytes, reply_bytes
from confide.he.network import MOST_DEGREE, Network
from confide.he.normalise import Ready
from confide.he.packed import pack, unpack
from confide.he.plan import Plan, Settings, batch_problems, plan_of, problems, size_problem
from confide.he.plan_batch import BatchPlan
from confide.he.plan_linear import LinearPlan
from confide.he.plan_network import NetworkPlan
from confide.he.plan_trees import MOST_BINS, TreesPlan
from confide.he.publish import Decrypted, Publications, check_reserved, may_publish, reserve
from confide.he.seal import Evaluation, SecretKey
from confide.he.setup import Owned, Registered, owned, setup_client, setup_server
from confide.he.trees import leaves_of
from confide.ideal import Backend, Kit, Matrix
from confide.model.fitted import approximated
from confide.model.graph import Graph, Problem, sigmoid
from confide.model.trees import Trees
from confide.wire import Message, Party, Step, Store, decode, encode

CkksClient = NetworkClient | BatchClient | TreesClient
CkksServer = NetworkServer | BatchServer | TreesServer

#: Version of kits and messages.
FORMAT = 1

_MAX_KIT_BYTES = 1 << 16
_MOST_KEYS_BYTES = 1 << 28  # that a client makes for a stranger's plan, and that a server's store takes
_MAX_QUERY_BYTES = 1 << 28
_MOST_CIPHERTEXTS = 1 << 16
_PUBLICATIONS = Publications()


class _Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client kit on the wire."""

    format: int
    plan: Plan


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks, inside a `SealedQuery`: encryptions of its rows, packed."""

    ciphertexts: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=_MOST_CIPHERTEXTS)]


class _Rows(msgspec.Struct, frozen=True):
    """The one field of a question that tells what it costs; the rest is skipped, not copied."""

    rows: int


class LinearReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Results of a linear model: y = z · 2^(e - a - f), with z at the places of results (`linear`), packed."""

    exponents: bytes
    c0: bytes
    c1: bytes


class NetworkReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Results of a network: outputs are 2^e times what the ciphertexts hold, which is off by at most 2^`error_bits`."""

    exponents: bytes
    error_bits: bytes
    ciphertexts: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=_MOST_CIPHERTEXTS)]


class ClientKit:
    """Public: the plan, and tables that are built from it once.

    Args:
        plan: checked.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._parsed: tuple[Owned, Mine] | None = None

    def encode(self) -> bytes:
        return encode(_Public(FORMAT, self.plan))

    @cached_property
    def encoded(self) -> bytes:
        """Return `encode()`, once."""
        return self.encode()

    @cached_property
    def engine(self) -> LinearClient | CkksClient:
        """Return the client's half of the plan's engine."""
        match self.plan:
            case LinearPlan():
                return LinearClient(self.plan)
            case NetworkPlan():
                return NetworkClient(self.plan)
            case BatchPlan():
                return BatchClient(self.plan)
            case TreesPlan():
                return TreesClient(self.plan)

    @property
    def block_rows(self) -> int:
        """Return the rows that a question carries at the cost of one."""
        return block_rows(self.plan)

    def keys(self, kept: Owned) -> Mine:
        """Return the keys in `kept`, parsed once."""
        if self._parsed is None or self._parsed[0] != kept:
            self._parsed = kept, mine(kept, self.engine.context, kit=self.encoded)
        return self._parsed[1]

    def prepare_ahead(self) -> bool:
        """Do a part of the next encryption, of a millisecond. Returns False if there is nothing to do."""
        return self._parsed is not None and self._parsed[1].secret.prepare_ahead()


class ServerKit:
    """Private: the plan and the encoded model. It stays in the server's memory.

    Args:
        plan: of the model's shape.
        net: the model.
        ready: its scaled weights, for a network.
        engine: what executes plans under CKKS.
        threads: that one answer may take.
    """

    def __init__(
        self, plan: Plan, net: Network | Trees, ready: Ready | None, engine: Engine = "auto", threads: int = 1
    ) -> None:
        self.plan = plan
        self.engine: LinearServer | CkksServer
        if isinstance(plan, TreesPlan):
            assert isinstance(net, Trees)
            self.engine = TreesServer(plan, leaves_of(net, plan), engine, threads)
        elif isinstance(plan, LinearPlan):
            assert isinstance(net, Network)
            assert net.linear is not None
            self.engine = LinearServer(plan, quantise(net.linear, plan.fixed))
        else:
            assert ready is not None
            if isinstance(plan, BatchPlan):
                self.engine = BatchServer(plan, ready, engine, threads)
            else:
                self.engine = NetworkServer(plan, ready, engine, threads)
        self.keys = Registered("he", self.parse_keys)
        self.public = ClientKit(plan).encode()

    def __repr__(self) -> str:
        return f"ServerKit({self.plan})"

    def encode(self) -> bytes:
        raise UsageError("Expected a client kit; the server's holds the model and is not written")

    @property
    def error_bound(self) -> Matrix:
        """Return the largest error of each output for every input in the box, shape (outputs,).

        For a model that ends in a sigmoid it is the error of the probability: a quarter of the logit's.
        """
        return self.engine.error / 4 if self.plan.sigmoid else self.engine.error

    def rows(self, query: bytes) -> int:
        """Return how many rows a query asks for, before any work on it; in a batch all that it has room for count.

        Raises:
            ProtocolError: it does not say.
        """
        rows = decode(query, _Rows, max_bytes=_MAX_QUERY_BYTES).rows
        return -(-rows // self.block_rows) * self.block_rows

    @property
    def block_rows(self) -> int:
        """Return the rows that a question carries at the cost of one."""
        return block_rows(self.plan)

    def query_bytes(self, rows: int) -> int:
        """Return a bound of the size of a query of `rows` rows."""
        return query_bytes(self.plan, rows)

    def reply_bytes(self, rows: int) -> int:
        """Return a bound of the size of a reply to `rows` rows."""
        return reply_bytes(self.plan, rows)

    @property
    def keys_bytes(self) -> int:
        """Return a bound of the size of one client's public keys as they are uploaded."""
        return keys_bytes(self.plan)

    def parse_keys(self, body: bytes) -> Keys:
        """Return a client's public keys. Raises ProtocolError on anything else."""
        if isinstance(self.engine, LinearServer):
            return public_keys(body, self.engine.context, self.plan.needs)
        return self.engine.keys(uploaded(body))


class Homomorphic(Backend):
    """Predictions on encrypted inputs, by Microsoft SEAL and, at the server, an evaluator of our own on its format.

    Args:
        protect_model: True re-randomises and floods the replies of linear models, so that they show their outputs and
            nothing else of the weights; networks with squares are re-randomised only, and no claim is made for their
            weights. False is faster, and the client can read a linear model's weights off one reply.
        input_bound: features lie in [-input_bound, input_bound]; the client refuses others.
        precision_bits: outputs may be off by 2^-precision_bits of their range over that box; the planner takes the
            smallest parameters that reach it and the best precision that those allow.
        scheme: "bfv" or "ckks" for linear models; None takes BFV, which is exact. Networks are CKKS.
        certify: True keeps room for every input in the box, or refuses; False for typical ones; None certifies where
            that costs little, and the plan says what it did.
        goal: "latency" answers each row by itself, soonest; "throughput" answers a network's rows in batches of N/2,
            many times faster for each row, at the same cost whether a question holds one row or all (`plan_batch`).
        typical_rows: inputs by which typical values are judged, shape (rows, features); points of the box if None.
        activation_degree: replaces ReLU, GELU, tanh and inner sigmoids by polynomials of this degree, 1 to 8, fitted on
            the interval that each can reach over the box; None refuses them. `confide fit-polynomial` trains such a
            network, which is more exact.
        tree_bins: even intervals of the box that trees tell apart, a power of two; thresholds are moved to the nearest
            edge. None takes as many as one ciphertext holds, from 128 to 1024; twice as many halve the share of rows
            that a moved threshold decides otherwise, and double the time once they need another ciphertext.
        key_lifetime_seconds: how long a client's keys are good; after that it makes new ones.
        publications: what a client may publish under one key (`publish`).
        engine: what executes networks and trees at the server: "native" is C++ (`engine_native`), "seal" Microsoft
            SEAL; "auto" takes the native one where it is. Plans are made for the one that runs them, and both can run
            every plan.
        threads: of the server that one answer may take on the native engine, 1 to 64; the environment's
            `CONFIDE_THREADS` comes first.
        clock: seconds since 1970.

    **Guarantees**: the server sees ciphertexts of one fixed size under a key that it does not have, at 128 bits of
    security; results on the box are exact to the stated error bound (of networks where the plan is certified);
    with `protect_model`, replies of a linear model
    are within 2^-40 per number (over the client's honest randomness, and under ring-LWE) of replies that depend on the
    outputs alone.

    **Leaks**: `guarantee_for`.

    Paper: `linear`, `plan_linear`, `planner`, `plan_trees`.
    """

    name = "he"

    def __init__(
        self,
        *,
        protect_model: bool = True,
        input_bound: float = 1.0,
        precision_bits: int = 10,
        scheme: Literal["bfv", "ckks"] | None = None,
        certify: bool | None = None,
        goal: Literal["latency", "throughput"] = "latency",
        typical_rows: Matrix | None = None,
        activation_degree: int | None = None,
        tree_bins: int | None = None,
        key_lifetime_seconds: int = LIFETIME_SECONDS,
        publications: Publications = _PUBLICATIONS,
        engine: Engine = "auto",
        threads: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < input_bound < math.inf:
            raise UsageError(f"Expected input_bound={input_bound} above 0; take the largest absolute feature")
        if not 1 <= precision_bits <= 40:
            raise UsageError(f"Expected precision_bits={precision_bits} from 1 to 40; 10 suits most models")
        if goal not in ("latency", "throughput"):
            raise UsageError(f"Expected goal={goal!r} to be latency or throughput")
        if engine not in ("auto", "native", "seal"):
            raise UsageError(f"Expected engine={engine!r} to be auto, native or seal")
        if not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"Expected threads={threads} from 1 to {MOST_THREADS}")
        if tree_bins is not None and not (2 <= tree_bins <= MOST_BINS and not tree_bins & (tree_bins - 1)):
            raise UsageError(f"Expected tree_bins={tree_bins} to be a power of two up to {MOST_BINS}; take 256")
        if not 0 < key_lifetime_seconds <= LONGEST_SECONDS:
            raise UsageError(f"Expected key_lifetime_seconds={key_lifetime_seconds} from 1 to {LONGEST_SECONDS}")
        self._lifetime_seconds = key_lifetime_seconds
        self._publications = publications
        self._engine: Engine = engine
        self._threads = threads
        self._clock = clock
        if activation_degree is not None and not 1 <= activation_degree <= MOST_DEGREE:
            raise UsageError(f"Expected activation_degree={activation_degree} from 1 to {MOST_DEGREE}; take 4")
        self._activation_degree = activation_degree
        self._settings = Settings(
            protect_model=protect_model,
            input_bound=float(input_bound),
            precision_bits=precision_bits,
            scheme=scheme,
            certify=certify,
            goal=goal,
            rows=typical_rows,
            tree_bins=tree_bins,
            engine=executor(engine),
        )
        self._latest: tuple[Graph, tuple[Plan, Ready | None]] | None = None
        self.guarantee = guarantee(None, protect_model=protect_model)

    def guarantee_for(self, graph: Graph) -> Guarantee:
        """Return the guarantee for one model, which can say more than `guarantee`: that holds for every model."""
        plan = self.plan(graph)
        return guarantee(plan, protect_model=self._settings.protect_model)

    def plan(self, graph: Graph) -> Plan:
        """Return the public plan of a model; its text states parameters and layout. Raises ModelError with problems."""
        return self._prepared(graph)[0]

    def _prepared(self, graph: Graph) -> tuple[Plan, Ready | None]:
        """Return the plan of a model and its scaled weights. Raises ModelError with its problems."""
        made = self._tried(graph)
        if isinstance(made, list):
            raise ModelError("Expected a model that he can run:\n" + "\n".join(map(str, made)))
        return made

    def _tried(self, graph: Graph) -> tuple[Plan, Ready | None] | list[Problem]:
        """Return a model's plan and scaled weights, or its problems; the latest's are kept: planning takes long."""
        if self._latest is not None and self._latest[0] is graph:
            return self._latest[1]
        arithmetic = self.arithmetic(graph)
        found = problems(arithmetic, self._settings)
        made = None if found else plan_of(arithmetic, self._settings)
        if made is None:
            return found or [size_problem(graph, self._settings)]
        found = batch_problems(made[0])
        if found:
            return found
        self._latest = graph, made
        return made

    def arithmetic(self, graph: Graph) -> Graph:
        """Return the graph that is computed: `graph` with polynomials for its activations, if a degree was given."""
        if self._activation_degree is None or isinstance(graph.layers[0], Trees):
            return graph
        bound = self._settings.input_bound
        return approximated(graph, -bound, bound, self._activation_degree)[0]

    def check(self, graph: Graph) -> list[Problem]:
        made = self._tried(graph)
        return made if isinstance(made, list) else []

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        plan, ready = self._prepared(graph)
        first = graph.layers[0]
        net = first if isinstance(first, Trees) else Network.of(self.arithmetic(graph))
        return {"client": ClientKit(plan), "server": ServerKit(plan, net, ready, self._engine, self._threads)}

    def decode_kit(self, role: str, body: bytes) -> Kit:
        public = decode(body, _Public, max_bytes=_MAX_KIT_BYTES)
        if role != "client" or public.format != FORMAT:
            raise ProtocolError(f"Expected a client kit of format={FORMAT}")
        kit = ClientKit(public.plan.checked())
        if keys_bytes(kit.plan) > _MOST_KEYS_BYTES:
            raise ProtocolError(f"Expected a plan with keys of at most {_MOST_KEYS_BYTES} bytes")
        if kit.plan.needs.relinearisation or kit.plan.needs.steps:
            kit.plan.parameters.check_switching()
        _ = kit.engine  # SEAL takes the parameters, or this raises ProtocolError
        return kit

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        now = self._clock()
        if role == "server" and isinstance(kit, ServerKit):
            return setup_server(self.name, kit.parse_keys, record=lambda body: record(body, kit=kit.public, now=now))
        client = _client(role, kit)
        context, needs = client.engine.context, client.plan.needs

        def fresh() -> tuple[bytes, bytes]:
            seconds = self._lifetime_seconds
            return make(context, needs, kit=client.encoded, now=now, lifetime_seconds=seconds, rng=rng)

        return setup_client(
            self.name, client.encoded, fresh, store, current=lambda kept: self._current(kept, store, now)
        )

    def _current(self, kept: Owned, store: Store, now: float) -> bool:
        return current(kept, now) and may_publish(self.name, kept.key_id, store, self._publications)

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        now = self._clock()
        if role == "server" and isinstance(kit, ServerKit):
            return _serve(kit, store, rng, now)
        client = _client(role, kit)
        if x is None:
            raise UsageError("Expected x at the client")
        keys = client.keys(owned(self.name, client.encoded, store)).checked(now)
        return _ask(client, x, keys, rng, release=_private)

    def publish(self, kit: Kit, x: Matrix, store: Store, rng: Randomness) -> Party:
        """Return the client's party of a prediction that may be shown to anybody.

        Exact results are shown as they are; those of CKKS are flooded, and counted per key (`publish`).

        Raises:
            UsageError: a plan that is not certified; from the party, too many rows at once, or a plan that is not
                precise enough to publish from.
            KeysExpired: nothing more may be published under this key; set up again.
        """
        client = _client("client", kit)
        if isinstance(client.plan, LinearPlan):
            return self.predict("client", kit, x, store, rng)
        if isinstance(client.plan, NetworkPlan) and not client.plan.certified:
            raise UsageError(
                "Expected a certified plan to publish from: beyond its room a value carries errors that no noise is "
                "sized for; have the server certify it (Homomorphic(certify=True))"
            )
        keys = client.keys(owned(self.name, client.encoded, store)).checked(self._clock())
        return _ask_counted(client, x, keys, store, rng, self._publications)


def _client(role: str, kit: Kit) -> ClientKit:
    if role != "client" or not isinstance(kit, ClientKit):
        raise UsageError(f"Expected role={role!r} with the kit that prepare made for it")
    return kit


# --- parties ----------------------------------------------------------------------------------------------------------


def _private(result: Matrix | Decrypted) -> Matrix:
    """Return a result for the owner of the key, who asked."""
    return result.private() if isinstance(result, Decrypted) else result


def _ask_counted(kit: ClientKit, x: Matrix, keys: Mine, store: Store, rng: Randomness, allowed: Publications) -> Party:
    name = Homomorphic.name
    yield Step(save=reserve(name, keys.key_id, rows=len(x), allowed=allowed, rng=rng))
    check_reserved(name, keys.key_id, store, allowed)

    def release(result: Matrix | Decrypted) -> Matrix:
        return result.publish(allowed, rng) if isinstance(result, Decrypted) else result

    return (yield from _ask(kit, x, keys, rng, release=release))


def _ask(
    kit: ClientKit, x: Matrix, keys: Mine, rng: Randomness, *, release: Callable[[Matrix | Decrypted], Matrix]
) -> Party:
    body = encode(Query(kit.engine.encrypt(keys.secret, x)))
    query = keys.channel.query(keys.key_id, len(x), body, rng.bytes(NONCE_BYTES))
    received = yield Step(
        send=(Message("client", "server", "he/query", encode(query)),), await_tag="he/reply", wait_for=("server",)
    )
    most = reply_bytes(kit.plan, len(x))
    sealed = decode(received["server"].body, SealedReply, max_bytes=most)
    return release(_read(kit.engine, keys.secret, keys.channel.answer(query, sealed), len(x)))


def _read(engine: LinearClient | CkksClient, secret: SecretKey, body: bytes, rows: int) -> Matrix | Decrypted:
    if isinstance(engine, LinearClient):
        return _read_linear(engine, secret, body, rows)
    return _read_network(engine, secret, body, rows)


def _read_linear(engine: LinearClient, secret: SecretKey, body: bytes, rows: int) -> Matrix:
    plan = engine.plan
    primes, degree = plan.parameters.data_primes, plan.parameters.degree
    reply = decode(body, LinearReply, max_bytes=_MAX_QUERY_BYTES)
    exponents = _exponents(reply.exponents, plan.outputs)
    shape = plan.blocks.ciphertexts(rows), plan.blocks.products, len(primes), degree
    c0 = unpack(reply.c0, (len(primes), rows * plan.outputs), primes).reshape(len(primes), rows, plan.outputs)
    c1 = unpack(reply.c1, shape, primes)
    y = plan.fixed.outputs(engine.decrypt(secret, c0, c1, rows), exponents)
    return sigmoid(y) if plan.sigmoid else y


def _read_network(engine: CkksClient, secret: SecretKey, body: bytes, rows: int) -> Decrypted:
    plan = engine.plan
    reply = decode(body, NetworkReply, max_bytes=_MAX_QUERY_BYTES)
    exponents = _exponents(reply.exponents, plan.outputs)
    if len(reply.ciphertexts) != plan.replies(rows):
        raise ProtocolError("Expected as many ciphertexts as the rows take")
    (error_bits,) = _exponents(reply.error_bits, 1).tolist()
    normal = engine.decrypt(secret, reply.ciphertexts)[:rows]
    return Decrypted(normal, exponents, 2.0 ** min(error_bits, 0), ends_in_sigmoid=plan.sigmoid)


def _exponents(body: bytes, count: int) -> Integers:
    """Return `count` powers of two. They take two bytes each, so that the size of a reply tells nothing of them."""
    if len(body) != 2 * count:
        raise ProtocolError("Expected one power of two for each output")
    values = np.frombuffer(body, "<i2").astype(np.int64)
    if (np.abs(values) > LARGEST_EXPONENT).any():
        raise ProtocolError(f"Expected powers of two up to 2^{LARGEST_EXPONENT}")
    return values


def _serve(kit: ServerKit, store: Store, rng: Randomness, now: float) -> Party:
    received = yield Step(await_tag="he/query", wait_for=("client",))
    query = decode(received["client"].body, SealedQuery, max_bytes=_MAX_QUERY_BYTES)
    line = channel(Homomorphic.name, query.key_id, store, kit=kit.public, now=now)
    body = decode(line.opened(query), Query, max_bytes=_MAX_QUERY_BYTES)  # no work before this holds
    keys = kit.keys.get(query.key_id, store)
    assert isinstance(keys, Keys)
    reply = line.reply(query, encode(_answer(kit, keys, body, query.rows, rng)))
    yield Step(send=(Message("server", "client", "he/reply", encode(reply)),))
    return query.rows


def _answer(kit: ServerKit, keys: Keys, query: Query, rows: int, rng: Randomness) -> msgspec.Struct:
    engine = kit.engine
    exponents = engine.exponents.astype("<i2").tobytes()
    if isinstance(engine, LinearServer):
        assert isinstance(keys, Evaluation)
        primes = kit.plan.parameters.data_primes
        c0, c1 = engine.answer(keys, query.ciphertexts, rows, rng)
        return LinearReply(exponents, pack(c0.reshape(len(primes), -1), primes), pack(c1, primes))
    if rows < 1 or len(query.ciphertexts) != engine.plan.queries(rows):
        raise ProtocolError("Expected as many ciphertexts as the rows take")
    error_bits = np.array([_error_bits(engine)], "<i2").tobytes()
    return NetworkReply(exponents, error_bits, engine.answer(keys, query.ciphertexts, rng))


def _error_bits(engine: CkksServer) -> int:
    """Return a power of two above every output's error in units of the last stage: by the model, not by a query."""
    largest = float(np.ldexp(engine.error, -engine.exponents).max())
    if not math.isfinite(largest):
        return 0  # nothing can be published from such a plan
    return max(-LARGEST_EXPONENT, min(0, math.ceil(math.log2(largest))))
