"""The only place where confide takes randomness from.

`SystemRandomness` is the operating system's generator and the default of everything that hides something.
`SeededRandomness` gives the same bytes again: tests and golden transcripts need it, and a run that used it makes no
privacy claim (its `origin` goes into the privacy label). Public choices (how a table is split, where a model starts)
come from `public_stream`, a seeded stream of its own, so that a secret never depends on a public seed.
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms


class Randomness(Protocol):
    """A source of secret randomness, passed in as an argument and never kept in a module."""

    @property
    def origin(self) -> str:
        """Return where the bytes come from, as the privacy label states it."""
        ...

    def bytes(self, count: int) -> bytes:
        """Return `count` uniform bytes, count >= 0."""
        ...

    def below(self, bound: int) -> int:
        """Return a uniform integer in [0, bound), bound >= 1, without modulo bias."""
        ...

    def branch(self) -> Randomness:
        """Return a source whose draws do not depend on how much is drawn here afterwards."""
        ...


def _below(source: Randomness, bound: int) -> int:
    if bound < 1:
        raise ValueError(f"Expected bound={bound} to be at least 1")
    bits = (bound - 1).bit_length()
    size = (bits + 7) // 8
    excess = 8 * size - bits
    while True:  # rejection: fewer than two draws on average
        value = int.from_bytes(source.bytes(size), "little") >> excess
        if value < bound:
            return value


class SystemRandomness:
    """The operating system's cryptographic generator."""

    origin = "operating system"

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def below(self, bound: int) -> int:
        return _below(self, bound)

    def branch(self) -> SystemRandomness:
        return self


class SeededRandomness:
    """A ChaCha20 stream from a seed: repeatable, therefore never private.

    Args:
        seed: any text; streams of different seeds are independent.
    """

    def __init__(self, seed: str) -> None:
        self.origin = f"fixed seed {seed!r}: no privacy claim"
        key = hashlib.sha256(b"confide seeded randomness\0" + seed.encode()).digest()
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def bytes(self, count: int) -> bytes:
        return self._stream.update(bytes(count))

    def below(self, bound: int) -> int:
        return _below(self, bound)

    def branch(self) -> SeededRandomness:
        branch = SeededRandomness(self.bytes(32).hex())
        branch.origin = self.origin
        return branch


def public_stream(seed: int | str, purpose: str) -> np.random.Generator:
    """Return a repeatable generator for choices that everyone may know.

    Args:
        seed: the experiment's seed.
        purpose: what it is for ("split", "initial weights"); different purposes give independent streams.
    """
    digest = hashlib.sha256(f"confide public stream\0{purpose}\0{seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
