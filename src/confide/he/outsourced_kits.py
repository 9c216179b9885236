"""The kits of "he-outsourced": the owner's, with the model, and the cloud's, which checks encrypted weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec
import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.he import diagonals
from confide.he.arithmetic import SealEncrypted
from confide.he.engine_seal import EncodedMap, NetworkClient, run
from confide.he.engine_steps import Steps
from confide.he.enrolment import (
    Channels,
    Mine,
    mine,
    public_keys,
)
from confide.he.error_bound import error_bound
from confide.he.machines import leave
from confide.he.message_bytes import keys_bytes, query_bytes, reply_bytes
from confide.he.normalise import Ready
from confide.he.packed import ciphertext_bytes
from confide.he.plan_network import NetworkPlan
from confide.he.publish import Decrypted
from confide.he.seal import Ciphertext, Context, Evaluation, Plaintext, SecretKey, refusing_transparent
from confide.he.seal_format import Form
from confide.he.setup import MAX_KEYS_BYTES, Owned, Registered
from confide.he.shapes import LinearMap
from confide.he.stages import Mapped
from confide.ideal import Matrix
from confide.wire import decode, encode

NAME = "he-outsourced"

#: Version of kits and messages.
FORMAT = 1

#: Largest question or reply that is read.
MAX_QUERY_BYTES = 1 << 28
_MOST_CIPHERTEXTS = 1 << 16
_HEAD_BYTES = 16

_Bodies = Annotated[tuple[bytes, ...], msgspec.Meta(max_length=_MOST_CIPHERTEXTS)]


class PublicKit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server's kit on the wire."""

    format: int
    plan: NetworkPlan


class Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the owner sends once.

    Args:
        enrolment: `enrolment.Enrolment`: public keys, dates, the key for envelopes.
        weights: of each map, its diagonals in the order of `diagonals`, then its bias: ciphertexts, packed.
    """

    enrolment: bytes
    weights: tuple[_Bodies, ...]

    def __repr__(self) -> str:
        return "Upload()"


class Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ciphertext for each row, packed: of a question, or of its reply."""

    ciphertexts: _Bodies


class _Asked(msgspec.Struct, frozen=True):
    """The one field of a question that tells what it costs; the rest is skipped, not copied."""

    rows: int


class OwnerKit:
    """Private: the client's, with the model. It stays in the owner's memory.

    Args:
        plan: of the model's shape.
        ready: the model, scaled for the plan.
    """

    def __init__(self, plan: NetworkPlan, ready: Ready) -> None:
        self.plan = plan
        self.public = encode(PublicKit(FORMAT, plan))
        self._ready = ready
        self._parsed: tuple[Owned, Mine] | None = None

    def __repr__(self) -> str:
        return f"OwnerKit({self.plan})"

    def encode(self) -> bytes:
        raise UsageError("Expected the server's kit; the owner's holds the model and is not written")

    @cached_property
    def engine(self) -> NetworkClient:
        """Return what encrypts rows and decrypts replies."""
        return NetworkClient(self.plan)

    @cached_property
    def place(self) -> bytes:
        """Return what keys in the owner's own store are kept for: this model, since its weights are uploaded with them.

        It is in no message.
        """
        found = hashlib.sha256(self.public)
        for part in self._ready.parts:
            if isinstance(part, LinearMap):
                found.update(part.weight.tobytes() + part.bias.tobytes())
        return found.digest()

    @cached_property
    def error_bound(self) -> Matrix:
        """Return the largest error of each output for every input in the box, shape (outputs,).

        For a model that ends in a sigmoid it is the error of the probability: a quarter of the logit's.
        """
        error = error_bound(self.plan, self._ready)
        return error / 4 if self.plan.sigmoid else error

    def keys(self, kept: Owned) -> Mine:
        """Return the keys in `kept`, parsed once."""
        if self._parsed is None or self._parsed[0] != kept:
            self._parsed = kept, mine(kept, self.engine.context, kit=self.public)
        return self._parsed[1]

    def encrypted(self, secret: SecretKey) -> tuple[tuple[bytes, ...], ...]:
        """Return the weights of `Upload`, encrypted at the levels at which they are multiplied and added."""
        context = self.engine.context

        def body(plain: Plaintext) -> bytes:
            return context.to_bytes(secret.encrypt(plain))

        found: list[tuple[bytes, ...]] = []
        for number, stage in enumerate(self.plan.stages):
            part = self._ready.parts[number]
            if not (isinstance(stage, Mapped) and isinstance(part, LinearMap)):
                continue
            limbs, scale = self.plan.registers[stage.source].limbs, 2.0**stage.weight_bits
            every = diagonals.diagonals(self.plan, number, part)
            weights = [body(context.encode(one.values, limbs=limbs, scale=scale)) for one in every]
            after, bias = self.plan.registers[number + 1], diagonals.bias(self.plan, number, part)
            found.append((*weights, body(context.encode(bias, limbs=after.limbs, scale=after.scale))))
        return tuple(found)

    def decrypted(self, secret: SecretKey, ciphertexts: tuple[bytes, ...]) -> Matrix:
        """Return the outputs, shape (rows, outputs), for the owner alone."""
        exponents = np.full(self.plan.outputs, self._ready.exponent, np.int64)
        normal = self.engine.decrypt(secret, ciphertexts)
        return Decrypted(normal, exponents, 1.0, ends_in_sigmoid=self.plan.sigmoid).private()


