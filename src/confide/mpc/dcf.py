"""Distributed comparison functions: keys by which two parties share [x < alpha] at any public x, in batches.

A dealer knows alpha, gives each party a random root and gives both the same corrections. A party walks from its root
down a tree along the bits of x, and ends with a bit; the two bits differ exactly if x < alpha. One party's root and
the corrections say nothing about alpha.

    symbol   here           meaning
    n        bits           alpha and x are integers of n bits, 1 to 63
    N        count          keys in a batch
    s_b      roots          the seed of party b at the top of the tree, 125 bits
    K        key            the fixed, public AES key of the batch

Form of the corrections: max(n - 7, 0) levels of N blocks of 16 bytes, from the top of the tree, then N blocks for the
leaves. They travel like this and are read where they lie. docs/protocols/mpc-kernels.md has the formulas and why they
are right.

A batch has its own K, which nobody could choose before the roots were drawn: T seeds under one key cost about log2 T
of the 125 bits. A root serves one alpha; a key serves many points x only where all of them may be known with it.

The work is done by `confide._native` where it has instructions for AES, else by `confide.mpc.dcf_numpy`: the same
bits. Neither branches nor looks up by a secret.

Paper: Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar and Rathee, Function Secret Sharing for Mixed-Mode and Fixed-Point
Secure Computation (ePrint 2020/1392), figure 1, for a payload of one bit. We deviate: the payload's share is a bit of
the same AES output, a level's correction is one block, and the tree ends seven levels early in 128 shared bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import ProtocolError, UsageError
from confide.mpc import dcf_numpy

try:
    from confide._native import mpc as _native
except ImportError:
    _native = None

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

BLOCK_BYTES = 16
LEAF_BITS = 7

# Without instructions for AES, OpenSSL is the faster one.
_engine = _native if _native and _native.best_path() != "portable" else dcf_numpy


def correction_bytes(count: int, bits: int) -> int:
    """Return how long the corrections of a batch are: 16 (max(bits - 7, 0) + 1) bytes a key.

    Args:
        count: keys, at least 0.
        bits: of alpha and x, 1 to 63.

    Raises:
        UsageError: count or bits out of range.
    """
    if count < 0 or not 1 <= bits <= 63:
        raise UsageError(f"Expected count={count} of at least 0 and bits={bits} from 1 to 63")
    return BLOCK_BYTES * (max(bits - LEAF_BITS, 0) + 1) * count


def generate(roots0: Bytes, roots1: Bytes, alpha: Words, bits: int, key: bytes) -> Bytes:
    """Return the corrections of a batch, the same for both parties.

    Args:
        roots0, roots1: uint8, shape (count, 16), uniform and independent, secret: party 0's and party 1's.
        alpha: uint64, shape (count,), secret; the low `bits` bits are read.
        bits: of alpha and x, 1 to 63.
        key: 16 bytes, public, fresh for this batch.

    Returns:
        uint8, shape (correction_bytes(count, bits),).

    Raises:
        UsageError: dtypes, shapes or lengths do not fit.
    """
    thresholds, size = _vector(alpha, "alpha"), correction_bytes(len(alpha), bits)
    out = np.empty(size, np.uint8)
    _engine.dcf_generate(_blocks(roots0, len(alpha)), _blocks(roots1, len(alpha)), thresholds, bits, _fixed(key), out)
    return out


def evaluate(
    party: int,
    roots: Bytes,
    corrections: Bytes | bytes,
    x: Words,
    bits: int,
    key: bytes,
    *,
    drop: int = 0,
    top: bool = False,
) -> Bytes:
    """Return this party's shares of [x < alpha]: XORed with the other party's they are the truth.

    Args:
        party: 0 or 1.
        roots: uint8, shape (count, 16), this party's.
        corrections: what `generate` made: uint8, shape (correction_bytes(count, bits),), or as many bytes.
        x: uint64, shape (count,), public; the low `bits` bits are read.
        bits, key: those of `generate`.
        drop: so many low bits of x are taken off first, 0 to 63.
        top: XOR the bit of x above those that are read, as one of two parties does for a number with that bit.

    Returns:
        uint8, shape (count,), each 0 or 1.

    Raises:
        UsageError: dtypes or shapes do not fit.
        ProtocolError: the corrections have another length.
    """
    if party not in (0, 1):
        raise UsageError(f"Expected party={party} to be 0 or 1")
    if not 0 <= drop <= 63:
        raise UsageError(f"Expected drop={drop} from 0 to 63")
    points, size = _vector(x, "x"), correction_bytes(len(x), bits)
    body = np.frombuffer(corrections, np.uint8) if isinstance(corrections, bytes) else corrections
    if body.dtype != np.uint8 or body.shape != (size,):
        raise ProtocolError(f"Expected {size} bytes of corrections for {len(x)} keys, got {body.dtype} {body.shape}")
    out = np.empty(len(x), np.uint8)
    places = _blocks(roots, len(x)), np.ascontiguousarray(body), points
    _engine.dcf_evaluate(party, *places, bits, _fixed(key), out, drop, top)
    return out


def evaluate_many(party: int, roots: Bytes, corrections: Bytes | bytes, x: Words, bits: int, key: bytes) -> Bytes:
    """Return this party's shares at several public points of each key.

    The caller sees to it that the points tell nothing that one of them would not (all come from one masked value), and
    that each opened bit has a mask of its own.

    Args:
        x: uint64, shape (points, count).
        party, roots, corrections, bits, key: as for `evaluate`.

    Returns:
        uint8, shape (points, count), each 0 or 1.

    Raises:
        UsageError: dtypes or shapes do not fit.
        ProtocolError: the corrections have another length.
    """
    if x.ndim != 2:
        raise UsageError(f"Expected x of shape (points, count), got {x.shape}")
    found = np.empty(x.shape, np.uint8)
    for place, points in enumerate(x):
        found[place] = evaluate(party, roots, corrections, points, bits, key)
    return found


def _vector(words: Words, name: str) -> Words:
    if words.dtype != np.uint64 or words.ndim != 1:
        raise UsageError(f"Expected {name} to be a vector of uint64, got {words.dtype} {words.shape}")
    whole = words.flags.c_contiguous and words.flags.aligned
    return words if whole else np.require(words, requirements=("C", "A"))


def _blocks(roots: Bytes, count: int) -> Bytes:
    if roots.dtype != np.uint8 or roots.shape != (count, BLOCK_BYTES):
        raise UsageError(f"Expected roots of shape ({count}, {BLOCK_BYTES}) in uint8, got {roots.dtype} {roots.shape}")
    return np.ascontiguousarray(roots)


def _fixed(key: bytes) -> bytes:
    if len(key) != BLOCK_BYTES:
        raise UsageError(f"Expected a key of {BLOCK_BYTES} bytes, got {len(key)}")
    return bytes(key)
