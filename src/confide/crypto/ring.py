"""Words of the ring of integers mod 2^k, 1 <= k <= 64: sums in place, and exactly k bits per word on the wire.

A word lives in uint32 when k <= 32 and in uint64 above. Both widths are multiples of 2^k, so sums may wrap at the width
and are reduced mod 2^k only when they are packed.

    symbol   here     meaning
    k        bits     the ring is Z / 2^k
    d        count    number of words

Packed form: word i fills the bits [i k, (i + 1) k) of a little-endian bit string (bit 0 is the lowest bit of the first
byte), zeros fill the last byte. Every vector has exactly one packed form, and only that one is read.

The work is done by `confide._native` (C++, interpreter lock released) or, where no compiler was at hand when confide
was installed, by `confide.crypto.ring_numpy`: the same bits, slower.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.crypto import ring_numpy
from confide.errors import ProtocolError, UsageError

try:
    import confide._native as _native
except ImportError:
    _native = None

Words = NDArray[np.uint32 | np.uint64]

_engine = _native or ring_numpy

#: What does the work: "native" or "numpy".
ENGINE = "native" if _native else "numpy"


def word_dtype(bits: int) -> np.dtype[np.uint32 | np.uint64]:
    """Return the dtype that words of `bits` bits live in.

    Raises:
        UsageError: bits is outside 1 to 64.
    """
    if not 1 <= bits <= 64:
        raise UsageError(f"Expected bits={bits} between 1 and 64; lower the bound, the cohort or the precision")
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def add_words(acc: Words, words: Words | bytes, *, negate: bool = False) -> None:
    """Add `words` to `acc` in place, wrapping at the width of a word.

    Args:
        acc: uint32 or uint64, shape (d,), contiguous and writable.
        words: the same dtype and shape; or d words as little-endian bytes (a key stream).
        negate: True subtracts.

    Raises:
        UsageError: dtype, shape, layout or length differ.
    """
    if not (_is_vector(acc) and acc.flags.c_contiguous and acc.flags.writeable):
        raise UsageError("Expected acc to be a contiguous, writable vector of uint32 or uint64 words")
    if isinstance(words, bytes):
        if len(words) != acc.nbytes:
            raise UsageError(f"Expected {acc.nbytes} bytes of words, got {len(words)}")
        addend: Words = np.frombuffer(words, acc.dtype.newbyteorder("<")).astype(acc.dtype, copy=False)
    else:
        addend = words
    if addend.dtype != acc.dtype or addend.shape != acc.shape:
        raise UsageError(f"Expected words like acc, {acc.dtype} {acc.shape}; got {addend.dtype} {addend.shape}")
    if addend is not acc and np.may_share_memory(acc, addend):
        addend = addend.copy()  # the kernels read ahead
    _engine.add_words(acc, np.ascontiguousarray(addend), negate)


def pack(words: Words, bits: int) -> bytes:
    """Return the low `bits` bits of every word, packed: ceil(d * bits / 8) bytes.

    Args:
        words: uint32 or uint64, shape (d,).
        bits: 1 to the width of a word.

    Raises:
        UsageError: words or bits out of range.
    """
    word_dtype(bits)
    if not _is_vector(words) or bits > 8 * words.itemsize:
        raise UsageError(f"Expected a vector of uint32 or uint64 words of at least bits={bits}")
    return _engine.pack(np.ascontiguousarray(words), bits)


def unpack(data: bytes, bits: int, count: int) -> Words:
    """Return the `count` words of `bits` bits in `data`, as `word_dtype(bits)`.

    Raises:
        UsageError: bits or count out of range.
        ProtocolError: data has another length, or ones behind the last word: nothing that `pack` writes.
    """
    word_dtype(bits)
    if count < 0:
        raise UsageError(f"Expected count={count} to be at least 0")
    if len(data) != (count * bits + 7) // 8 or (count * bits % 8 and data[-1] >> (count * bits % 8)):
        raise ProtocolError(f"Expected {count} packed words of {bits} bits")
    return _engine.unpack(data, bits, count)


def project(acc: Words, words: Words, choices: NDArray[np.uint8]) -> None:
    """Add signed sums of `words` to `acc` in place, wrapping at the width of a word.

    Words come in groups of eight; a group has 2 * rows bytes of choices. Bit i of byte j and bit i of byte rows + j are
    worth b and c, and row j takes b + c - 1 times word i of the group: with uniform choices -1, 0, 0 or 1 times.

    Args:
        acc: uint32 or uint64, shape (rows,), contiguous and writable; rows is a multiple of 16.
        words: the same dtype, a multiple of eight of them; they share no memory with acc.
        choices: 2 * rows bytes for every eight words. They are public: memory is read where they say.

    Raises:
        UsageError: dtype, shape, layout or length differ.
    """
    if not (_is_vector(acc) and acc.flags.c_contiguous and acc.flags.writeable) or len(acc) % 16:
        raise UsageError("Expected acc to be a contiguous, writable vector of words, a multiple of 16 of them")
    if words.dtype != acc.dtype or words.ndim != 1 or len(words) % 8 or np.may_share_memory(acc, words):
        raise UsageError(f"Expected words like acc, by eights and apart from it; got {words.dtype} {words.shape}")
    if choices.dtype != np.uint8 or choices.shape != (len(words) // 8 * 2 * len(acc),):
        raise UsageError(f"Expected 2 * rows={len(acc)} bytes of choices for every eight words")
    _engine.project(acc, np.ascontiguousarray(words), np.ascontiguousarray(choices))


def _is_vector(words: Words) -> bool:
    return words.ndim == 1 and words.dtype in (np.dtype(np.uint32), np.dtype(np.uint64))
