"""The backend "he": the client's inputs stay encrypted from its own machine and back.

A linear model runs under BFV (exact integers, no evaluation key), a network with squares and trees under CKKS; the plan
is chosen from the model's shape. A last sigmoid runs at the client, which therefore sees the logit.

    client -> server   he/query   key id, ciphertexts
    server -> client   he/reply   ciphertexts, and one power of two per output
"""

from __future__ import annotations

import math
from functools import cached_property

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.he.encode import LARGEST_EXPONENT, Integers, normalise, quantise
from confide.he.engine_seal import MlpClient, MlpServer
from confide.he.engine_trees import TreesClient, TreesServer
from confide.he.linear import LinearClient, LinearServer
from confide.he.parameters import SECURITY_BITS
from confide.he.plan import Network, Plan, Settings, plan_of, problems
from confide.he.plan_linear import FLOODING_BITS, LinearPlan
from confide.he.plan_trees import MOST_BINS, TreesPlan
from confide.he.seal import Evaluation, PublicKeys, SecretKey
from confide.he.setup import MAX_KEYS_BYTES, Owned, Registered, owned, setup_client, setup_server
from confide.he.trees import leaves_of
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Problem, sigmoid
from confide.model.trees import Trees
from confide.wire import Array, Message, Party, Step, Store, decode, encode

#: Version of kits and messages.
FORMAT = 1

_MAX_KIT_BYTES = 1 << 16
_MAX_QUERY_BYTES = 1 << 28
_LARGEST_EXPONENT = 512
_REPLY_HEAD_BYTES = 256
_CIPHERTEXT_HEAD_BYTES = 256


class _Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client kit on the wire."""

    format: int
    plan: Plan


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client sends: which keys, how many rows, and their encryptions."""

    key_id: str
    rows: int
    ciphertexts: tuple[bytes, ...]


class _Rows(msgspec.Struct, frozen=True):
    """The one field of a query that tells what it costs; the rest is skipped, not copied."""

    rows: int


class LinearReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Results of a linear model: y = z · 2^(e - a - f), with z at the places of results (`linear`)."""

    exponents: tuple[int, ...]
    c0: Array
    c1: Array


class MlpReply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Results of a network: outputs are 2^e times what the ciphertexts hold."""

    exponents: tuple[int, ...]
    ciphertexts: tuple[bytes, ...]


class ClientKit:
    """Public: the plan, and tables that are built from it once.

    Args:
        plan: checked.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._parsed: tuple[bytes, SecretKey] | None = None

    def encode(self) -> bytes:
        return encode(_Public(FORMAT, self.plan))

    @cached_property
    def encoded(self) -> bytes:
        """Return `encode()`, once."""
        return self.encode()

    @cached_property
    def engine(self) -> LinearClient | MlpClient | TreesClient:
        """Return the client's half of the plan's engine."""
        if isinstance(self.plan, TreesPlan):
            return TreesClient(self.plan)
        return LinearClient(self.plan) if isinstance(self.plan, LinearPlan) else MlpClient(self.plan)

    def secret(self, kept: Owned) -> SecretKey:
        """Return the secret key in `kept`, parsed once."""
        if self._parsed is None or self._parsed[0] != kept.secret:
            self._parsed = (kept.secret, self.engine.context.secret(kept.secret))
        return self._parsed[1]


class ServerKit:
    """Private: the plan and the encoded model. It stays in the server's memory.

    Args:
        plan: of the model's shape.
        net: the model.
    """

    def __init__(self, plan: Plan, net: Network | Trees) -> None:
        self.plan = plan
        self.engine: LinearServer | MlpServer | TreesServer
        if isinstance(plan, TreesPlan) or isinstance(net, Trees):
            assert isinstance(plan, TreesPlan)
            assert isinstance(net, Trees)
            self.engine = TreesServer(plan, leaves_of(net, plan))
        elif isinstance(plan, LinearPlan):
            assert net.linear is not None
            self.engine = LinearServer(plan, quantise(net.linear, plan.fixed))
        else:
            self.engine = MlpServer(plan, normalise(net.layers, plan.input_bound))
        self.keys = Registered("he", self.parse_keys)

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
        """Return how many rows a query asks for, before any work on it. Raises ProtocolError if it does not say."""
        return decode(query, _Rows, max_bytes=_MAX_QUERY_BYTES).rows

    def reply_bytes(self, rows: int) -> int:
        """Return a bound of the size of a reply to `rows` rows."""
        plan, polynomial = self.plan, 8 * self.plan.parameters.degree
        if isinstance(plan, LinearPlan):
            c0, c1 = 8 * rows * plan.outputs, polynomial * plan.blocks.ciphertexts(rows) * plan.blocks.products
            size = len(plan.parameters.data_primes) * (c0 + c1)
        else:
            size = rows * (2 * polynomial + _CIPHERTEXT_HEAD_BYTES)  # at the last prime
        return size + 3 * plan.outputs + _REPLY_HEAD_BYTES

    def parse_keys(self, body: bytes) -> Evaluation:
        """Return a client's public keys. Raises ProtocolError on anything else."""
        keys = decode(body, PublicKeys, max_bytes=MAX_KEYS_BYTES)
        return Evaluation(self.engine.context, keys, self.plan.needs)


