"""The operations that engines of plans are written against, and their form on Microsoft SEAL.

An engine's computation runs on any `Arithmetic`: SEAL's executes each operation at once, the native one (`recorder`)
only writes down what is to be done. Coarse operations (`transform`, `fold`, `inner`) say what belongs together, so that
an evaluator can share decompositions and divisions; on SEAL they are loops. Nothing here depends on a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.he.seal import CONJUGATION, Ciphertext, Context, Evaluation, Plaintext

Slots = NDArray[np.float64] | NDArray[np.complex128] | float

C = TypeVar("C")
P_contra = TypeVar("P_contra", contravariant=True)
P_co = TypeVar("P_co", covariant=True)

#: (parent, step): a rotation of a source (parent = -1 - its place) or of an earlier baby; step 0 moves nothing.
Baby = tuple[int, int]


class Encoder(Protocol[P_co]):
    """What makes plaintexts; slots have shape (N/2,), or are one number in all."""

    def encode(self, slots: Slots, *, limbs: int, scale: float) -> P_co:
        """Return a plaintext to add."""
        ...

    def weight(self, slots: Slots, *, limbs: int, scale: float) -> P_co:
        """Return a plaintext to multiply by, never zero: SEAL refuses that; one below rounding stands in."""
        ...


class Arithmetic(Protocol[C, P_contra]):
    """Operations on ciphertexts under one client's keys; `limbs` is the number of primes of a level."""

    def add(self, cipher: C, other: C) -> None:
        """Add `other` to `cipher`, in place."""
        ...

    def plus_plain(self, cipher: C, plain: P_contra) -> C:
        """Return the sum with a plaintext."""
        ...

    def inner(self, ciphers: Sequence[C], plains: Sequence[P_contra], *, scale: float | None = None) -> C:
        """Return Σ cipher · plain, at one level.

        Args:
            ciphers: at the level of their plaintexts.
            plains: of `weight`.
            scale: that each product counts as having, where they differ in the last bit of a float.
        """
        ...

    def times(self, cipher: C, other: C) -> C:
        """Return the product of two ciphertexts of one level, relinearised."""
        ...

    def switch(self, cipher: C, *, limbs: int) -> C:
        """Return `cipher` with `limbs` primes, itself if it has so many; its scale stays."""
        ...

    def divide(self, cipher: C, drops: int, *, scale: float) -> None:
        """Divide by the last `drops` primes, in place; `scale` is the scale that this leaves."""
        ...

    def fold(self, cipher: C, groups: Sequence[Sequence[int]]) -> None:
        """Add to `cipher` its rotations by the steps of a group, in place, for one group after the other.

        `CONJUGATION` is a step, too.
        """
        ...

    def joined(self, cipher: C, step: int) -> C:
        """Return cipher + u · (cipher rotated by `step`), u as in `packing.imaginary`."""
        ...

    def transform(
        self,
        ciphers: Sequence[C],
        babies: Sequence[Baby],
        giants: Sequence[Sequence[tuple[int, P_contra]]],
        giant_step: int,
    ) -> C:
        """Return Σ_j rotation by j · giant_step of Σ weight · baby, by Horner's rule.

        Args:
            ciphers: sources, of one level and scale.
            babies: their rotations, parents first.
            giants: of each giant step, (place of the baby, weight); not all are empty.
            giant_step: rotation between neighbouring giant steps.
        """
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """Ciphertexts of a question or of a reply: how many, their level, their scale.

    Args:
        period: after which slots repeat in a reply; only real parts, averaged over the copies, leave (`traces`). 0
            where all of it may.
    """

    count: int
    limbs: int
    scale: float
    period: int = 0


class Computation(Protocol):
    """What a model does to the ciphertexts of one question, written once for all engines."""

    @property
    def question(self) -> Shape:
        """Return what comes in."""
        ...

    @property
    def reply(self) -> Shape:
        """Return what goes out, at the fewest primes."""
        ...

    @property
    def flooding(self) -> float | None:
        """Return the bound of a protected reply's noise on each output, the same in all copies; None for open ones."""
        ...

    def encoded(self, encoder: Encoder[Any]) -> Any:
        """Return the weights as plaintexts."""
        ...

    def run(self, arithmetic: Arithmetic[Any, Any], encoded: Any, ciphers: Sequence[Any]) -> Sequence[Any]:
        """Return the reply's ciphertexts, at any level from the reply's on.

        Args:
            arithmetic: does the work.
            encoded: of `encoded`.
            ciphers: of a question.
        """
        ...


