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
from typing import Literal

from confide.crypto.random import Randomness
from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import Guarantee
from confide.he.engine_native import MOST_THREADS, Engine, executor
from confide.he.enrolment import (
    LIFETIME_SECONDS,
    LONGEST_SECONDS,
    Mine,
    current,
    make,
    record,
)
from confide.he.envelope import NONCE_BYTES, SealedQuery, SealedReply
from confide.he.guarantees import guarantee
from confide.he.kits import ClientKit, ServerKit, client_kit
from confide.he.machines import Keys
from confide.he.message_bytes import MOST_QUERY_BYTES, reply_bytes
from confide.he.network import MOST_DEGREE, Network
from confide.he.normalise import Ready
from confide.he.plan import Plan, Settings, batch_problems, plan_of, problems, size_problem
from confide.he.plan_linear import LinearPlan
from confide.he.plan_network import NetworkPlan
from confide.he.plan_trees import MOST_BINS
from confide.he.publish import Decrypted, Publications, check_reserved, may_publish, reserve
from confide.he.replies import Query, answer, read
from confide.he.setup import Owned, owned, setup_client, setup_server
from confide.ideal import Backend, Kit, Matrix
from confide.model.fitted import approximated
from confide.model.graph import Graph, Problem
from confide.model.trees import Trees
from confide.wire import Message, Party, Step, Store, decode, encode

_PUBLICATIONS = Publications()


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
            raise ModelError('Expected a model that the backend "he" can run:\n' + "\n".join(map(str, made)))
        return made

    def _tried(self, graph: Graph) -> tuple[Plan, Ready | None] | list[Problem]:
        """Return a model's plan and scaled weights, or its problems; the latest's are kept: planning takes long."""
        if self._latest is not None and self._latest[0] is graph:
            return self._latest[1]
        arithmetic = self.arithmetic(graph)
        found = problems(arithmetic, self._settings)
        try:
            made = None if found else plan_of(arithmetic, self._settings)
        except ModelError as error:  # outputs that all samples show to be too large, and a few do not
            return [Problem("the model", str(error), "scale its weights down")]
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
        if role != "client":
            raise ProtocolError("Expected the client's kit: the server's is never sent")
        return client_kit(body)

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
    return release(read(kit.engine, keys.secret, keys.channel.answer(query, sealed), len(x)))


def _serve(kit: ServerKit, store: Store, rng: Randomness, now: float) -> Party:
    received = yield Step(await_tag="he/query", wait_for=("client",))
    query = decode(received["client"].body, SealedQuery, max_bytes=MOST_QUERY_BYTES)
    line = kit.channels.get(query.key_id, store, now=now)
    body = decode(line.opened(query), Query, max_bytes=MOST_QUERY_BYTES)  # no work before this holds
    keys = kit.keys.get(query.key_id, store, here=True)
    assert isinstance(keys, Keys)
    reply = line.reply(query, encode(answer(kit, keys, body, query.rows, rng)))
    yield Step(send=(Message("server", "client", "he/reply", encode(reply)),))
    return query.rows
