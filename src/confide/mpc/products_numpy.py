"""The products of `confide._native` in numpy, bit for bit, for machines where it could not be compiled.

A word is cut into limbs of 22, 22 and 20 bits. A product of two limbs is below 2^44, so a sum of 512 of them is below
2^53 and float64 holds it exactly, in any order of summation. Six products of matrices are left of nine: the others
are multiples of 2^66.

Call these through `confide.mpc.products`, which checks the arguments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_LIMB = 22
_LONGEST = 512  # terms of an exact sum


def matmul(a: Words, b: Words, out: Words, add: bool) -> None:
    """Write a @ b to `out`, or add it: a (count, m, k), b (count, k, n), out (count, m, n)."""
    if not add:
        out[:] = 0
    for start in range(0, a.shape[-1], _LONGEST):
        end = start + _LONGEST
        left, right = _limbs(a[..., start:end]), _limbs(b[..., start:end, :])
        for place in range(3):
            total = np.zeros(out.shape, np.uint64)
            for i in range(place + 1):
                total += (left[i] @ right[place - i]).astype(np.uint64)
            total <<= np.uint64(_LIMB * place)
            out += total


def convolve(
    x: Words, w: Words, stride: tuple[int, int], padding: tuple[int, int, int, int], out: Words, add: bool
) -> None:
    """Write the correlation of x (n, c, h, w) with w (o, c, kh, kw) to `out` (n, o, oh, ow), or add it."""
    top, left, bottom, right = padding
    outputs, channels, kh, kw = w.shape
    kernels = w.reshape(1, outputs, channels * kh * kw)
    for picture, result in zip(x, out, strict=True):  # one by one: what is laid out is kh kw times as large
        padded = np.pad(picture, ((0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), axis=(1, 2))  # pyright: ignore
        windows = windows[:, :: stride[0], :: stride[1]].transpose(0, 3, 4, 1, 2)
        positions = result.shape[1] * result.shape[2]
        columns = windows.reshape(1, channels * kh * kw, positions)
        matmul(kernels, columns, result.reshape(1, outputs, positions), add)


def _limbs(words: Words) -> list[NDArray[np.float64]]:
    mask = np.uint64((1 << _LIMB) - 1)
    return [((words >> np.uint64(_LIMB * place)) & mask).astype(np.float64) for place in range(3)]
