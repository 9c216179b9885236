"""Questions and replies under "he" inside their envelopes: what a server answers, and how a client reads it."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.he.encode import LARGEST_EXPONENT, Integers
from confide.he.kits import CkksClient, CkksServer, ServerKit
from confide.he.linear import LinearClient, LinearServer
from confide.he.machines import Keys
from confide.he.message_bytes import MOST_QUERY_BYTES
from confide.he.packed import pack, unpack
from confide.he.publish import Decrypted
from confide.he.seal import Evaluation, SecretKey
from confide.he.seal_wire import SealReply, WireForm, linear_reply, network_reply, packed_query
from confide.ideal import Matrix
from confide.model.graph import sigmoid
from confide.wire import decode

_MOST_CIPHERTEXTS = 1 << 16


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks, inside a `SealedQuery`: encryptions of its rows, packed or as SEAL writes them."""

    ciphertexts: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=_MOST_CIPHERTEXTS)]
    form: WireForm = "packed"


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


def answer(kit: ServerKit, keys: Keys, query: Query, rows: int, rng: Randomness) -> msgspec.Struct:
    """Return the server's reply to one question.

    Args:
        kit: the server's.
        keys: the client's, parsed by `kit`.
        query: a stranger's, whose tag was checked.
        rows: how many it says it holds.
        rng: for what makes replies fresh.

    Raises:
        ProtocolError: a malformed question.
    """
    engine = kit.engine
    minor, ciphertexts = None, query.ciphertexts
    if query.form == "seal":
        minor, ciphertexts = packed_query(ciphertexts, engine.context, kit.plan, rows)
    exponents = engine.exponents.astype("<i2").tobytes()
    if isinstance(engine, LinearServer):
        assert isinstance(keys, Evaluation)
        primes = kit.plan.parameters.data_primes
        c0, c1 = engine.answer(keys, ciphertexts, rows, rng)
        if minor is not None:
            return SealReply(exponents, linear_reply(c0, c1, engine.context, engine.plan, minor))
        return LinearReply(exponents, pack(c0.reshape(len(primes), -1), primes), pack(c1, primes))
    if rows < 1 or len(ciphertexts) != engine.plan.queries(rows):
        raise ProtocolError("Expected as many ciphertexts as the rows take")
    answers = engine.answer(keys, ciphertexts, rng)
    if minor is not None:
        return SealReply(exponents, network_reply(answers, engine.context, engine.plan, minor))
    return NetworkReply(exponents, np.array([_error_bits(engine)], "<i2").tobytes(), answers)


def _error_bits(engine: CkksServer) -> int:
    """Return a power of two above every output's error in units of the last stage: by the model, not by a query."""
    largest = float(np.ldexp(engine.error, -engine.exponents).max())
    if not math.isfinite(largest):
        return 0  # nothing can be published from such a plan
    return max(-LARGEST_EXPONENT, min(0, math.ceil(math.log2(largest))))


def read(engine: LinearClient | CkksClient, secret: SecretKey, body: bytes, rows: int) -> Matrix | Decrypted:
    """Return the results in a reply, shape (rows, outputs); those of CKKS are the key owner's alone until published.

    Raises:
        ProtocolError: a malformed reply.
    """
    if isinstance(engine, LinearClient):
        return _read_linear(engine, secret, body, rows)
    return _read_network(engine, secret, body, rows)


def _read_linear(engine: LinearClient, secret: SecretKey, body: bytes, rows: int) -> Matrix:
    plan = engine.plan
    primes, degree = plan.parameters.data_primes, plan.parameters.degree
    reply = decode(body, LinearReply, max_bytes=MOST_QUERY_BYTES)
    exponents = _exponents(reply.exponents, plan.outputs)
    shape = plan.blocks.ciphertexts(rows), plan.blocks.products, len(primes), degree
    c0 = unpack(reply.c0, (len(primes), rows * plan.outputs), primes).reshape(len(primes), rows, plan.outputs)
    c1 = unpack(reply.c1, shape, primes)
    y = plan.fixed.outputs(engine.decrypt(secret, c0, c1, rows), exponents)
    return sigmoid(y) if plan.sigmoid else y


def _read_network(engine: CkksClient, secret: SecretKey, body: bytes, rows: int) -> Decrypted:
    plan = engine.plan
    reply = decode(body, NetworkReply, max_bytes=MOST_QUERY_BYTES)
    exponents = _exponents(reply.exponents, plan.outputs)
    if len(reply.ciphertexts) != plan.replies(rows):
        raise ProtocolError("Expected as many ciphertexts as the rows take")
    (error_bits,) = _exponents(reply.error_bits, 1).tolist()
    normal = engine.decrypt(secret, reply.ciphertexts)[:rows]
    error = max(2.0 ** min(error_bits, 0), min(plan.least_error, 1.0))  # a server's word alone removes no noise
    return Decrypted(normal, exponents, error, ends_in_sigmoid=plan.sigmoid)


def _exponents(body: bytes, count: int) -> Integers:
    """Return `count` powers of two. They take two bytes each, so that the size of a reply tells nothing of them."""
    if len(body) != 2 * count:
        raise ProtocolError("Expected one power of two for each output")
    values = np.frombuffer(body, "<i2").astype(np.int64)
    if (np.abs(values) > LARGEST_EXPONENT).any():
        raise ProtocolError(f"Expected powers of two up to 2^{LARGEST_EXPONENT}")
    return values
