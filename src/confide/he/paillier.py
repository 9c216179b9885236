"""The backend "paillier": linear models by additive encryption, one ciphertext per feature.

The server computes, for each output, E(z) = Π E(x̂_i)^ŵ_i · E(b̂) by adding and scaling under the client's key. What the
client then decrypts is z and randomness:

    range    E(b̂ + 2^k R) with uniform R instead of E(b̂): the client keeps the lowest k bits, in which every z of the
             box fits. A client that leaves the box to read weights off a large z finds them under 2^k R: at most k
             bits, and 22 more where the library's range ends, per number.
    factors  ŵ_i + C, with C beyond every |ŵ_i|, and -C times the sum of the features instead of ŵ_i: no factor is 0,
             which the library refuses, and all take the same time.
    cipher   its randomness is hs^(Σ r_i (ŵ_i + C) + ...), of which the owner of the key knows the r_i; a fresh
             hs^(r + 2^s r') hides the sum within 2^-40.

    client -> server   paillier/query   key id, rows, ciphertexts
    server -> client   paillier/reply   one ciphertext and one power of two per output
"""

from __future__ import annotations

import math
from functools import cached_property

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ModelError, ProtocolError, UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.he.encode import LARGEST_EXPONENT, FixedPoint, Quantised, in_box, quantise
from confide.he.network import Network
from confide.he.paillier_keys import SecretKey, generate
from confide.he.plan import layer_problems, range_problems
from confide.he.pypaillier import PublicKey, library
from confide.he.setup import Owned, Registered, owned, setup_client, setup_server
from confide.ideal import Backend, Kit, Matrix
from confide.model.graph import Graph, Problem, sigmoid
from confide.wire import Message, Party, Step, Store, decode, encode

#: Bits of the modulus for 128 bits of security (NIST SP 800-57 part 1, table 2).
KEY_BITS = 3072

#: How well randomness hides what it is added to.
STATISTICAL_BITS = 40

#: Version of kits and messages.
FORMAT = 1

_INPUT_BITS = _WEIGHT_BITS = 32
_MAX_BYTES = 1 << 28
_LARGEST = 1 << 14


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both sides know: the client's kit, the same for every model of a shape.

    Args:
        format: version.
        features, outputs: columns of x and y.
        fixed: precision of inputs and weights.
        sigmoid: whether the client applies a sigmoid to what it decrypts.
        key_bits: length of the modulus.
    """

    format: int = FORMAT
    features: int
    outputs: int
    fixed: FixedPoint
    sigmoid: bool
    key_bits: int

    @property
    def result_bits(self) -> int:
        """Return k: every result of the box lies in [-2^(k-1), 2^(k-1))."""
        return (((1 << self.fixed.weight_bits) + self.features) << self.fixed.input_bits).bit_length() + 1

    def checked(self, key_bits: int) -> Plan:
        """Return self if it is a plan of ours for keys of this length. Raises ProtocolError if not."""
        if self.format != FORMAT or self.key_bits != key_bits:
            raise ProtocolError(f"Expected a client kit of format={FORMAT} for keys of {key_bits} bits")
        sizes_fit = 1 <= self.features <= _LARGEST and 1 <= self.outputs <= _LARGEST
        bits_fit = (self.fixed.input_bits, self.fixed.weight_bits) == (_INPUT_BITS, _WEIGHT_BITS)
        if not (sizes_fit and bits_fit and 0 < self.fixed.input_bound < math.inf):
            raise ProtocolError("Expected a client kit of a size and precision in use")
        return self


class _Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    modulus: bytes


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client sends: which key, how many rows, and the features, row by row, encrypted one by one."""

    key_id: str
    rows: int
    ciphertexts: tuple[bytes, ...]


class _Rows(msgspec.Struct, frozen=True):
    rows: int


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The results, row by row: y = z · 2^(e - 64), with z the lowest k bits of what is encrypted."""

    exponents: tuple[int, ...]
    ciphertexts: tuple[bytes, ...]


class ClientKit:
    """Public: the plan, and the client's own keys once they are parsed.

    Args:
        plan: checked.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._parsed: tuple[bytes, SecretKey, PublicKey] | None = None

    def encode(self) -> bytes:
        return encode(self.plan)

    @cached_property
    def encoded(self) -> bytes:
        """Return `encode()`, once."""
        return self.encode()

    def keys(self, kept: Owned) -> tuple[SecretKey, PublicKey]:
        """Return the keys in `kept`, parsed once."""
        if self._parsed is None or self._parsed[0] != kept.secret:
            secret = SecretKey.from_bytes(kept.secret)
            self._parsed = (kept.secret, secret, PublicKey(secret.modulus, self.plan.key_bits))
        return self._parsed[1:]


