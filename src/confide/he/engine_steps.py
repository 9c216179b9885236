"""What engines of plans under CKKS share on Microsoft SEAL: products, combinations, divisions, the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.he.normalise import Constants
from confide.he.plan_staged import StagedPlan
from confide.he.seal import Ciphertext, Context, Evaluation, Plaintext
from confide.he.stages import Combined, Multiplied, product_scale

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Combination:
    """Constants as plaintexts, one for each term, and the one that is added."""

    factors: list[Plaintext]
    offset: Plaintext

    def __repr__(self) -> str:
        return "Combination()"


class Steps:
    """The operations of stages that are the same in every packing.

    Args:
        plan: says levels and scales.
        context: of its parameters.
    """

    def __init__(self, plan: StagedPlan, context: Context) -> None:
        self.plan = plan
        self.context = context

    def nonzero(self, values: Matrix | NDArray[np.complex128] | float, limbs: int, scale: float) -> Plaintext:
        """Return a plaintext to multiply by; SEAL refuses zeros, so one below rounding stands in."""
        plain = self.context.encode(values, limbs=limbs, scale=scale)
        return plain if self.context.is_nonzero(plain) else self.context.encode(1 / scale, limbs=limbs, scale=scale)

    def encoded(self, number: int, stage: Combined, part: Constants) -> Combination:
        """Return the constants of stage `number`."""
        read = [self.plan.registers[source] for source in stage.terms]
        after, scale = self.plan.registers[number + 1], product_scale(stage, read)
        limbs = min(register.limbs for register in read)
        factors = [
            self.nonzero(factor, limbs, scale / register.scale)
            for factor, register in zip(part.factors, read, strict=True)
        ]
        return Combination(factors, self.context.encode(part.offset, limbs=after.limbs, scale=after.scale))

    def product(
        self, keys: Evaluation, number: int, stage: Multiplied, left: Ciphertext, right: Ciphertext
    ) -> Ciphertext:
        """Return the product of two ciphertexts, relinearised and divided."""
        limbs = min(self.plan.registers[source].limbs for source in stage.sources)
        one, other = self.context.switch(left, limbs=limbs), self.context.switch(right, limbs=limbs)
        product = self.context.times(one, one if left is right else other)
        keys.relinearise(product)
        self.divide(number, product, stage.drops)
        return product

    def combine(self, number: int, stage: Combined, encoded: Combination, terms: Sequence[Ciphertext]) -> Ciphertext:
        """Return the sum of ciphertexts times constants, divided, and the constant that is added."""
        read = [self.plan.registers[source] for source in stage.terms]
        limbs, scale = min(register.limbs for register in read), product_scale(stage, read)
        total: Ciphertext | None = None
        for term, factor in zip(terms, encoded.factors, strict=True):
            product = self.context.times_plain(self.context.switch(term, limbs=limbs), factor)
            product.value.scale(scale)  # equal up to the last bit of a float
            if total is None:
                total = product
            else:
                self.context.add(total, product)
        assert total is not None
        self.divide(number, total, stage.drops)
        self.context.add_plain(total, encoded.offset)
        return total

    def divide(self, number: int, cipher: Ciphertext, drops: int) -> None:
        """Divide the result of stage `number` by primes, in place."""
        after = self.plan.registers[number + 1]
        for _ in range(drops):
            self.context.rescale(cipher, scale=after.scale)
        cipher.value.scale(after.scale)

    def leave(self, keys: Evaluation, cipher: Ciphertext, rng: Randomness) -> bytes:
        """Return the reply, at the fewest primes; of a protected model with an encryption of zero and with noise."""
        limbs, scale = self.plan.reply_limbs, self.plan.reply_scale
        reply = self.context.switch(cipher, limbs=limbs)
        if self.plan.protected:
            self.context.add(reply, keys.zero(limbs=limbs, scale=scale))
            noise = self.plan.flooding * uniform(rng, 2 * self.plan.slots).view(np.complex128)
            self.context.add_plain(reply, self.context.encode(noise, limbs=limbs, scale=scale))
        return self.context.to_bytes(reply)


def uniform(rng: Randomness, count: int) -> Matrix:
    """Return numbers in [-1, 1), uniform to 53 bits, shape (count,)."""
    words = np.frombuffer(rng.bytes(8 * count), "<u8") >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-52 - 1.0