@dataclass(frozen=True, slots=True)
class _MapForm:
    """What an upload must hold for one map.

    Args:
        places: (giant, baby) of each diagonal.
        weight, bias: the form of a diagonal's ciphertext, and of the bias's.
    """

    places: list[tuple[int, int]]
    weight: Form
    bias: Form


class Model:
    """An owner's upload at the server, checked: keys, and the parts of the stages as ciphertexts.

    Args:
        keys: the owner's.
        parts: of each stage.
        weights_bytes: of the numbers in `parts`, in words of 64 bits.
    """

    def __init__(self, keys: Evaluation, parts: list[EncodedMap[Ciphertext] | None], weights_bytes: int) -> None:
        self.keys = keys
        self.parts = parts
        self.memory_bytes = keys.memory_bytes + weights_bytes


class CloudKit:
    """Public: the server's. The plan, and tables that are built from it.

    Args:
        plan: checked.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self.public = self.encode()
        self.keys = Registered(NAME, self.parse_keys)
        self.channels = Channels(NAME, self.public)
        self._query = self.context.form(limbs=len(plan.parameters.data_primes), ntt=True, scale=2.0**plan.scale_bits)

    def encode(self) -> bytes:
        return encode(PublicKit(FORMAT, self.plan))

    @property
    def block_rows(self) -> int:
        """Return the rows that a question carries at the cost of one."""
        return 1

    def rows(self, query: bytes) -> int:
        """Return how many rows a query asks for, before any work on it. Raises ProtocolError: it does not say."""
        return decode(query, _Asked, max_bytes=MAX_QUERY_BYTES).rows

    def query_bytes(self, rows: int) -> int:
        """Return a bound of the size of a query of `rows` rows."""
        return query_bytes(self.plan, rows)

    def reply_bytes(self, rows: int) -> int:
        """Return a bound of the size of a reply to `rows` rows."""
        return reply_bytes(self.plan, rows)

    @cached_property
    def weights_bytes(self) -> int:
        """Return the size of the encrypted weights as they are uploaded, apart from a few bytes for each."""
        return sum(
            len(one.places) * ciphertext_bytes(one.weight) + ciphertext_bytes(one.bias) for one in self._maps.values()
        )

    @property
    def keys_bytes(self) -> int:
        """Return a bound of the size of an owner's upload: public keys and encrypted weights."""
        heads = _HEAD_BYTES * sum(len(one.places) + 2 for one in self._maps.values())
        return keys_bytes(self.plan) + self.weights_bytes + heads

    @cached_property
    def _maps(self) -> dict[int, _MapForm]:
        """Return what the upload must hold for each map, by the number of its stage."""
        found: dict[int, _MapForm] = {}
        for number, stage in enumerate(self.plan.stages):
            if isinstance(stage, Mapped):
                limbs, after = self.plan.registers[stage.source].limbs, self.plan.registers[number + 1]
                weight = self.context.form(limbs=limbs, ntt=True, scale=2.0**stage.weight_bits)
                bias = self.context.form(limbs=after.limbs, ntt=True, scale=after.scale)
                found[number] = _MapForm(list(diagonals.places(self.plan, number, stage.shape)), weight, bias)
        return found

    def parse_keys(self, body: bytes) -> Model:
        """Return an owner's upload. Raises ProtocolError on anything but the keys and weights of this plan."""
        upload = decode(body, Upload, max_bytes=MAX_KEYS_BYTES)
        if [len(bodies) for bodies in upload.weights] != [len(one.places) + 1 for one in self._maps.values()]:
            raise ProtocolError("Expected as many encrypted weights as the plan implies")
        keys = public_keys(upload.enrolment, self.context, self.plan.needs)
        parts: list[EncodedMap[Ciphertext] | None] = [None] * len(self.plan.stages)
        for number, bodies in zip(self._maps, upload.weights, strict=True):
            parts[number] = self._parsed(number, bodies)
        words = sum(len(one.places) * one.weight.size_bytes + one.bias.size_bytes for one in self._maps.values())
        return Model(keys, parts, words)

    def _parsed(self, number: int, bodies: tuple[bytes, ...]) -> EncodedMap[Ciphertext]:
        stage, form = self.plan.stages[number], self._maps[number]
        assert isinstance(stage, Mapped)
        giants: list[list[tuple[int, Ciphertext]]] = [[] for _ in range(stage.layout.rotations.giant[0])]
        for (giant, baby), body in zip(form.places, bodies[:-1], strict=True):
            giants[giant].append((baby, self.context.load(body, form.weight)))
        return EncodedMap(giants, self.context.load(bodies[-1], form.bias))

    def answer(self, model: Model, ciphertexts: tuple[bytes, ...], rng: Randomness) -> tuple[bytes, ...]:
        """Return one reply for each row. Raises ProtocolError on a malformed question, or weights in the clear."""
        queries = [self.context.load(body, self._query) for body in ciphertexts]
        arithmetic, steps = SealEncrypted(self.context, model.keys), Steps(self.plan)
        with refusing_transparent():
            results = [run(self.plan, arithmetic, model.parts, query) for query in queries]
            return tuple(leave(self.context, model.keys, one, steps.reply, steps.flooding, rng) for one in results)