class ServerKit:
    """Private: the plan and the model as integers. It stays in the server's memory.

    Args:
        plan: of the model's shape.
        layer: the model.
    """

    def __init__(self, plan: Plan, layer: Quantised) -> None:
        self.plan = plan
        self.layer = layer
        self.keys = Registered("paillier", self.parse_keys)

    def __repr__(self) -> str:
        return f"ServerKit({self.plan.features} -> {self.plan.outputs})"

    def encode(self) -> bytes:
        raise UsageError("Expected a client kit; the server's holds the model and is not written")

    @property
    def error_bound(self) -> Matrix:
        """Return the largest error of each output for every input in the box, after any sigmoid, shape (outputs,)."""
        return self.layer.error / 4 if self.plan.sigmoid else self.layer.error

    def rows(self, query: bytes) -> int:
        """Return how many rows a query asks for, before any work on it. Raises ProtocolError if it does not say."""
        return decode(query, _Rows, max_bytes=_MAX_BYTES).rows

    def reply_bytes(self, rows: int) -> int:
        """Return a bound of the size of a reply to `rows` rows."""
        ciphertext = self.plan.key_bits // 4 + 8
        return (rows * ciphertext + 3) * self.plan.outputs + 256

    def parse_keys(self, body: bytes) -> PublicKey:
        """Return a client's public key. Raises ProtocolError on anything else."""
        return PublicKey(decode(body, _Keys, max_bytes=1 << 16).modulus, self.plan.key_bits)


class Paillier(Backend):
    """Linear predictions on inputs that are encrypted one by one, by Paillier's scheme.

    Args:
        input_bound: features lie in [-input_bound, input_bound]; the client refuses others.
        insecure_test_key_bits: a shorter modulus, for tests only: the guarantee then has fewer bits of security.

    **Guarantees**: the server sees ciphertexts under a key that it does not have; results are exact to 32 bits of
    inputs and weights; a reply holds the output and randomness that hides the rest within 2^-40.

    **Leaks**: `guarantee.leaks`.

    Paper: Paillier (EUROCRYPT 1999); short exponents after Damgård, Jurik and Nielsen (2010), section 4.2.
    """

    name = "paillier"

    def __init__(self, *, input_bound: float = 1.0, insecure_test_key_bits: int | None = None) -> None:
        library()
        if not 0 < input_bound < math.inf:
            raise UsageError(f"Expected input_bound={input_bound} above 0; take the largest absolute feature")
        if insecure_test_key_bits not in (None, 2048):
            raise UsageError(f"Expected insecure_test_key_bits={insecure_test_key_bits} to be 2048, or nothing")
        self._key_bits = insecure_test_key_bits or KEY_BITS
        self._input_bound = float(input_bound)
        self.guarantee = _guarantee(self._key_bits)

    def check(self, graph: Graph) -> list[Problem]:
        found = layer_problems(graph, squares=False)
        if max(graph.features, graph.outputs) > _LARGEST:
            found.append(Problem("the model", f"it is wider than {_LARGEST}", "reduce its inputs or outputs"))
        return found or range_problems(graph, self._input_bound)

    def prepare(self, graph: Graph, rng: Randomness) -> dict[str, Kit]:
        found = self.check(graph)
        layer = None if found else Network.of(graph).linear
        if layer is None:
            raise ModelError("Expected a model that paillier can run:\n" + "\n".join(map(str, found)))
        fixed = FixedPoint(input_bound=self._input_bound, input_bits=_INPUT_BITS, weight_bits=_WEIGHT_BITS)
        plan = Plan(
            features=graph.features,
            outputs=graph.outputs,
            fixed=fixed,
            sigmoid=Network.of(graph).sigmoid,
            key_bits=self._key_bits,
        )
        return {"client": ClientKit(plan), "server": ServerKit(plan, quantise(layer, fixed))}

    def decode_kit(self, role: str, body: bytes) -> Kit:
        plan = decode(body, Plan, max_bytes=1 << 16)
        if role != "client":
            raise ProtocolError("Expected a client kit")
        return ClientKit(plan.checked(self._key_bits))

    def setup(self, role: str, kit: Kit, store: Store, rng: Randomness) -> Party:
        """Return the party that makes the key: seconds of work before its first message, so run it beside others."""
        if role == "server" and isinstance(kit, ServerKit):
            return setup_server(self.name, kit.parse_keys)
        client = _client(role, kit)

        def make() -> tuple[bytes, bytes]:
            secret = generate(client.plan.key_bits)
            return secret.to_bytes(), encode(_Keys(secret.modulus))

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
    plan = kit.plan
    integers = plan.fixed.inputs(in_box(x, plan.features, plan.fixed.input_bound))
    secret, public = kit.keys(kept)
    query = Query(kept.key_id, len(x), tuple(public.encrypt(integers.ravel().tolist())))
    received = yield Step(
        send=(Message("client", "server", "paillier/query", encode(query)),),
        await_tag="paillier/reply",
        wait_for=("server",),
    )
    reply = decode(received["server"].body, Reply, max_bytes=_MAX_BYTES)
    exponents = reply.exponents
    if len(exponents) != plan.outputs or any(abs(value) > LARGEST_EXPONENT for value in exponents):
        raise ProtocolError("Expected one power of two for each output")
    if len(reply.ciphertexts) != len(x) * plan.outputs:
        raise ProtocolError("Expected one ciphertext for each row and output")
    public.check(reply.ciphertexts)
    half = 1 << (plan.result_bits - 1)
    values = [(value + half) % (2 * half) - half for value in secret.decrypt(public, list(reply.ciphertexts))]
    z = np.array(values, np.float64).reshape(len(x), plan.outputs)
    y = plan.fixed.outputs(z, np.array(exponents, np.int64))
    return sigmoid(y) if plan.sigmoid else y


