"""The kernels of `confide._native` in numpy, bit for bit, for machines where it could not be compiled.

Call them through `confide.crypto.ring`, which checks the arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def add_words(acc: NDArray[Any], words: NDArray[Any], negate: bool) -> None:
    """Add `words` to `acc` in place, or subtract them; numpy's unsigned integers wrap."""
    (np.subtract if negate else np.add)(acc, words, out=acc)


def pack(words: NDArray[Any], bits: int) -> bytes:
    """Return the low `bits` bits of every word, packed."""
    little = words.astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(len(words), words.itemsize)
    if bits % 8 == 0:  # whole bytes need no bit to move
        return little[:, : bits // 8].tobytes()
    return np.packbits(np.unpackbits(little, axis=1, bitorder="little")[:, :bits], bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int) -> NDArray[Any]:
    """Return `count` words of `bits` bits; uint32 up to 32 bits, uint64 above."""
    dtype = np.dtype("<u4" if bits <= 32 else "<u8")
    packed = np.frombuffer(data, np.uint8)
    if bits % 8 == 0:
        octets = np.zeros((count, dtype.itemsize), np.uint8)
        octets[:, : bits // 8] = packed.reshape(count, bits // 8)
        return octets.view(dtype).reshape(count).astype(dtype.newbyteorder("="))
    rows = np.zeros((count, 8 * dtype.itemsize), np.uint8)
    rows[:, :bits] = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(rows, axis=1, bitorder="little").view(dtype).reshape(count).astype(dtype.newbyteorder("="))


def project(acc: NDArray[Any], words: NDArray[Any], choices: NDArray[Any]) -> None:
    """Add the signed sums that `choices` picks to `acc`: one table of the sums of all subsets for every eight words."""
    rows, groups = len(acc), len(words) // 8
    table = np.zeros((groups, 256), acc.dtype)
    for bit, word in enumerate(words.reshape(groups, 8).T):
        half = 1 << bit
        np.add(table[:, :half], word[:, None], out=table[:, half : 2 * half])
    picked = np.take_along_axis(table, choices.reshape(groups, 2 * rows).astype(np.intp), axis=1)
    sums = picked.sum(axis=0, dtype=acc.dtype)
    acc += sums[:rows] + sums[rows:] - table[:, 255].sum(dtype=acc.dtype)