class Homomorphic(Backend):
    """Predictions on encrypted inputs, by Microsoft SEAL.

    Args:
        protect_model: True re-randomises and floods the replies of linear models, so that they show their outputs and
            nothing else of the weights; networks with squares are re-randomised only, and no claim is made for their
            weights. False is faster, and the client can read a linear model's weights off one reply.
        input_bound: features lie in [-input_bound, input_bound]; the client refuses others.
        precision_bits: outputs may be off by 2^-precision_bits of their range over that box; the planner takes the
            smallest parameters that reach it and the best precision that those allow.
        tree_bins: even intervals of the box that trees tell apart, a power of two; thresholds are moved to the nearest
            edge. None takes as many as one ciphertext holds, from 128 to 1024; twice as many halve the share of rows
            that a moved threshold decides otherwise, and double the time once they need another ciphertext.

    **Guarantees**: the server sees ciphertexts of one fixed size under a key that it does not have, at 128 bits of
    security; results on the box are exact to the stated error bound; with `protect_model`, replies of a linear model
    are within 2^-40 per number (over the client's honest randomness, and under ring-LWE) of replies that depend on the
    outputs alone.

    **Leaks**: `guarantee_for`.

    Paper: `linear`, `plan_linear`, `plan_mlp`, `plan_trees`.
    """

    name = "he"

    def __init__(
        self,
        *,
        protect_model: bool = True,
        input_bound: float = 1.0,
        precision_bits: int = 10,
        tree_bins: int | None = None,
    ) -> None:
        if not 0 < input_bound < math.inf:
            raise UsageError(f"Expected input_bound={input_bound} above 0; take the largest absolute feature")
        if not 1 <= precision_bits <= 40:
            raise UsageError(f"Expected precision_bits={precision_bits} from 1 to 40; 10 suits most models")
        if tree_bins is not None and not (2 <= tree_bins <= MOST_BINS and not tree_bins & (tree_bins - 1)):
            raise UsageError(
                f"Expected tree_bins={tree_bins} to be a power of two up to {MOST_BINS}; 256 suits most trees"
            )
        self._settings = Settings(
            protect_model=protect_model,
            input_bound=float(input_bound),
            precision_bits=precision_bits,
            tree_bins=tree_bins,
        )
        self.guarantee = _guarantee(None, protect_model=protect_model)

    def guarantee_for(self, graph: Graph) -> Guarantee:
        """Return the guarantee for one model, which can say more than `guarantee`: that holds for every model."""
        plan = self.plan(graph)
        return _guarantee(plan, protect_model=self._settings.protect_model)

    def plan(self, graph: Graph) -> Plan:
        """Return the public plan of a model; its text states parameters and layout. Raises ModelError with problems."""
        found = self.check(graph)
        plan = None if found else plan_of(graph, self._settings)
        if plan is None:
            raise ModelError("Expected a model that he can run:\n" + "\n".join(map(str, found)))
        return plan

    def check(self, graph: Graph) -> list[Problem]:
        return problems(graph, self._settings)

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        plan = self.plan(graph)
        first = graph.layers[0]
        net = first if isinstance(first, Trees) else Network.of(graph)
        return {"client": ClientKit(plan), "server": ServerKit(plan, net)}

    def decode_kit(self, role: str, body: bytes) -> Kit:
        public = decode(body, _Public, max_bytes=_MAX_KIT_BYTES)
        if role != "client" or public.format != FORMAT:
            raise ProtocolError(f"Expected a client kit of format={FORMAT}")
        kit = ClientKit(public.plan.checked())
        _ = kit.engine  # SEAL takes the parameters, or this raises ProtocolError
        return kit

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        if role == "server" and isinstance(kit, ServerKit):
            return setup_server(self.name, kit.parse_keys)
        client = _client(role, kit)

        def make() -> tuple[bytes, bytes]:
            secret, public = client.engine.context.generate(rng.bytes(16), client.plan.needs)
            return secret.to_bytes(), encode(public)

        return setup_client(self.name, client.encoded, make, store)

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        if role == "server" and isinstance(kit, ServerKit):
            return _serve(kit, store, rng)
        client = _client(role, kit)
        if x is None:
            raise UsageError("Expected x at the client")
        return _ask(client, x, owned(self.name, client.encoded, store))