class SealEncoder:
    """Plaintexts of SEAL's.

    Args:
        context: of the parameters.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def encode(self, slots: Slots, *, limbs: int, scale: float) -> Plaintext:
        return self.context.encode(slots, limbs=limbs, scale=scale)

    def weight(self, slots: Slots, *, limbs: int, scale: float) -> Plaintext:
        plain = self.context.encode(slots, limbs=limbs, scale=scale)
        return plain if self.context.is_nonzero(plain) else self.context.encode(1 / scale, limbs=limbs, scale=scale)


class _Seal:
    """What does not depend on whether weights are plaintexts."""

    def __init__(self, context: Context, keys: Evaluation) -> None:
        self.context, self.keys = context, keys

    def add(self, cipher: Ciphertext, other: Ciphertext) -> None:
        self.context.add(cipher, other)

    def times(self, cipher: Ciphertext, other: Ciphertext) -> Ciphertext:
        product = self.context.times(cipher, other)
        self.keys.relinearise(product)
        return product

    def switch(self, cipher: Ciphertext, *, limbs: int) -> Ciphertext:
        return self.context.switch(cipher, limbs=limbs)

    def divide(self, cipher: Ciphertext, drops: int, *, scale: float) -> None:
        for _ in range(drops):
            self.context.rescale(cipher, scale=scale)
        cipher.value.scale(scale)

    def fold(self, cipher: Ciphertext, groups: Sequence[Sequence[int]]) -> None:
        for steps in groups:
            for moved in [self._moved(cipher, step) for step in steps]:
                self.context.add(cipher, moved)

    def _moved(self, cipher: Ciphertext, step: int) -> Ciphertext:
        return self.keys.conjugate(cipher) if step == CONJUGATION else self.keys.rotate(cipher, step)

    def joined(self, cipher: Ciphertext, step: int) -> Ciphertext:
        half = self.context.times_imaginary(self.keys.rotate(cipher, step))
        self.context.add(half, cipher)
        return half

    def babies(self, ciphers: Sequence[Ciphertext], babies: Sequence[Baby]) -> list[Ciphertext]:
        """Return every rotation of the sources."""
        found: list[Ciphertext] = []
        for parent, step in babies:
            origin = ciphers[-1 - parent] if parent < 0 else found[parent]
            found.append(self.keys.rotate(origin, step) if step else origin)
        return found

    def horner(self, sums: Sequence[Ciphertext | None], giant_step: int) -> Ciphertext:
        """Return the sums of giant steps, rotated and added; the last one's rotation comes first."""
        total: Ciphertext | None = None
        for added in reversed(sums):
            if total is not None:
                total = self.keys.rotate(total, giant_step)
            if total is None:
                total = added
            elif added is not None:
                self.context.add(total, added)
        assert total is not None
        return total


class SealArithmetic(_Seal):
    """`Arithmetic` on SEAL; the weights are plaintexts.

    Args:
        context: of the parameters.
        keys: the client's.
    """

    def plus_plain(self, cipher: Ciphertext, plain: Plaintext) -> Ciphertext:
        return self.context.plus_plain(cipher, plain)

    def inner(
        self, ciphers: Sequence[Ciphertext], plains: Sequence[Plaintext], *, scale: float | None = None
    ) -> Ciphertext:
        total: Ciphertext | None = None
        for cipher, plain in zip(ciphers, plains, strict=True):
            product = self.context.times_plain(cipher, plain)
            if scale is not None:
                product.value.scale(scale)
            if total is None:
                total = product
            else:
                self.context.add(total, product)
        assert total is not None
        return total

    def transform(
        self,
        ciphers: Sequence[Ciphertext],
        babies: Sequence[Baby],
        giants: Sequence[Sequence[tuple[int, Plaintext]]],
        giant_step: int,
    ) -> Ciphertext:
        made = self.babies(ciphers, babies)
        sums = [
            self.inner([made[baby] for baby, _ in weights], [weight for _, weight in weights]) if weights else None
            for weights in giants
        ]
        return self.horner(sums, giant_step)


class SealEncrypted(_Seal):
    """`Arithmetic` on SEAL; the weights of maps and their biases are ciphertexts, for a server that must not see them.

    Args:
        context: of the parameters.
        keys: the owner's.
    """

    def plus_plain(self, cipher: Ciphertext, plain: Ciphertext) -> Ciphertext:
        return self.context.plus(cipher, plain)

    def inner(
        self, ciphers: Sequence[Ciphertext], plains: Sequence[Ciphertext], *, scale: float | None = None
    ) -> Ciphertext:
        total = self._inner(ciphers, list(enumerate(plains)))
        assert total is not None
        if scale is not None:
            total.value.scale(scale)
        return total

    def transform(
        self,
        ciphers: Sequence[Ciphertext],
        babies: Sequence[Baby],
        giants: Sequence[Sequence[tuple[int, Ciphertext]]],
        giant_step: int,
    ) -> Ciphertext:
        made = self.babies(ciphers, babies)
        return self.horner([self._inner(made, weights) for weights in giants], giant_step)

    def _inner(self, babies: Sequence[Ciphertext], weights: Sequence[tuple[int, Ciphertext]]) -> Ciphertext | None:
        """Return Σ weight · baby: summed at three polynomials, relinearised once."""
        total: Ciphertext | None = None
        for baby, weight in weights:
            product = self.context.times(babies[baby], weight)
            if total is None:
                total = product
            else:
                self.context.add(total, product)
        if total is not None:
            self.keys.relinearise(total)
        return total
