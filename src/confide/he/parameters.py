"""Encryption parameters, and the table that says how large a modulus may be for 128 bits of security.

    N    ring degree            `degree`
    q    ciphertext modulus     product of `data_primes`
    p    special prime          `special`: only inside keys; keys and fresh public-key encryptions live modulo q·p
    t    plaintext modulus      `plain_modulus` (BFV)

Paper: the Homomorphic Encryption Standard (2018), table for uniform ternary secrets; the newer estimates of ePrint
2024/463 agree at these sizes. Sparse secrets and the level "none" are not offered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from confide.errors import ProtocolError

#: Largest number of bits of q·p by ring degree at 128 bits of security, secrets uniform in {-1, 0, 1}.
LIMIT_BITS: Mapping[int, int] = MappingProxyType({1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881})

SECURITY_BITS = 128

#: SEAL draws errors as the difference of two sums of 21 bits: never larger than 21, variance 21/2.
ERROR_BOUND = 21
ERROR_VARIANCE = 10.5


#: Bases that tell primes from all other numbers below 3.3e24.
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def is_prime(number: int) -> bool:
    """Return whether `number`, below 2^64, is prime: no doubt is left.

    Paper: Miller (1976) and Rabin (1980); the bases by Sorenson and Webster, Mathematics of Computation 86 (2017).
    """
    if number < 2 or any(number % base == 0 for base in _WITNESSES):
        return number in _WITNESSES
    odd, halvings = number - 1, 0
    while odd % 2 == 0:
        odd, halvings = odd // 2, halvings + 1
    return all(_passes(number, base, odd, halvings) for base in _WITNESSES)


def _passes(number: int, base: int, odd: int, halvings: int) -> bool:
    """Return False if `base` proves that `number`, 1 + odd 2^halvings, is composite."""
    power = pow(base, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(halvings - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One set of ring-LWE parameters; public.

    Args:
        scheme: "bfv" (exact integers) or "ckks" (approximate reals).
        degree: N, a power of two of the table.
        primes: all different, each congruent to 1 modulo 2N; of two or more, the last is the special prime.
        plain_modulus: t for BFV, below 2^60; 0 for CKKS.
    """

    scheme: Literal["bfv", "ckks"]
    degree: int
    primes: tuple[int, ...]
    plain_modulus: int = 0

    @property
    def data_primes(self) -> tuple[int, ...]:
        """Return the primes of a fresh ciphertext."""
        return self.primes[:-1] if len(self.primes) > 1 else self.primes

    @property
    def special(self) -> int:
        """Return the special prime, or 1 where there is none."""
        return self.primes[-1] if len(self.primes) > 1 else 1

    @property
    def modulus(self) -> int:
        """Return q."""
        return math.prod(self.data_primes)

    @property
    def total_bits(self) -> int:
        """Return the bits of q·p, which the table bounds."""
        return math.prod(self.primes).bit_length()

    def checked(self) -> Parameters:
        """Return self if it has 128 bits of security and a form that SEAL takes; a stranger may have sent it.

        Raises:
            ProtocolError: it has not.
        """
        limit = LIMIT_BITS.get(self.degree)
        if limit is None or not 1 <= len(self.primes) <= 16:
            raise ProtocolError(f"Expected a ring degree of {', '.join(map(str, LIMIT_BITS))} and 1 to 16 primes")
        if any(not 1 < prime < 1 << 60 or prime % (2 * self.degree) != 1 for prime in self.primes):
            raise ProtocolError("Expected primes below 2^60 that are 1 modulo twice the ring degree")
        if not all(map(is_prime, self.primes)):
            raise ProtocolError("Expected moduli that are prime")
        if len(set(self.primes)) != len(self.primes) or self.total_bits > limit:
            raise ProtocolError(f"Expected different primes of at most {limit} bits in all, got {self.total_bits}")
        if (self.scheme == "bfv") != (1 < self.plain_modulus < 1 << 60):
            raise ProtocolError("Expected a plaintext modulus below 2^60 for BFV and none for CKKS")
        return self

    def check_switching(self) -> None:
        """Refuse parameters under which no key can be switched. Raises ProtocolError without a special prime.

        How long it is decides about noise, which a plan's error accounts for, and not about security.
        """
        if len(self.primes) < 2:
            raise ProtocolError("Expected a special prime beside the data primes, to switch keys")

    def __str__(self) -> str:
        bits = "+".join(str(prime.bit_length()) for prime in self.primes)
        plain = f", t={self.plain_modulus.bit_length()} bits" if self.plain_modulus else ""
        return f"{self.scheme.upper()}, N={self.degree}, q={bits} bits{plain}"
