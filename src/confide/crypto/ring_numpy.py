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


_WORD = 64


def pack(words: NDArray[Any], bits: int) -> bytes:
    """Return the low `bits` bits of every word, packed."""
    if bits % 8 == 0:  # whole bytes need no bit to move
        little = words.astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8)
        return little.reshape(len(words), words.itemsize)[:, : bits // 8].tobytes()
    groups = -(-len(words) // _WORD)  # 64 words fill `bits` words of 64 bits
    columns = np.zeros((groups, _WORD), np.uint64)
    columns.reshape(-1)[: len(words)] = words
    columns = np.ascontiguousarray(columns.T) & np.uint64((1 << bits) - 1)
    packed = np.zeros((bits, groups), np.uint64)
    for place in range(_WORD):
        row, shift = divmod(place * bits, _WORD)
        packed[row] |= columns[place] << np.uint64(shift)
        if shift + bits > _WORD:
            packed[row + 1] |= columns[place] >> np.uint64(_WORD - shift)
    little = np.ascontiguousarray(packed.T).astype("<u8", copy=False)
    return little.tobytes()[: (len(words) * bits + 7) // 8]


def unpack(data: bytes, bits: int, count: int) -> NDArray[Any]:
    """Return `count` words of `bits` bits; uint32 up to 32 bits, uint64 above."""
    dtype = np.dtype("<u4" if bits <= 32 else "<u8")
    if bits % 8 == 0:
        octets = np.zeros((count, dtype.itemsize), np.uint8)
        octets[:, : bits // 8] = np.frombuffer(data, np.uint8).reshape(count, bits // 8)
        return octets.view(dtype).reshape(count).astype(dtype.newbyteorder("="))
    groups = -(-count // _WORD)
    padded = np.zeros(8 * groups * bits, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    packed = np.ascontiguousarray(padded.view("<u8").reshape(groups, bits).T).astype(np.uint64, copy=False)
    columns = np.empty((_WORD, groups), np.uint64)
    for place in range(_WORD):
        row, shift = divmod(place * bits, _WORD)
        columns[place] = packed[row] >> np.uint64(shift)
        if shift + bits > _WORD:
            columns[place] |= packed[row + 1] << np.uint64(_WORD - shift)
    columns &= np.uint64((1 << bits) - 1)
    return columns.T.reshape(-1)[:count].astype(dtype.newbyteorder("="))


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