def _client(role: str, kit: Kit) -> ClientKit:
    if role != "client" or not isinstance(kit, ClientKit):
        raise UsageError(f"Expected role={role!r} with the kit that prepare made for it")
    return kit


# --- parties ----------------------------------------------------------------------------------------------------------


def _ask(kit: ClientKit, x: Matrix, kept: Owned) -> Party:
    secret, engine = kit.secret(kept), kit.engine
    body = encode(Query(kept.key_id, len(x), engine.encrypt(secret, x)))
    received = yield Step(
        send=(Message("client", "server", "he/query", body),), await_tag="he/reply", wait_for=("server",)
    )
    answer = received["server"].body
    if isinstance(engine, LinearClient):
        y = _read_linear(engine, secret, answer, len(x))
    else:
        y = _read_mlp(engine, secret, answer, len(x))
    return sigmoid(y) if kit.plan.sigmoid else y


def _read_linear(engine: LinearClient, secret: SecretKey, body: bytes, rows: int) -> Matrix:
    plan = engine.plan
    limbs, degree = len(plan.parameters.data_primes), plan.parameters.degree
    reply = decode(body, LinearReply, max_bytes=_MAX_QUERY_BYTES)
    exponents = _exponents(reply.exponents, plan.outputs)
    c0 = reply.c0.numpy("uint64", (limbs, rows, plan.outputs))
    c1 = reply.c1.numpy("uint64", (plan.blocks.ciphertexts(rows), plan.blocks.products, limbs, degree))
    return plan.fixed.outputs(engine.decrypt(secret, c0, c1, rows), exponents)


def _read_mlp(engine: MlpClient | TreesClient, secret: SecretKey, body: bytes, rows: int) -> Matrix:
    reply = decode(body, MlpReply, max_bytes=_MAX_QUERY_BYTES)
    exponents = _exponents(reply.exponents, engine.plan.outputs)
    if len(reply.ciphertexts) != rows:
        raise ProtocolError("Expected one ciphertext for each row")
    return np.ldexp(engine.decrypt(secret, reply.ciphertexts), exponents)


def _exponents(values: tuple[int, ...], outputs: int) -> Integers:
    if len(values) != outputs or any(abs(value) > LARGEST_EXPONENT for value in values):
        raise ProtocolError("Expected one power of two for each output")
    return np.array(values, np.int64)


