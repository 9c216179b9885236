"""Products on the ring of integers mod 2^64: matrices and convolutions, exact, wrapping.

    symbol   here          meaning
    m, k, n  shapes        rows of a, the length of each sum, columns of b
    o, c     shapes        channels that go out and channels that come in

The work is done by `confide._native` (packed blocks, interpreter lock released) or, where it could not be compiled, by
`confide.mpc.products_numpy`: the same bits, slower. Which words are read, and when, follows from the shapes alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError
from confide.mpc import products_numpy

try:
    from confide._native import mpc as _native
except ImportError:
    _native = None

Words = NDArray[np.uint64]

_engine = _native or products_numpy


def matmul(
    a: Words, b: Words, *, transpose_a: bool = False, transpose_b: bool = False, out: Words | None = None
) -> Words:
    """Return a @ b mod 2^64.

    Args:
        a: uint64, shape (..., m, k); (..., k, m) with `transpose_a`. Any strides.
        b: uint64, shape (k, n), or (..., k, n) with the leading axes of a; (..., n, k) with `transpose_b`.
        out: uint64, contiguous, in the shape of the result and apart from a and b: the product is added to what it
            holds, and it is returned.

    Returns:
        uint64, shape (..., m, n).

    Raises:
        UsageError: dtypes or shapes do not fit.
    """
    if min(a.ndim, b.ndim) < 2:
        raise UsageError(f"Expected two matrices, or stacks of them; got {a.shape} and {b.shape}")
    left = _readable(a.swapaxes(-1, -2) if transpose_a else a, "a")
    right = _readable(b.swapaxes(-1, -2) if transpose_b else b, "b")
    leading, (m, k), (rows, n) = left.shape[:-2], left.shape[-2:], right.shape[-2:]
    if k != rows or (right.ndim > 2 and right.shape[:-2] != leading):
        raise UsageError(
            f"Expected b to fit a={left.shape}, got {right.shape}; its leading axes are those of a, or none"
        )
    found = _result(out, (*leading, m, n), (a, b))
    count = math.prod(leading)
    stack = (1, count * m) if right.ndim == 2 else (count, m)  # one product of many rows, or many products
    if found.size:
        _engine.matmul(
            left.reshape(*stack, k), right.reshape(stack[0], k, n), found.reshape(*stack, n), out is not None
        )
    return found


def convolve(
    x: Words,
    w: Words,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    out: Words | None = None,
) -> Words:
    """Return the correlation of x with w, as in torch: mod 2^64, without a bias.

    Args:
        x: uint64, shape (n, c, h, w).
        w: uint64, shape (o, c, kh, kw), kh and kw at least 1.
        stride: steps down and to the right, at least 1.
        padding: zeros above, to the left, below and to the right of each picture.
        out: uint64, contiguous, in the shape of the result and apart from x and w: the result is added to what it
            holds, and it is returned.

    Returns:
        uint64, shape (n, o, (top + h + bottom - kh) // down + 1, (left + w + right - kw) // right_step + 1).

    Raises:
        UsageError: dtypes, shapes, strides or paddings do not fit.
    """
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1]:
        raise UsageError(f"Expected x (n, c, h, w) and w (o, c, kh, kw) of one c, got {x.shape} and {w.shape}")
    if min(stride) < 1 or min(padding) < 0:
        raise UsageError(f"Expected stride={stride} of at least 1 and padding={padding} of at least 0")
    pictures, kernels = _readable(x, "x"), np.ascontiguousarray(_readable(w, "w"))
    count, _, height, width = x.shape
    outputs, _, kh, kw = w.shape
    top, left, bottom, right = padding
    down, across = height + top + bottom - kh, width + left + right - kw
    if min(kh, kw) < 1 or min(down, across) < 0:
        raise UsageError(
            f"Expected kernels of at least 1 that fit into the padded pictures; got {w.shape} and {x.shape}"
        )
    found = _result(out, (count, outputs, down // stride[0] + 1, across // stride[1] + 1), (x, w))
    if found.size:
        _engine.convolve(pictures, kernels, stride, padding, found, out is not None)
    return found


def _readable(words: Words, name: str) -> Words:
    if words.dtype != np.uint64:
        raise UsageError(f"Expected {name} of uint64, got {words.dtype}")
    return words if words.flags.aligned else words.copy()


def _result(out: Words | None, shape: tuple[int, ...], sources: tuple[Words, Words]) -> Words:
    if out is None:
        return np.empty(shape, np.uint64)
    if out.dtype != np.uint64 or out.shape != shape or not (out.flags.c_contiguous and out.flags.writeable):
        raise UsageError(
            f"Expected out to be contiguous, writable uint64 of shape {shape}, got {out.dtype} {out.shape}"
        )
    if not out.flags.aligned or any(np.may_share_memory(out, source) for source in sources):
        raise UsageError("Expected out to be aligned, and apart from what is multiplied")
    return out
