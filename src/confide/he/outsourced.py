"""The backend "he-outsourced": a model's owner has a cloud compute, and the cloud sees neither inputs nor weights.

The owner is the client: it holds the key, the model and the rows. The server holds the public plan, and encryptions.
It executes the plan of `engine_seal` with products of ciphertexts where that multiplies by plaintexts.

    client -> server   he-outsourced/keys    public keys, and every diagonal and bias of the model, encrypted: once
    server -> client   he-outsourced/key-id  their hash
    client -> server   he-outsourced/query   an envelope (`envelope`) with one ciphertext for each row, packed
    server -> client   he-outsourced/reply   an envelope with one ciphertext for each row, packed
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from confide.crypto.random import Randomness
from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.he.enrolment import (
    LIFETIME_SECONDS,
    LONGEST_SECONDS,
    Mine,
    current,
    make,
    mine,
    record,
)
from confide.he.envelope import NONCE_BYTES, SealedQuery, SealedReply
from confide.he.message_bytes import reply_bytes
from confide.he.network import Network
from confide.he.normalise import Ready, normalise, samples
from confide.he.outsourced_kits import FORMAT, MAX_QUERY_BYTES, NAME, CloudKit, Model, OwnerKit, PublicKit, Rows, Upload
from confide.he.parameters import SECURITY_BITS
from confide.he.plan import Settings, problems, size_problem
from confide.he.plan_network import NetworkPlan
from confide.he.planner import ROOMS_BITS, plan_network
from confide.he.setup import MAX_KEYS_BYTES, Owned, owned, setup_client, setup_server
from confide.he.stages import Mapped, Multiplied
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Linear, Problem, Sigmoid, Square
from confide.wire import Message, Party, Step, Store, decode, encode

_MAX_KIT_BYTES = 1 << 16


class Outsourced(Backend):
    """Predictions at a cloud that sees neither the model nor the inputs, by Microsoft SEAL.

    The owner of the model is the client, who asks; the server computes with encrypted weights. `prepare` runs at the
    owner, and what travels is the server's kit.

    Args:
        input_bound: features lie in [-input_bound, input_bound]; the client refuses others.
        precision_bits: outputs may be off by 2^-precision_bits of their range over that box.
        key_lifetime_seconds: how long keys and encrypted weights are good; after that the owner uploads new ones.
        clock: seconds since 1970.

    **Guarantees**: the server sees ciphertexts under a key that it does not have, of sizes that the model's shape
    determines, at 128 bits of security; results on the box are exact to the stated error bound.

    **Leaks**: the sizes of the layers, the input box, whether a sigmoid follows, when and how many rows are asked.

    Paper: CKKS, ePrint 2016/421; encrypted diagonals as in Halevi and Shoup, ePrint 2014/106.
    """

    name = NAME
    public_role = "server"

    def __init__(
        self,
        *,
        input_bound: float = 1.0,
        precision_bits: int = 10,
        key_lifetime_seconds: int = LIFETIME_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < input_bound < math.inf:
            raise UsageError(f"Expected input_bound={input_bound} above 0; take the largest absolute feature")
        if not 1 <= precision_bits <= 40:
            raise UsageError(f"Expected precision_bits={precision_bits} from 1 to 40; 10 suits most models")
        if not 0 < key_lifetime_seconds <= LONGEST_SECONDS:
            raise UsageError(f"Expected key_lifetime_seconds={key_lifetime_seconds} from 1 to {LONGEST_SECONDS}")
        self._settings = Settings(
            protect_model=False, input_bound=float(input_bound), precision_bits=precision_bits, scheme="ckks"
        )
        self._lifetime_seconds = key_lifetime_seconds
        self._clock = clock
        self._latest: tuple[Graph, tuple[NetworkPlan, Ready]] | None = None
        self.guarantee = _GUARANTEE

    def plan(self, graph: Graph) -> NetworkPlan:
        """Return the public plan of a model: its shape's alone. Raises ModelError with problems."""
        return self._prepared(graph)[0]

    def check(self, graph: Graph) -> list[Problem]:
        made = self._tried(graph)
        return made if isinstance(made, list) else []

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        plan, ready = self._prepared(graph)
        return {"client": OwnerKit(plan, ready), "server": CloudKit(plan)}

    def decode_kit(self, role: str, body: bytes) -> Kit:
        public = decode(body, PublicKit, max_bytes=_MAX_KIT_BYTES)
        if role != "server" or public.format != FORMAT:
            raise ProtocolError(f"Expected a server kit of format={FORMAT}")
        return CloudKit(_checked(public.plan))  # SEAL takes the parameters, or this raises ProtocolError

    def _prepared(self, graph: Graph) -> tuple[NetworkPlan, Ready]:
        made = self._tried(graph)
        if isinstance(made, list):
            raise ModelError(f"Expected a model that {NAME} can run:\n" + "\n".join(map(str, made)))
        return made

    def _tried(self, graph: Graph) -> tuple[NetworkPlan, Ready] | list[Problem]:
        """Return a model's plan and scaled weights, or its problems; the latest's are kept."""
        if self._latest is not None and self._latest[0] is graph:
            return self._latest[1]
        found = problems(graph, self._settings) or _beyond(graph)
        if found:
            return found
        made = _made(Network.of(graph), self._settings)
        if made is None:
            return [size_problem(graph, self._settings)]
        self._latest = graph, made
        return made

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        now = self._clock()
        if role == "server" and isinstance(kit, CloudKit):

            def known(body: bytes) -> bytes:
                upload = decode(body, Upload, max_bytes=MAX_KEYS_BYTES)
                return record(upload.enrolment, kit=kit.public, now=now)

            return setup_server(NAME, kit.parse_keys, record=known)
        owner = _owner(role, kit)
        context, needs = owner.engine.context, owner.plan.needs

        def fresh() -> tuple[bytes, bytes]:
            seconds = self._lifetime_seconds
            kept, body = make(context, needs, kit=owner.public, now=now, lifetime_seconds=seconds, rng=rng)
            secret = mine(Owned("", kept), context, kit=owner.public).secret
            return kept, encode(Upload(body, owner.encrypted(secret)))

        return setup_client(NAME, owner.place, fresh, store, current=lambda kept: current(kept, now))

    def predict(self, role: str, kit: Kit, x: Matrix | None, store: Store, rng: Randomness) -> Party:
        now = self._clock()
        if role == "server" and isinstance(kit, CloudKit):
            return _serve(kit, store, rng, now)
        owner = _owner(role, kit)
        if x is None:
            raise UsageError("Expected x at the client")
        return _ask(owner, x, owner.keys(owned(NAME, owner.place, store)).checked(now), rng)

    def publish(self, kit: Kit, x: Matrix, store: Store, rng: Randomness) -> Party:
        """Refuse: results carry noise that depends on the key, and nothing here hides it. Raises UsageError."""
        raise UsageError(f"Expected predict; results of {NAME} are for the owner, rounded before others see them")


