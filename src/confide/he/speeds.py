"""What the operations of an engine take on one core: numbers to choose plans by, and to tell their times.

    T     one transform of a row, N words of one prime
    l     primes of a level

A key switch decomposes (l² + l transforms), meets the key (2 l (l + 1) products of rows) and divides by the special
prime (2 l + 2 transforms); rotations of one ciphertext can share the first part (`hoists`) and sums of products with
weights the last. Microsoft SEAL does neither, and its products within a key switch hide behind its transforms.

Measured on one core of an AMD EPYC (Zen 4); another machine moves all of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

#: Who executes a plan: Microsoft SEAL, or our own evaluator over the same bytes.
Executor = Literal["seal", "native"]


@dataclass(frozen=True, slots=True, eq=False)
class Speeds:
    """The operations of one engine.

    Args:
        engine: whose.
        transform_ms: T by ring degree.
        product: of a row and a row, added up, in T.
        switched: the same, of a digit and a part of a key.
        bytes_per_ms: keys and weights that are read from memory.
        largest_bits: of a prime; larger ones are slow or not possible.
        hoists: whether rotations of one ciphertext share its decomposition, and products a division.
        key_ms_per_byte: what a byte of keys, once uploaded, is worth in time of every request.
    """

    engine: Executor
    transform_ms: Mapping[int, float]
    product: float
    switched: float
    bytes_per_ms: float
    largest_bits: int
    hoists: bool
    key_ms_per_byte: float

    def decomposed(self, degree: int, limbs: int) -> float:
        """Return the milliseconds of the digits of a ciphertext, modulo every prime."""
        return self.transform_ms[degree] * (limbs * limbs + limbs)

    def met(self, degree: int, limbs: int) -> float:
        """Return the milliseconds of the products of digits with a key."""
        return self.transform_ms[degree] * self.switched * 2 * limbs * (limbs + 1)

    def divided(self, degree: int, limbs: int) -> float:
        """Return the milliseconds of a division of two polynomials by the special prime."""
        return self.transform_ms[degree] * (2 * limbs + 2)

    def switch(self, degree: int, limbs: int) -> float:
        """Return the milliseconds of a key switch whose key is in the cache."""
        return self.decomposed(degree, limbs) + self.met(degree, limbs) + self.divided(degree, limbs)

    def hoisted(self, degree: int, limbs: int) -> float:
        """Return the milliseconds of a rotation whose ciphertext is decomposed already, where that helps."""
        return self.met(degree, limbs) if self.hoists else self.switch(degree, limbs)

    def key_read(self, degree: int, limbs: int) -> float:
        """Return the milliseconds of reading a key once, as far as this level needs it."""
        return 16 * degree * limbs * (limbs + 1) / self.bytes_per_ms

    def products(self, degree: int, rows: int, count: int) -> float:
        """Return the milliseconds of `count` products of ciphertexts with weights, each of `rows` primes."""
        return count * rows * (2 * self.product * self.transform_ms[degree] + 8 * degree / self.bytes_per_ms)


#: Microsoft SEAL 4.4, scalar.
SEAL = Speeds(
    engine="seal",
    transform_ms=MappingProxyType({4096: 0.06, 8192: 0.12, 16384: 0.24, 32768: 0.5}),
    product=0.28,
    switched=0.0,
    bytes_per_ms=float("inf"),
    largest_bits=60,
    hoists=False,
    key_ms_per_byte=2e-7,
)

#: Our own, with AVX-512-IFMA, which multiplies numbers below 2^52.
NATIVE = Speeds(
    engine="native",
    transform_ms=MappingProxyType({4096: 0.0045, 8192: 0.0095, 16384: 0.021, 32768: 0.048}),
    product=0.25,
    switched=0.2,
    bytes_per_ms=1.2e7,
    largest_bits=50,
    hoists=True,
    key_ms_per_byte=5e-8,
)

SPEEDS: Mapping[Executor, Speeds] = MappingProxyType({"seal": SEAL, "native": NATIVE})