def _serve(kit: ServerKit, store: Store, rng: Randomness) -> Party:
    received = yield Step(await_tag="paillier/query", wait_for=("client",))
    query = decode(received["client"].body, Query, max_bytes=_MAX_BYTES)
    public = kit.keys.get(query.key_id, store)
    assert isinstance(public, PublicKey)
    features = kit.plan.features
    if query.rows < 1 or len(query.ciphertexts) != query.rows * features:
        raise ProtocolError("Expected one ciphertext for each row and feature")
    public.check(query.ciphertexts)
    rows = [query.ciphertexts[place : place + features] for place in range(0, len(query.ciphertexts), features)]
    results = tuple(result for row in rows for result in _results(kit, public, row, rng))
    reply = Reply(tuple(kit.layer.exponents.tolist()), results)
    yield Step(send=(Message("server", "client", "paillier/reply", encode(reply)),))
    return query.rows


def _results(kit: ServerKit, public: PublicKey, row: tuple[bytes, ...], rng: Randomness) -> list[bytes]:
    """Return the encrypted results of one row of encrypted features."""
    offset = (1 << kit.plan.fixed.weight_bits) + 1
    bits = kit.plan.fixed.weight_bits + 2
    terms = [*row, public.add(row)]
    blinding_bits = public.plaintext_bits - kit.plan.result_bits - 1
    spread = bits + (2 * len(terms)).bit_length() + STATISTICAL_BITS
    results: list[bytes] = []
    for weights, bias in zip(kit.layer.weights.tolist(), kit.layer.biases, strict=True):
        products = public.scale(terms, [*(weight + offset for weight in weights), -offset], bits=bits)
        blinded = bias + (rng.below(1 << blinding_bits) << kit.plan.result_bits)
        fresh, zero = public.encrypt([blinded, 0])
        results.append(public.add([*products, fresh, *public.scale_public([zero], 1 << spread)]))
    return results


def _guarantee(key_bits: int) -> Guarantee:
    """Return what holds for keys of this length."""
    test = "" if key_bits == KEY_BITS else f" The key of {key_bits} bits is for tests."
    return Guarantee(
        claims=frozenset({Claim("query", "server"), Claim("prediction", "server"), Claim("weights", "client")}),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.CRYPTOGRAPHY,
        security_bits=128 if key_bits >= KEY_BITS else 112,
        post_quantum=False,
        verified_result=False,
        leaks=(
            "The client sees the outputs before any sigmoid, and a power of two above each one's range; features + 1 "
            f"queries determine the model. Replies are otherwise within 2^-{STATISTICAL_BITS} per number of ones that "
            "depend on the outputs alone. A client that deviates from the protocol learns about the weights: from "
            "forged ciphertexts which of them are odd, with a forged key all of them. The server sees who asks, when, "
            "and how many rows." + test
        ),
        primary=f"Paillier, n={key_bits} bits",
        paper="Paillier, EUROCRYPT 1999; Damgård, Jurik, Nielsen 2010, section 4.2",
    )
