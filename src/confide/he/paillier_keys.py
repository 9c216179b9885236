"""Paillier keys: made from primes of OpenSSL's, kept by their owner as bytes.

    n = p q    the public modulus; p and q are secret
    p, q       3 modulo 4, gcd(p - 1, q - 1) = 2, and (p - 1) / 2, (q - 1) / 2 without factors below 1024

Paper: Paillier (EUROCRYPT 1999), section 7 for decryption by the Chinese remainder theorem; Damgård, Jurik and Nielsen
(2010), section 4.2, for the conditions on p and q. They take p and q so that (p - 1)(q - 1) / 4 has no small factors;
safe primes, the extreme case, take ten times longer to find.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import rsa

from confide.errors import ProtocolError
from confide.he.pypaillier import PublicKey

_SMALL = math.prod(q for q in range(3, 1024, 2) if all(q % d for d in range(3, math.isqrt(q) + 1, 2)))


class SecretKey:
    """The client's secret: bytes for its owner's store, no repr, no way into a message.

    Args:
        p, q: different primes of one length.
    """

    __slots__ = ("__dict__", "_p", "_q")

    def __init__(self, p: int, q: int) -> None:
        self._p = p
        self._q = q

    def __repr__(self) -> str:
        return "SecretKey()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is not pickled")

    def to_bytes(self) -> bytes:
        """Return the key for the store of its owner: p and q, each half as long."""
        half = (self._p.bit_length() + 7) // 8
        return self._p.to_bytes(half, "big") + self._q.to_bytes(half, "big")

    @staticmethod
    def from_bytes(body: bytes) -> SecretKey:
        """Return the key that `to_bytes` wrote into its owner's store."""
        half = len(body) // 2
        p, q = int.from_bytes(body[:half], "big"), int.from_bytes(body[half:], "big")
        if len(body) % 2 or p == q or math.gcd(p * q, (p - 1) * (q - 1)) != 1:
            raise ProtocolError("Expected a Paillier key in the store; set up again")
        return SecretKey(p, q)

    @property
    def modulus(self) -> bytes:
        """Return n, most significant byte first: the public key."""
        n = self._p * self._q
        return n.to_bytes((n.bit_length() + 7) // 8, "big")

    def decrypt(self, public: PublicKey, ciphertexts: list[bytes]) -> list[int]:
        """Return the integers in `ciphertexts`, which were checked, each in (-n/2, n/2).

        They are re-randomised first, so that the time it takes does not depend on what a server sent.
        """
        return [self._decrypt(int.from_bytes(body[1:], "big")) for body in public.rerandomise(ciphertexts)]

    def _decrypt(self, cipher: int) -> int:
        p, q = self._p, self._q
        at_p = _logarithm(cipher, p) * self._inverses[0] % p
        at_q = _logarithm(cipher, q) * self._inverses[1] % q
        value = at_p + p * ((at_q - at_p) * self._inverses[2] % q)
        return value - p * q if 2 * value > p * q else value

    @cached_property
    def _inverses(self) -> tuple[int, int, int]:
        p, q = self._p, self._q
        generator = 1 + p * q
        return pow(_logarithm(generator, p), -1, p), pow(_logarithm(generator, q), -1, q), pow(p, -1, q)


def _logarithm(value: int, prime: int) -> int:
    """Return Paillier's L((value mod prime²)^(prime - 1)), with L(u) = (u - 1) / prime."""
    return (pow(value, prime - 1, prime * prime) - 1) // prime


def generate(bits: int) -> SecretKey:
    """Return a fresh key whose modulus has `bits` bits; 3072 bits take a few seconds."""
    primes = _suitable_primes(bits)
    p = next(primes)
    q = next(prime for prime in primes if math.gcd(prime - 1, p - 1) == 2)
    return SecretKey(p, q)


def _suitable_primes(bits: int) -> Iterator[int]:
    while True:  # one prime in twelve will do
        numbers = rsa.generate_private_key(65537, bits).private_numbers()
        for prime in (numbers.p, numbers.q):
            if prime % 4 == 3 and math.gcd(prime - 1, _SMALL) == 1:
                yield prime
