"""What a party computes of a truncated value, and of its product with a bit, in one pass over all that it needs.

    symbol     here       meaning
    Y          -          the opened value y^ plus 2^62
    T, c       -          (Y >> f) - 2^(62 - f), and 1 - msb(Y)
    f          bits       bits that are cut off
    [u], [m]   dealt      shares of r >> f modulo 2^64, and of msb(r) modulo 2^f
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
    """A party's shares of two numbers for each value of a vector, as bytes that may lie anywhere: see `dealt`."""

    shifted: Bytes = field(repr=False)
    top: Bytes = field(repr=False)


def dealt(shifted: Words, top: NDArray[np.unsignedinteger] | None = None) -> Dealt:
    """Return shares as they were dealt: views of them where they are contiguous.

    Args:
        shifted: [u], uint64.
        top: [m], in the smallest unsigned type of `bits` bits; None where nothing is cut off.
    """
    return Dealt(_octets(shifted), _NOTHING if top is None else _octets(top))


def truncate(party: int, opened: Words, bits: int, whole: Dealt) -> Words:
    """Return a share of a value in [-2^62, 2^62) divided by 2^bits: party T - [u] + c [m] 2^(64 - bits).

    Args:
        party: 0 or 1.
        opened: y^, any shape.
        bits: 1 to 62.
        whole: shares of u and m, as many as there are values.

    Raises:
        UsageError: sizes do not fit.
    """
    if party not in (0, 1) or not 1 <= bits <= 62:
        raise UsageError(f"Expected party={party} to be 0 or 1 and bits={bits} from 1 to 62")
    found = np.empty(opened.shape, np.uint64)
    _expect_shares(whole, opened.size, bits)
    _engine.truncate(party, _flat(opened), bits, whole.shifted, whole.top, found.reshape(-1))
    return found


def select(party: int, g: Bytes, beta: Words, opened: Words, bits: int, whole: Dealt, chosen: Dealt) -> Words:
    """Return a share of the bit g xor beta times a value, truncated by `bits`; with bits = 0 the value as it is.

    Args:
        party: 0 or 1.
        g: public bits, uint8 of 0 and 1, one for each value.
        beta: shares of the masks of the bits, uint64, one for each value.
        opened: y^, any shape.
        bits: 0 to 62.
        whole: shares of u and m; with bits = 0 of the mask r itself, and of nothing.
        chosen: shares of beta u and beta m, in the same types.

    Raises:
        UsageError: sizes do not fit.
    """
    if party not in (0, 1) or not 0 <= bits <= 62:
        raise UsageError(f"Expected party={party} to be 0 or 1 and bits={bits} from 0 to 62")
    if g.size != opened.size or beta.size != opened.size or g.dtype != np.uint8:
        raise UsageError(f"Expected a bit and a share of beta for each of {opened.size} values")
    _expect_shares(whole, opened.size, bits)
    _expect_shares(chosen, opened.size, bits)
    found = np.empty(opened.shape, np.uint64)
    given = np.ascontiguousarray(g).reshape(-1), _octets(beta), _flat(opened)
    shares = whole.shifted, whole.top, chosen.shifted, chosen.top
    _engine.select(party, *given, bits, *shares, found.reshape(-1))
    return found


def _expect_shares(found: Dealt, count: int, bits: int) -> None:
    size = 0 if not bits else 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8
    if len(found.shifted) != 8 * count or len(found.top) != size * count:
        raise UsageError(f"Expected shares of {count} values of 8 bytes, and of {size}")


def _octets(words: NDArray[Any]) -> Bytes:
    flat = words if words.flags.c_contiguous else np.ascontiguousarray(words)
    return flat.reshape(-1).view(np.uint8)


def _flat(words: Words) -> Words:
    whole = words.flags.c_contiguous and words.flags.aligned
    return (words if whole else np.require(words, requirements=("C", "A"))).reshape(-1)