def _owner(role: str, kit: Kit) -> OwnerKit:
    if role != "client" or not isinstance(kit, OwnerKit):
        raise UsageError(f"Expected role={role!r} with the kit that prepare made for it")
    return kit


# --- plans ------------------------------------------------------------------------------------------------------------


def _made(net: Network, settings: Settings) -> tuple[NetworkPlan, Ready] | None:
    """Return the plan of a shape, and the weights scaled for it; None if no parameters carry it.

    Room is kept for what weights of one size can reach, or as much as the shape's parameters allow. Weights that
    reach more are scaled down, at the cost of precision (the error bound says how much), so that the plan says nothing
    of them; it does not say either whether it is certified, though it always is.
    """
    for room_bits in (ROOMS_BITS[-1], ROOMS_BITS[0]):
        plan = plan_network(
            net,
            protected=False,
            input_bound=settings.input_bound,
            precision_bits=settings.precision_bits,
            room_bits=room_bits,
            encrypted=True,
        )
        if plan is not None:
            ready = normalise(net, plan.rooms, plan.input_bound, samples(net.entry, plan.input_bound))
            return (plan, ready) if ready.certified else None
    return None


def _beyond(graph: Graph) -> list[Problem]:
    """Return what encrypted weights are not offered for."""
    layers = graph.layers[:-1] if isinstance(graph.layers[-1], Sigmoid) else graph.layers
    found = [
        Problem(f"layer {number} ({type(layer).__name__})", "its weights are not sent encrypted", "use Linear, Square")
        for number, layer in enumerate(layers)
        if not isinstance(layer, Linear | Square)
    ]
    if not found and isinstance(list(layers)[-1], Square):
        name = f"layer {len(layers) - 1} (Square)"
        found.append(Problem(name, "encrypted outputs are those of a linear map", "end with Linear"))
    return found


