"""Trees under CKKS: one row in one or a few ciphertexts, one reply.

The plan says what to compute and at which level and scale; this engine only encodes and executes. Which plaintext meets
which ciphertext, and when, depends on the plan alone. A label without a leaf counts for nothing, and rotations close
every sum, so slots hold the outputs, over and over; one of each leaves, whatever a stranger put in (`traces`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.he.arithmetic import Arithmetic, Encoder, Shape
from confide.he.encode import in_box
from confide.he.engine_native import Engine, machine
from confide.he.machines import Keys
from confide.he.plan_trees import TreesPlan
from confide.he.seal import CONJUGATION, Context, PublicKeys, SecretKey
from confide.he.trees import Leaves
from confide.he.trees_levels import Level, Steps, leaf_factor, reached

Matrix = NDArray[np.float64]

C = TypeVar("C")
P = TypeVar("P")


class TreesClient:
    """The client's half: public tables of one plan.

    Args:
        plan: a stranger's, checked.
    """

    def __init__(self, plan: TreesPlan) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self._reply = self.context.form(limbs=1, ntt=True, scale=plan.reply.scale)
        self._source = plan.source()

    def encrypt(self, secret: SecretKey, x: Matrix) -> tuple[bytes, ...]:
        """Return fresh encryptions of `x`, shape (rows, features): `plan.ciphertexts` a row.

        Raises:
            DataError: `x` is not in the box.
        """
        plan = self.plan
        digits = plan.bin_of(in_box(x, plan.features, plan.input_bound))
        return tuple(self._encrypt(secret, part) for row in digits for part in vectors(plan, row))

    def _encrypt(self, secret: SecretKey, vector: NDArray[np.complex128]) -> bytes:
        limbs = len(self.plan.parameters.data_primes)
        scale = 2.0**self.plan.input_scale_bits
        plain = self.context.encode(vector[self._source], limbs=limbs, scale=scale)
        return self.context.to_bytes(secret.encrypt(plain))

    def decrypt(self, secret: SecretKey, ciphertexts: Sequence[bytes]) -> Matrix:
        """Return the normalised results, shape (rows, outputs); they include noise, so they stay with the client.

        Raises:
            ProtocolError: a malformed reply.
        """
        plains = [secret.decrypt(self.context.load(body, self._reply)) for body in ciphertexts]
        decoded = [self.context.decode_traced(one, self._reply, self.plan.reply_period) for one in plains]
        return np.stack([slots[: self.plan.outputs] for slots in decoded])


def vectors(plan: TreesPlan, digits: NDArray[np.intp]) -> Iterator[NDArray[np.complex128]]:
    """Yield a row's vectors, each of shape (period,): 1 or i at the place of each feature's interval, 0 elsewhere.

    Args:
        plan: the layout.
        digits: the interval of each feature, shape (features,).
    """
    for first in range(0, plan.features, plan.features_each):
        own = digits[first : first + plan.features_each]
        vector = np.zeros(plan.period, np.complex128)
        vector[np.arange(len(own)) * plan.places + own % plan.places] = np.where(own < plan.places, 1.0, 1.0j)
        yield vector


class _Prepared(Steps[Level], Generic[P]):
    """What is added and multiplied with on the way, each encoded at the level where that happens; made by a dry run.

    Args:
        plan: of the model's shape.
        encoder: makes the plaintexts.
        leaves: leaf values in every slot, shape (slots,).
    """

    def __init__(self, plan: TreesPlan, encoder: Encoder[P], leaves: Matrix) -> None:
        self.chain, self._encoder = plan.chain, encoder
        self.constants: dict[tuple[float, int, float], P] = {}
        self.values: list[P] = []
        self._leaves = leaves
        self.minus(plan.broken, 1.0)
        reached(self, self.chain.settled(plan.broken), plan.depth)

    def square(self, value: Level) -> Level:
        return self.chain.square(value)

    def product(self, one: Level, other: Level) -> Level:
        return self.chain.product(one, other)

    def minus(self, value: Level, constant: float) -> Level:
        slots = np.full(len(self._leaves), -constant)
        plain = self._encoder.encode(slots, limbs=value.limbs, scale=value.scale)
        self.constants[constant, value.limbs, value.scale] = plain
        return self.chain.minus(value, constant)

    def times_leaves(self, value: Level) -> Level:
        self.values.append(self._encoder.weight(self._leaves, limbs=value.limbs, scale=self.chain.leaf_scale))
        return self.chain.times_leaves(value)

    def level(self, value: Level) -> Level:
        return value


@dataclass(frozen=True, slots=True)
class _Tracked(Generic[C]):
    """A ciphertext and what is known of it."""

    cipher: C
    level: Level


class _Execution(Steps[_Tracked[C]], Generic[C, P]):
    """The same steps on ciphertexts.

    Args:
        prepared: what they meet.
        arithmetic: does the work.
    """

    def __init__(self, prepared: _Prepared[P], arithmetic: Arithmetic[C, P]) -> None:
        self._prepared, self._arithmetic = prepared, arithmetic
        self._chain = prepared.chain

    def square(self, value: _Tracked[C]) -> _Tracked[C]:
        return self.product(value, value)

    def product(self, one: _Tracked[C], other: _Tracked[C]) -> _Tracked[C]:
        limbs = min(one.level.limbs, other.level.limbs)
        cipher = self._arithmetic.times(*(self._lowered(value, limbs) for value in (one, other)))
        return self.brought(cipher, limbs, self._chain.product(one.level, other.level))

    def minus(self, value: _Tracked[C], constant: float) -> _Tracked[C]:
        level = value.level
        plain = self._prepared.constants[constant, level.limbs, level.scale]
        return _Tracked(self._arithmetic.plus_plain(value.cipher, plain), self._chain.minus(level, constant))

    def times_leaves(self, value: _Tracked[C]) -> _Tracked[C]:
        cipher = self._arithmetic.inner([value.cipher], self._prepared.values[:1])
        return self.brought(cipher, value.level.limbs, self._chain.times_leaves(value.level))

    def level(self, value: _Tracked[C]) -> Level:
        return value.level

    def finished(self, value: _Tracked[C]) -> C:
        """Return the ciphertext at one prime."""
        divided = self._chain.divided(value.level)
        return self._lowered(self.brought(value.cipher, value.level.limbs, divided), 1)

    def brought(self, cipher: C, limbs: int, level: Level) -> _Tracked[C]:
        """Return a ciphertext with `limbs` primes after the divisions that lead to `level`."""
        self._arithmetic.divide(cipher, limbs - level.limbs, scale=level.scale)
        return _Tracked(cipher, level)

    def _lowered(self, value: _Tracked[C], limbs: int) -> C:
        return self._arithmetic.switch(value.cipher, limbs=limbs)


class TreesServer:
    """The server's half: the leaves as diagonals.

    Args:
        plan: of the model's shape.
        leaves: the model's.
        engine: what executes it.
        threads: that one answer may take.
    """

    def __init__(self, plan: TreesPlan, leaves: Leaves, engine: Engine = "auto", threads: int = 1) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self.exponents = leaves.exponents
        self.machine = machine(self.context, _Computation(plan, leaves), engine, threads)
        self.error = np.ldexp(self._error(leaves), leaves.exponents)

    def keys(self, public: PublicKeys) -> Keys:
        """Return a client's public keys, checked. Raises ProtocolError on any others than the plan's."""
        return self.machine.keys(public, self.plan.needs)

    def answer(self, keys: Keys, ciphertexts: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        """Return one reply per row.

        Args:
            keys: the client's.
            ciphertexts: a stranger's, `plan.ciphertexts` for each row.
            rng: for the flooding of protected replies.

        Raises:
            ProtocolError: a malformed query.
        """
        each = self.plan.ciphertexts
        if not ciphertexts or len(ciphertexts) % each:
            raise ProtocolError("Expected as many ciphertexts as the rows take")
        rows = [ciphertexts[first : first + each] for first in range(0, len(ciphertexts), each)]
        return tuple(reply for row in rows for reply in self.machine.answer(keys, row, rng))

    def _error(self, leaves: Leaves) -> Matrix:
        """Return the largest error of each normalised output, with what the encoding made of the leaf values."""
        plan = self.plan
        plain = self.context.encode(leaf_slots(plan, leaves), limbs=1, scale=plan.chain.leaf_scale)
        shifted = np.abs(self.context.decode(plain) - spread(leaves.values, plan.slots))
        shifted = shifted.reshape(-1, plan.leaves).max(axis=0)
        errors = np.empty(plan.outputs)
        for output in range(plan.outputs):
            own = slice(output, None, plan.outputs_padded)
            trees, shift = leaves.trees[own], shifted[own]
            largest = [shift[trees == tree].max() for tree in np.unique(trees[trees >= 0])]
            squares = float(((np.abs(leaves.values[own]) + shift) ** 2).sum())
            encoding = float(sum(largest)) / abs(leaf_factor(plan.depth))
            errors[output] = plan.error_bound(squares, encoding) + plan.flooding
        return errors


@dataclass(frozen=True, slots=True)
class _Encoded(Generic[P]):
    """Diagonals by giant step, (place of the baby, weight); what the steps meet; what is added at the end."""

    giants: list[list[tuple[int, P]]]
    prepared: _Prepared[P]
    offsets: P

    def __repr__(self) -> str:
        return "_Encoded()"


class _Computation:
    """One row, with the leaves.

    Args:
        plan: of the model's shape.
        leaves: the model's.
    """

    def __init__(self, plan: TreesPlan, leaves: Leaves) -> None:
        self._plan, self._leaves = plan, leaves
        self._limbs = len(plan.parameters.data_primes)

    @property
    def question(self) -> Shape:
        return Shape(self._plan.ciphertexts, self._limbs, 2.0**self._plan.input_scale_bits)

    @property
    def reply(self) -> Shape:
        return Shape(1, 1, self._plan.reply.scale, self._plan.reply_period)

    @property
    def flooding(self) -> float | None:
        return self._plan.flooding if self._plan.protected else None

    def encoded(self, encoder: Encoder[P]) -> _Encoded[P]:
        plan = self._plan
        offsets = np.zeros(plan.outputs_padded)
        offsets[: plan.outputs] = self._leaves.offsets
        return _Encoded(
            self._diagonals(encoder),
            _Prepared(plan, encoder, leaf_slots(plan, self._leaves)),
            encoder.encode(spread(offsets, plan.slots), limbs=1, scale=plan.reply.scale),
        )

    def _diagonals(self, encoder: Encoder[P]) -> list[list[tuple[int, P]]]:
        plan = self._plan
        return [
            [
                (part * plan.babies + baby, self._diagonal(encoder, giant, part, baby))
                for part in range(plan.ciphertexts)
                for baby in range(plan.babies)
            ]
            for giant in range(plan.giants)
        ]

    def _diagonal(self, encoder: Encoder[P], giant: int, part: int, baby: int) -> P:
        # What meets the input rotated by `baby` now, and is rotated by giant * babies afterwards.
        plan, leaves = self._plan, self._leaves
        slots, source = np.arange(plan.slots), plan.source()
        half, span = (plan.depth + 1) / 2, plan.features_each * plan.places
        label = (slots - giant * plan.babies) % plan.leaves
        place = source[(slots + baby) % plan.slots]
        feature = part * plan.features_each + place // plan.places
        inside = (place < span) & (feature < plan.features)
        feature, first = np.where(inside, feature, 0), place % plan.places
        low, high = leaves.broken[label, feature, first], leaves.broken[label, feature, first + plan.places]
        values = np.where(inside, low - 1j * high, 0.0).astype(np.complex128) / (2 * half)
        return encoder.weight(values, limbs=self._limbs, scale=plan.weight_scale)

    def run(self, arithmetic: Arithmetic[C, P], encoded: Any, ciphers: Sequence[C]) -> list[C]:
        plan = self._plan
        babies = [(-1 - part, baby) for part in range(plan.ciphertexts) for baby in range(plan.babies)]
        total = arithmetic.transform(ciphers, babies, encoded.giants, plan.babies)
        arithmetic.fold(total, [[step] for step in (*plan.sums, CONJUGATION)])  # twice the real part
        arithmetic.divide(total, 1, scale=plan.broken.scale)
        steps = _Execution(encoded.prepared, arithmetic)
        conditions = steps.minus(_Tracked(total, plan.broken), 1.0)
        settled = steps.brought(conditions.cipher, plan.broken.limbs, plan.chain.settled(plan.broken))
        reply = steps.finished(reached(steps, settled, plan.depth))
        arithmetic.fold(reply, [[step] for step in plan.leaf_sums])
        return [arithmetic.plus_plain(reply, encoded.offsets)]


def leaf_slots(plan: TreesPlan, leaves: Leaves) -> Matrix:
    """Return the leaf values in every slot, shape (slots,); leaves that are all about 0 get one below rounding."""
    least = 1 / plan.chain.leaf_scale  # SEAL refuses products with zero
    shown = leaves.values if (np.abs(leaves.values) >= least).any() else np.full(1, least)
    return spread(shown, plan.slots)


def spread(values: Matrix, slots: int) -> Matrix:
    """Return `values` over and over, shape (slots,)."""
    return np.resize(values, slots)