def _serve(kit: ServerKit, store: Store, rng: Randomness) -> Party:
    received = yield Step(await_tag="he/query", wait_for=("client",))
    query = decode(received["client"].body, Query, max_bytes=_MAX_QUERY_BYTES)
    keys = kit.keys.get(query.key_id, store)
    assert isinstance(keys, Evaluation)
    engine = kit.engine
    exponents = tuple(engine.exponents.tolist())
    reply: msgspec.Struct
    if isinstance(engine, LinearServer):
        c0, c1 = engine.answer(keys, query.ciphertexts, query.rows, rng)
        reply = LinearReply(exponents, Array.of(c0), Array.of(c1))
    else:
        each = kit.plan.ciphertexts if isinstance(kit.plan, TreesPlan) else 1
        if len(query.ciphertexts) != query.rows * each or not query.rows:
            raise ProtocolError("Expected as many ciphertexts as the rows take")
        reply = MlpReply(exponents, engine.answer(keys, query.ciphertexts))
    yield Step(send=(Message("server", "client", "he/reply", encode(reply)),))
    return query.rows


# --- guarantees -------------------------------------------------------------------------------------------------------

_SERVER_SEES = "The server sees who asks, when, and how many rows."
_PROTECTED = (
    "The client sees the outputs before any sigmoid, and a power of two above each one's range; features + 1 queries "
    "determine a linear model, as under every technique. Replies are otherwise within "
    f"2^-{FLOODING_BITS} per number of ones that depend on the outputs alone; a client that deviates from the protocol "
    f"(a forged public key or query) learns the weights. {_SERVER_SEES}"
)
_OPEN = (
    "The model is visible to the client: it reads the weights of a linear model off one reply, and no claim is made "
    f"for those of a network with squares. It sees the outputs before any sigmoid. {_SERVER_SEES}"
)
_MLP = (
    "No claim is made for the weights: the noise of a reply depends on them, re-randomised or not. The client sees the "
    "sizes of the layers, the outputs before any sigmoid, and a power of two above each one's range. What it decrypts "
    f"carries noise that depends on its key: it is for the client alone, rounded before it is shown. {_SERVER_SEES}"
)
_TREES = (
    "No claim is made for the leaves: the noise of a reply depends on them, re-randomised or not. The client sees the "
    "number of features, the largest depth, the number of leaves up to the next power of two, the outputs before any "
    "sigmoid, and a power of two above each one's range; not the number of trees, nor their shapes, features and "
    "thresholds. Queries on both sides of a threshold find it, as under every technique. Thresholds are moved to edges "
    "of public intervals, so a row with a feature in between may be decided otherwise. What it decrypts carries noise "
    f"that depends on its key: it is for the client alone, rounded before it is shown. {_SERVER_SEES}"
)


def _guarantee(plan: Plan | None, *, protect_model: bool) -> Guarantee:
    """Return what holds for `plan`, or for every plan."""
    claims = {Claim("query", "server"), Claim("prediction", "server")}
    if isinstance(plan, LinearPlan):
        leaks = _PROTECTED if protect_model else _OPEN
        claims |= {Claim("weights", "client")} if protect_model else set()
    elif plan is not None:
        leaks = _TREES if isinstance(plan, TreesPlan) else _MLP
    else:
        leaks = f"Linear models: {_PROTECTED} Networks with squares: {_MLP}" if protect_model else _OPEN
        leaks += f" Trees: {_TREES}"
    return Guarantee(
        claims=frozenset(claims),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.CRYPTOGRAPHY,
        security_bits=SECURITY_BITS,
        post_quantum=True,
        verified_result=False,
        leaks=leaks,
        primary="BFV or CKKS (Microsoft SEAL)" if plan is None else _primary(plan),
        paper="BFV: Fan and Vercauteren, ePrint 2012/144; CKKS: ePrint 2016/421; parameters: HE Standard (2018)",
    )


def _primary(plan: Plan) -> str:
    parameters = plan.parameters
    return f"{parameters.scheme.upper()}, N={parameters.degree}, log q={parameters.total_bits} (Microsoft SEAL)"
