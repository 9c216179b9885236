"""Trees under CKKS on Microsoft SEAL: one row in one or a few ciphertexts, one reply.

The plan says what to compute and at which level and scale; this engine only encodes and executes. Which plaintext meets
which ciphertext, and when, depends on the plan alone. A label without a leaf counts for nothing, and rotations close
every sum over all slots, so a reply holds the outputs, over and over, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.errors import ProtocolError
from confide.he.encode import in_box
from confide.he.engine_steps import uniform
from confide.he.plan_trees import TreesPlan
from confide.he.seal import Ciphertext, Context, Evaluation, Plaintext, SecretKey, refusing_transparent
from confide.he.trees import Leaves
from confide.he.trees_levels import Level, Steps, leaf_factor, reached

Matrix = NDArray[np.float64]


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
        ciphers = [self.context.load(body, self._reply) for body in ciphertexts]
        return np.stack([self.context.decode(secret.decrypt(cipher))[: self.plan.outputs] for cipher in ciphers])


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


class _Prepared(Steps[Level]):
    """What is added and multiplied with on the way, each encoded at the level where that happens; made by a dry run.

    Args:
        plan: of the model's shape.
        context: of its parameters.
        values: leaf values, shape (W,).
    """

    def __init__(self, plan: TreesPlan, context: Context, values: Matrix) -> None:
        self.chain, self.context = plan.chain, context
        self.constants: dict[tuple[float, int, float], Plaintext] = {}
        self.values: list[Plaintext] = []
        least = 1 / plan.chain.leaf_scale  # SEAL refuses products with zero, so leaves that are all alike get this
        self._leaves = spread(values if (np.abs(values) >= least).any() else np.full(1, least), plan.slots)
        self.minus(plan.broken, 1.0)
        reached(self, self.chain.settled(plan.broken), plan.depth)

    def square(self, value: Level) -> Level:
        return self.chain.square(value)

    def product(self, one: Level, other: Level) -> Level:
        return self.chain.product(one, other)

    def minus(self, value: Level, constant: float) -> Level:
        slots = np.full(len(self._leaves), -constant)
        plain = self.context.encode(slots, limbs=value.limbs, scale=value.scale)
        self.constants[constant, value.limbs, value.scale] = plain
        return self.chain.minus(value, constant)

    def times_leaves(self, value: Level) -> Level:
        self.values.append(self.context.encode(self._leaves, limbs=value.limbs, scale=self.chain.leaf_scale))
        return self.chain.times_leaves(value)

    def level(self, value: Level) -> Level:
        return value


@dataclass(frozen=True, slots=True)
class _Tracked:
    """A ciphertext and what is known of it."""

    cipher: Ciphertext
    level: Level


class _Execution(Steps[_Tracked]):
    """The same steps on ciphertexts.

    Args:
        prepared: what they meet.
        keys: the client's.
    """

    def __init__(self, prepared: _Prepared, keys: Evaluation) -> None:
        self._prepared, self._keys = prepared, keys
        self._chain, self._context = prepared.chain, prepared.context

    def square(self, value: _Tracked) -> _Tracked:
        return self.product(value, value)

    def product(self, one: _Tracked, other: _Tracked) -> _Tracked:
        limbs = min(one.level.limbs, other.level.limbs)
        cipher = self._context.times(*(self._lowered(value, limbs) for value in (one, other)))
        self._keys.relinearise(cipher)
        return self.brought(cipher, limbs, self._chain.product(one.level, other.level))

    def minus(self, value: _Tracked, constant: float) -> _Tracked:
        level = value.level
        cipher = self._context.plus_plain(value.cipher, self._prepared.constants[constant, level.limbs, level.scale])
        return _Tracked(cipher, self._chain.minus(level, constant))

    def times_leaves(self, value: _Tracked) -> _Tracked:
        cipher = self._context.times_plain(value.cipher, self._prepared.values[0])
        return self.brought(cipher, value.level.limbs, self._chain.times_leaves(value.level))

    def level(self, value: _Tracked) -> Level:
        return value.level

    def finished(self, value: _Tracked) -> Ciphertext:
        """Return the ciphertext at one prime."""
        divided = self._chain.divided(value.level)
        return self._lowered(self.brought(value.cipher, value.level.limbs, divided), 1)

    def brought(self, cipher: Ciphertext, limbs: int, level: Level) -> _Tracked:
        """Return a ciphertext with `limbs` primes after the divisions that lead to `level`."""
        for left in range(limbs - 1, level.limbs - 1, -1):
            scale = level.scale
            for prime in self._chain.primes[level.limbs : left]:
                scale *= prime
            self._context.rescale(cipher, scale=scale)
        return _Tracked(cipher, level)

    def _lowered(self, value: _Tracked, limbs: int) -> Ciphertext:
        return self._context.switch(value.cipher, limbs=limbs)


class TreesServer:
    """The server's half: the leaves as diagonals.

    Args:
        plan: of the model's shape.
        leaves: the model's.
    """

    def __init__(self, plan: TreesPlan, leaves: Leaves) -> None:
        self.plan = plan
        self.context = Context(plan.parameters)
        self.exponents = leaves.exponents
        self._limbs = len(plan.parameters.data_primes)
        self._query = self.context.form(limbs=self._limbs, ntt=True, scale=2.0**plan.input_scale_bits)
        self._diagonals = self._encode(leaves)
        self._prepared = _Prepared(plan, self.context, leaves.values)
        offsets = np.zeros(plan.outputs_padded)
        offsets[: plan.outputs] = leaves.offsets
        self._offsets = self.context.encode(spread(offsets, plan.slots), limbs=1, scale=plan.reply.scale)
        self.error = np.ldexp(self._error(leaves), leaves.exponents)

    def answer(self, keys: Evaluation, ciphertexts: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
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
        queries = [self.context.load(body, self._query) for body in ciphertexts]
        rows = [queries[first : first + each] for first in range(0, len(queries), each)]
        with refusing_transparent():
            return tuple(self.context.to_bytes(self._apply(keys, row, rng)) for row in rows)

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode(self, leaves: Leaves) -> list[list[list[Plaintext]]]:
        """Return the plaintexts by giant step, ciphertext and baby step."""
        plan = self.plan
        slots, source, scale = np.arange(plan.slots), plan.source(), plan.weight_scale
        half, span = (plan.depth + 1) / 2, plan.features_each * plan.places

        def diagonal(giant: int, part: int, baby: int) -> Plaintext:
            # What meets the input rotated by `baby` now, and is rotated by giant * babies afterwards.
            label = (slots - giant * plan.babies) % plan.leaves
            place = source[(slots + baby) % plan.slots]
            feature = part * plan.features_each + place // plan.places
            inside = (place < span) & (feature < plan.features)
            feature, first = np.where(inside, feature, 0), place % plan.places
            low, high = leaves.broken[label, feature, first], leaves.broken[label, feature, first + plan.places]
            values = np.where(inside, low - 1j * high, 0.0).astype(np.complex128) / (2 * half)
            if not np.rint(np.abs(values) * scale).any():
                values = np.full(plan.slots, 1 / scale, np.complex128)  # SEAL refuses products with zero
            return self.context.encode(values, limbs=self._limbs, scale=scale)

        return [
            [[diagonal(giant, part, baby) for baby in range(plan.babies)] for part in range(plan.ciphertexts)]
            for giant in range(plan.giants)
        ]

    def _error(self, leaves: Leaves) -> Matrix:
        """Return the largest error of each normalised output, with what the encoding made of the leaf values."""
        plan = self.plan
        encoded = self.context.decode(self._prepared.values[0])
        shifted = np.abs(encoded - spread(leaves.values, plan.slots)).reshape(-1, plan.leaves).max(axis=0)
        errors = np.empty(plan.outputs)
        for output in range(plan.outputs):
            own = slice(output, None, plan.outputs_padded)
            trees, shift = leaves.trees[own], shifted[own]
            largest = [shift[trees == tree].max() for tree in np.unique(trees[trees >= 0])]
            squares = float(((np.abs(leaves.values[own]) + shift) ** 2).sum())
            encoding = float(sum(largest)) / abs(leaf_factor(plan.depth))
            errors[output] = plan.error_bound(squares, encoding) + plan.flooding
        return errors

    # --- execution ----------------------------------------------------------------------------------------------------

    def _apply(self, keys: Evaluation, row: Sequence[Ciphertext], rng: Randomness) -> Ciphertext:
        plan, context = self.plan, self.context
        total = self._multiply(keys, row)
        context.add(total, keys.conjugate(total))  # twice the real part
        context.rescale(total, scale=plan.broken.scale)
        steps = _Execution(self._prepared, keys)
        conditions = steps.minus(_Tracked(total, plan.broken), 1.0)
        settled = steps.brought(conditions.cipher, plan.broken.limbs, plan.chain.settled(plan.broken))
        reply = steps.finished(reached(steps, settled, plan.depth))
        for step in plan.leaf_sums:
            context.add(reply, keys.rotate(reply, step))
        context.add_plain(reply, self._offsets)
        if plan.protected:
            context.add(reply, keys.zero(limbs=1, scale=plan.reply.scale))
            noise = plan.flooding * uniform(rng, 2 * plan.slots).view(np.complex128)
            context.add_plain(reply, context.encode(noise, limbs=1, scale=plan.reply.scale))
        return reply

    def _multiply(self, keys: Evaluation, row: Sequence[Ciphertext]) -> Ciphertext:
        babies = [[cipher, *(keys.rotate(cipher, step) for step in range(1, self.plan.babies))] for cipher in row]
        total = self._inner(babies, self._diagonals[-1])
        for diagonals in reversed(self._diagonals[:-1]):  # Horner: rotate what is there, add the next giant's
            total = keys.rotate(total, self.plan.babies)
            self.context.add(total, self._inner(babies, diagonals))
        for step in self.plan.sums:
            self.context.add(total, keys.rotate(total, step))
        return total

    def _inner(self, babies: list[list[Ciphertext]], diagonals: list[list[Plaintext]]) -> Ciphertext:
        pairs = [pair for part in zip(babies, diagonals, strict=True) for pair in zip(*part, strict=True)]
        total, *others = (self.context.times_plain(cipher, plain) for cipher, plain in pairs)
        for other in others:
            self.context.add(total, other)
        return total


def spread(values: Matrix, slots: int) -> Matrix:
    """Return `values` over and over, shape (slots,)."""
    return np.resize(values, slots)
