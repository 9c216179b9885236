"""The passes of `confide.mpc.selections` over truncated and chosen values by numpy, bit for bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

_OFFSET = np.uint64(1 << 62)


def truncate(party: int, opened: Words, bits: int, shifted: Bytes, top: Bytes, out: Words) -> None:
    """Write party T - [u] + c [m] to `out`."""
    quotient, carries = _quotient(opened, bits)
    np.multiply(carries, _tops(top, bits, len(opened)), out=out)
    if party:
        out += quotient
    out -= shifted.view("<u8")


def select(
    party: int,
    g: Bytes,
    beta: Bytes,
    opened: Words,
    bits: int,
    shifted: Bytes,
    top: Bytes,
    chosen_shifted: Bytes,
    chosen_top: Bytes,
    out: Words,
) -> None:
    """Write the share of a bit's product with T, minus that with u, plus c times that with m, to `out`."""
    ones = np.negative(g.astype(np.uint64))
    out[:] = _chosen(beta.view("<u8"), np.uint64(party), ones)
    if bits:
        quotient, carries = _quotient(opened, bits)
        out *= quotient
        count = len(opened)
        carries *= _chosen(_tops(chosen_top, bits, count), _tops(top, bits, count), ones)
        out += carries
    else:
        out *= opened
    out -= _chosen(chosen_shifted.view("<u8"), shifted.view("<u8"), ones)


def _chosen(zero: Words, whole: Words | np.uint64, ones: Words) -> Words:
    """Return `zero` where g = 0, what is left of `whole` where g = 1."""
    made = np.bitwise_xor(zero, ones)
    made -= ones
    made += np.bitwise_and(whole, ones)
    return made


def _tops(top: Bytes, bits: int, count: int) -> Words:
    words = top.view(f"<u{len(top) // count}") if count else top
    return np.left_shift(words.astype(np.uint64), np.uint64(64 - bits))


def _quotient(opened: Words, bits: int) -> tuple[Words, Words]:
    """Return T = (Y >> f) - 2^(62-f) and c = 1 - msb(Y), for Y = y^ + 2^62."""
    lifted = np.add(opened, _OFFSET)
    carries = np.right_shift(lifted, np.uint64(63))
    carries ^= np.uint64(1)
    lifted >>= np.uint64(bits)
    lifted -= np.uint64(1 << (62 - bits))
    return lifted, carries
