# pyright: basic
"""The package pypaillier (imports as `paillier`; Rust on GMP) behind types: the only file that touches it.

It encrypts, scales, adds and re-randomises under a public key. Its own secret keys cannot be written down, so ours are
in `paillier_keys`. It draws its randomness from the operating system.

The scheme is Paillier's with generator 1 + n and randomness hs^r for a short r (Damgård, Jurik, Nielsen 2010,
section 4.2). A ciphertext here is a scale byte, always 0, and a number below n², most significant byte first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confide.errors import MissingExtra, ProtocolError


def library() -> Any:
    """Return the package. Raises MissingExtra if it is not installed."""
    try:
        import paillier
    except ModuleNotFoundError:
        raise MissingExtra("pypaillier", "paillier") from None
    return paillier


class PublicKey:
    """A client's public key as both sides use it. Building one takes a third of a second, so kits keep theirs.

    Args:
        modulus: n, most significant byte first; a stranger's.
        bits: the length that n must have.

    Raises:
        ProtocolError: n is not an odd number of that length.
    """

    def __init__(self, modulus: bytes, bits: int) -> None:
        n = int.from_bytes(modulus, "big")
        if len(modulus) != bits // 8 or n.bit_length() != bits or n % 2 == 0:
            raise ProtocolError(f"Expected an odd modulus of {bits} bits")
        self._library = library()
        try:
            self._key = self._library.PublicKey.from_n(modulus)
        except ValueError:
            raise ProtocolError(f"Expected a modulus of {bits} bits that the library takes") from None

    @property
    def plaintext_bits(self) -> int:
        """Return k so that every integer below 2^k in absolute value can be encrypted."""
        return self._key.plaintext_bound_bits - 1

    def check(self, ciphertexts: Sequence[bytes]) -> None:
        """Check a stranger's ciphertexts. Raises ProtocolError unless each is a number from 1 to n² - 1."""
        try:
            self._library.check_blobs(self._key, list(ciphertexts), 0)
        except (ValueError, TypeError):
            raise ProtocolError("Expected ciphertexts of this key") from None

    def encrypt(self, values: Sequence[int]) -> list[bytes]:
        """Return fresh encryptions of integers."""
        return self._library.encrypt_integers(self._key, list(values))

    def scale(self, ciphertexts: Sequence[bytes], factors: Sequence[int], *, bits: int) -> list[bytes]:
        """Return encryptions of products with private factors, none 0, each below 2^bits; the time tells nothing."""
        return self._apply(self._library.multiply_integers, list(ciphertexts), list(factors), scalar_bits=bits)

    def scale_public(self, ciphertexts: Sequence[bytes], factor: int) -> list[bytes]:
        """Return encryptions of products with a factor that everyone may know."""
        return self._apply(self._library.multiply_integers_public, list(ciphertexts), [factor] * len(ciphertexts))

    def add(self, ciphertexts: Sequence[bytes]) -> bytes:
        """Return an encryption of the sum."""
        return self._apply(self._library.add_many, list(ciphertexts))

    def rerandomise(self, ciphertexts: Sequence[bytes]) -> list[bytes]:
        """Return the same values in other ciphertexts."""
        return self._apply(self._library.rerandomize, list(ciphertexts))

    def _apply(self, operation: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return operation(self._key, *arguments, **options)
        except ValueError:  # a ciphertext that shares a factor with n: only the owner of the key can make one
            raise ProtocolError("Expected ciphertexts that are invertible") from None
