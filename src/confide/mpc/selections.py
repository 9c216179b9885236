"""What a party computes of a truncated value, and of its product with a bit, in one pass over all that it needs.

    symbol     here       meaning
    Y          -          the opened value y^ plus 2^62
    T, c       -          (Y >> f) - 2^(62 - f), and 1 - msb(Y)
    f          bits       bits that are cut off
    [u], [m]   Dealt      shares of r >> f modulo 2^64, and of msb(r) modulo 2^f
    g          g          the public bit xor beta

docs/protocols/mpc.md has the gates. The work is done by `confide._native` or, where it could not be compiled, by
`confide.mpc.selections_numpy`: the same bits. Neither branches nor looks up by what it reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError
from confide.mpc import selections_numpy

try:
    from confide._native import mpc as _native
except ImportError:
    _native = None

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

_engine = _native or selections_numpy
_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Dealt:
    """A party's shares of two numbers for each value of a vector, as they were dealt.

    Args:
        shifted: [u], uint64.
        top: [m], the smallest unsigned type of `bits` bits; None where nothing is cut off.
    """

    shifted: Words = field(repr=False)
    top: NDArray[np.unsignedinteger] | None = field(default=None, repr=False)


def truncate(party: int, opened: Words, bits: int, dealt: Dealt) -> Words:
    """Return a share of a value in [-2^62, 2^62) divided by 2^bits: party T - [u] + c [m] 2^(64 - bits).

    Args:
        party: 0 or 1.
        opened: y^, any shape.
        bits: 1 to 62.
        dealt: as many as there are values.

    Raises:
        UsageError: sizes do not fit.
    """
    if party not in (0, 1) or not 1 <= bits <= 62:
        raise UsageError(f"Expected party={party} to be 0 or 1 and bits={bits} from 1 to 62")
    found = np.empty(opened.shape, np.uint64)
    shifted, top = _both(dealt, opened.size, bits)
    _engine.truncate(party, _flat(opened), bits, shifted, top, found.reshape(-1))
    return found


def select(party: int, g: Bytes, beta: Words, opened: Words, bits: int, dealt: Dealt, chosen: Dealt) -> Words:
    """Return a share of the bit g xor beta times a value, truncated by `bits`; with bits = 0 the value as it is.

    Args:
        party: 0 or 1.
        g: public bits, uint8 of 0 and 1, one for each value.
        beta: shares of the masks of the bits, uint64, one for each value.
        opened: y^, any shape.
        bits: 0 to 62.
        dealt: shares of u and m; with bits = 0 of the mask r itself, and of nothing.
        chosen: shares of beta u and beta m, in the same types.

    Raises:
        UsageError: sizes do not fit.
    """
    if party not in (0, 1) or not 0 <= bits <= 62:
        raise UsageError(f"Expected party={party} to be 0 or 1 and bits={bits} from 0 to 62")
    if g.size != opened.size or beta.size != opened.size or g.dtype != np.uint8:
        raise UsageError(f"Expected a bit and a share of beta for each of {opened.size} values")
    found = np.empty(opened.shape, np.uint64)
    parts = *_both(dealt, opened.size, bits), *_both(chosen, opened.size, bits)
    ones = np.ascontiguousarray(g).reshape(-1)
    _engine.select(party, ones, _octets(beta), _flat(opened), bits, *parts, found.reshape(-1))
    return found


def _both(dealt: Dealt, count: int, bits: int) -> tuple[Bytes, Bytes]:
    size = next(one for one in (0, 1, 2, 4, 8) if bits <= 8 * one)
    shifted = _octets(dealt.shifted)
    top = _NOTHING if dealt.top is None or not bits else _octets(dealt.top)
    if len(shifted) != 8 * count or len(top) != size * count:
        raise UsageError(f"Expected shares of {count} values of 8 bytes, and of {size}")
    return shifted, top


def _octets(words: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(words).reshape(-1).view(np.uint8)


def _flat(words: Words) -> Words:
    return np.require(words, requirements=("C", "A")).reshape(-1)
