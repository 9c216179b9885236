"""Streams of words from a 16-byte seed: AES-128 in counter mode.

    block i of a stream = AES-128_key(nonce || i), both as 8 little-endian bytes, i from 0

Two words of 64 bits per block, little-endian. A seed serves many streams, told apart by their nonces; whoever draws
with one key and one nonce twice draws the same words. The key is secret: kernels look up nothing by its bytes.

The work is done by `confide._native` where it has instructions for AES, else by `confide.mpc.streams_numpy` (OpenSSL):
the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError
from confide.mpc import streams_numpy

try:
    from confide._native import mpc as _native
except ImportError:
    _native = None

KEY_BYTES = 16

# Without instructions for AES, OpenSSL is the faster one.
_engine = _native if _native and _native.best_path() != "portable" else streams_numpy


def stream(key: bytes, nonce: int, words: int) -> NDArray[np.uint64]:
    """Return the first `words` words of a stream.

    Args:
        key: 16 bytes, secret.
        nonce: 0 to 2^64 - 1, public; which stream of the key.
        words: how many.

    Raises:
        UsageError: an argument is out of range.
    """
    if len(key) != KEY_BYTES:
        raise UsageError(f"Expected a key of {KEY_BYTES} bytes, got {len(key)}")
    if not 0 <= nonce < 1 << 64 or words < 0:
        raise UsageError(f"Expected nonce={nonce} below 2^64 and words={words} of at least 0")
    out = np.empty(words, np.uint64)
    _engine.stream(bytes(key), nonce, out)
    return out


def stream_bits(key: bytes, nonce: int, count: int) -> NDArray[np.uint8]:
    """Return the first `count` bits of a stream as uint8 of 0 and 1: lowest bit of the lowest byte first.

    Args:
        key, nonce: as for `stream`; a stream of bits and one of words of one nonce are the same stream.
        count: how many.

    Raises:
        UsageError: an argument is out of range.
    """
    if count < 0:
        raise UsageError(f"Expected count={count} of at least 0")
    words = stream(key, nonce, -(-count // 64))
    octets = words.astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(octets, count=count, bitorder="little")
