"""What engines of plans under CKKS share: products, combinations, divisions; written against `Arithmetic`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.he.arithmetic import Arithmetic, Encoder, Shape
from confide.he.normalise import Constants
from confide.he.plan_staged import StagedPlan
from confide.he.stages import Combined, Multiplied, product_scale

Matrix = NDArray[np.float64]

C = TypeVar("C")
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Combination(Generic[P]):
    """Constants as plaintexts, one for each term, and the one that is added."""

    factors: list[P]
    offset: P

    def __repr__(self) -> str:
        return "Combination()"


class Steps:
    """The operations of stages that are the same in every packing.

    Args:
        plan: says levels and scales.
    """

    def __init__(self, plan: StagedPlan) -> None:
        self.plan = plan

    def encoded(self, encoder: Encoder[P], number: int, stage: Combined, part: Constants) -> Combination[P]:
        """Return the constants of stage `number`."""
        read = [self.plan.registers[source] for source in stage.terms]
        after, scale = self.plan.registers[number + 1], product_scale(stage, read)
        limbs = min(register.limbs for register in read)
        factors = [
            encoder.weight(factor, limbs=limbs, scale=scale / register.scale)
            for factor, register in zip(part.factors, read, strict=True)
        ]
        return Combination(factors, encoder.encode(part.offset, limbs=after.limbs, scale=after.scale))

    def product(self, arithmetic: Arithmetic[C, Any], number: int, stage: Multiplied, left: C, right: C) -> C:
        """Return the product of two ciphertexts, relinearised and divided."""
        limbs = min(self.plan.registers[source].limbs for source in stage.sources)
        one, other = arithmetic.switch(left, limbs=limbs), arithmetic.switch(right, limbs=limbs)
        product = arithmetic.times(one, one if left is right else other)
        self.divide(arithmetic, number, product, stage.drops)
        return product

    def combine(
        self, arithmetic: Arithmetic[C, P], number: int, stage: Combined, encoded: Combination[P], terms: Sequence[C]
    ) -> C:
        """Return the sum of ciphertexts times constants, divided, and the constant that is added."""
        read = [self.plan.registers[source] for source in stage.terms]
        limbs, scale = min(register.limbs for register in read), product_scale(stage, read)
        terms = [arithmetic.switch(term, limbs=limbs) for term in terms]
        total = arithmetic.inner(terms, encoded.factors, scale=scale)  # scales are equal up to the last bit of a float
        self.divide(arithmetic, number, total, stage.drops)
        return arithmetic.plus_plain(total, encoded.offset)

    def divide(self, arithmetic: Arithmetic[C, Any], number: int, cipher: C, drops: int) -> None:
        """Divide the result of stage `number` by primes, in place."""
        arithmetic.divide(cipher, drops, scale=self.plan.registers[number + 1].scale)

    @property
    def reply(self) -> Shape:
        """Return the form of one ciphertext of a reply, at the fewest primes."""
        return Shape(1, self.plan.reply_limbs, self.plan.reply_scale, self.plan.reply_period)

    @property
    def flooding(self) -> float | None:
        """Return the bound of a protected reply's noise on each output, the same in all copies; None for open ones."""
        return self.plan.flooding if self.plan.protected else None


def uniform(rng: Randomness, count: int) -> Matrix:
    """Return numbers in [-1, 1), uniform to 53 bits, shape (count,)."""
    words = np.frombuffer(rng.bytes(8 * count), "<u8") >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-52 - 1.0
