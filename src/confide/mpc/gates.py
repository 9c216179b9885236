"""The linear operations, on whatever stands for a value: an opened value, a mask, a share, or a share that is zero.

Whoever takes part does the same thing to its own array, so dealer, parties and tests share these rules. `None` stands
for a share of zeros: it costs nothing and stays None as long as it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.mpc.operations import (
    Add,
    Broadcast,
    Concatenate,
    Convolve,
    MatMul,
    Multiply,
    Reshape,
    Shape,
    Slice,
    Subtract,
    Sum,
    Times,
    Transpose,
)
from confide.mpc.products import convolve, matmul

Words = NDArray[np.uint64]

_WORD = (1 << 64) - 1

#: Operations that only move elements, of words and of bits alike.
Moving = Reshape | Transpose | Slice | Broadcast
#: Operations that `linear` applies to each part of a value alone.
Linear = Add | Subtract | Times | Sum | Concatenate | Reshape | Transpose | Slice | Broadcast


def word(number: int) -> np.uint64:
    """Return an integer mod 2^64."""
    return np.uint64(number & _WORD)


def moved(operation: Moving, values: NDArray[Any]) -> NDArray[Any]:
    """Return the elements in their new places: a view where there is one."""
    match operation:
        case Reshape(_, shape):
            return values.reshape(shape)
        case Transpose(_, axes):
            return values.transpose(axes)
        case Slice(_, start, stop, step):
            return values[tuple(slice(a, b, s) for a, b, s in zip(start, stop, step, strict=True))]
        case Broadcast(_, shape):
            return np.broadcast_to(values, shape)


def linear(operation: Linear, parts: Sequence[Words | None], shapes: Sequence[Shape]) -> Words | None:
    """Return what a linear operation makes of one part of each operand; None if all of it is zero.

    Args:
        parts: uint64, one for each operand; None stands for zeros.
        shapes: of the operands.
    """
    if all(part is None for part in parts):
        return None
    first = parts[0]
    match operation:
        case Add():
            second = parts[1]
            if first is None or second is None:
                return second if first is None else first
            return np.add(first, second)
        case Subtract():
            second = parts[1]
            if second is None:
                return first
            return np.negative(second) if first is None else np.subtract(first, second)
        case Concatenate(_, axis):
            filled = [
                np.zeros(shape, np.uint64) if part is None else part for part, shape in zip(parts, shapes, strict=True)
            ]
            return np.concatenate(filled, axis=axis)
        case _:
            assert first is not None
            return _single(operation, first)


def _single(operation: Linear, values: Words) -> Words:
    match operation:
        case Times(_, by, _):
            return np.multiply(values, word(by))
        case Sum(_, axis):
            return np.asarray(values.sum(axis=axis, dtype=np.uint64))
        case Reshape() | Transpose() | Slice() | Broadcast():
            return moved(operation, values)
        case Add() | Subtract() | Concatenate():
            raise AssertionError("two operands or more")


Product = MatMul | Convolve | Multiply


def product(operation: Product, a: Words, b: Words, *, out: Words | None = None) -> Words:
    """Return the product of two arrays mod 2^64, added to what `out` holds if it is given."""
    match operation:
        case MatMul(_, _, transpose_a, transpose_b):
            return matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b, out=out)
        case Convolve(_, _, stride, padding):
            return convolve(a, b, stride=stride, padding=padding, out=out)
        case Multiply():
            found = np.multiply(a, b)
            return found if out is None else np.add(out, found, out=out)


def product_sum(operation: Product, pairs: Sequence[tuple[Words | None, Words | None]]) -> Words | None:
    """Return the sum of several products; a factor None is zero, and so is what comes of nothing else."""
    total: Words | None = None
    for a, b in pairs:
        if a is not None and b is not None:
            total = product(operation, a, b, out=total)
    return total