def _checked(plan: NetworkPlan) -> NetworkPlan:
    """Return a stranger's plan if it is one of ours. Raises ProtocolError if not."""
    kinds = all(isinstance(stage, Mapped | Multiplied) for stage in plan.stages)
    if not kinds or plan.protected or plan.certified:
        raise ProtocolError("Expected a plan with encrypted weights")
    plan = plan.checked(encrypted=True)
    plan.parameters.check_switching()
    return plan


# --- parties ----------------------------------------------------------------------------------------------------------


def _ask(kit: OwnerKit, x: Matrix, keys: Mine, rng: Randomness) -> Party:
    body = encode(Rows(kit.engine.encrypt(keys.secret, x)))
    query = keys.channel.query(keys.key_id, len(x), body, rng.bytes(NONCE_BYTES))
    received = yield Step(
        send=(Message("client", "server", f"{NAME}/query", encode(query)),),
        await_tag=f"{NAME}/reply",
        wait_for=("server",),
    )
    sealed = decode(received["server"].body, SealedReply, max_bytes=reply_bytes(kit.plan, len(x)))
    reply = decode(keys.channel.answer(query, sealed), Rows, max_bytes=MAX_QUERY_BYTES)
    if len(reply.ciphertexts) != len(x):
        raise ProtocolError("Expected as many ciphertexts as rows")
    return kit.decrypted(keys.secret, reply.ciphertexts)


def _serve(kit: CloudKit, store: Store, rng: Randomness, now: float) -> Party:
    received = yield Step(await_tag=f"{NAME}/query", wait_for=("client",))
    query = decode(received["client"].body, SealedQuery, max_bytes=MAX_QUERY_BYTES)
    line = kit.channels.get(query.key_id, store, now=now)
    asked = decode(line.opened(query), Rows, max_bytes=MAX_QUERY_BYTES)  # no work before this holds
    if len(asked.ciphertexts) != query.rows:
        raise ProtocolError("Expected as many ciphertexts as rows")
    model = kit.keys.get(query.key_id, store, here=True)
    assert isinstance(model, Model)
    reply = line.reply(query, encode(Rows(kit.answer(model, asked.ciphertexts, rng))))
    yield Step(send=(Message("server", "client", f"{NAME}/reply", encode(reply)),))
    return query.rows


_GUARANTEE = Guarantee(
    claims=frozenset({Claim("query", "server"), Claim("prediction", "server"), Claim("weights", "server")}),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=SECURITY_BITS,
    post_quantum=True,
    verified_result=False,
    leaks=(
        "The server sees the sizes of the layers, the input box, whether a sigmoid follows, who asks, when, and how "
        "many rows. It is taken to follow the protocol (honest but curious): the result is not verified. The client "
        "owns the model. What it decrypts carries noise that depends on its key: it is the owner's alone, rounded "
        "before others see it."
    ),
    primary="CKKS (Microsoft SEAL)",
    paper="CKKS: ePrint 2016/421; diagonals: ePrint 2014/106; parameters: HE Standard (2018)",
)
