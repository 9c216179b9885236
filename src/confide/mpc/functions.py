"""Functions that are no single operation: smooth ones, softmax, layer normalisation, attention, argmax, trees.

Each takes a builder of programs and numbers of its operations, and gives the number of the result. Bounds are of real
numbers and come from a calibration or from intervals; like the windows of signs they are public, and beyond them a
result is wrong while nothing leaks.

    function        rounds, from an OPEN value on                 what it costs offline beside masks
    smooth          0; its result has scale 48                    2 m cosines for each number
    maximum         2 for each halving                            a sign and a selection for each comparison
    softmax         2 for each halving, and 3                     the same, an exponential for each number, a reciprocal
    layer norm      3, from scale 16 on                           a reciprocal root for each position
    trees           2 + 1 for each level                          a sign for each node

A value that was opened at a fine scale is truncated and opened again before the next product (`finer`).

Source: maxima by tournament and softmax less the maximum are the usual ones (SoK ePrint 2025/1679, softmax table); that
the exponential, the reciprocal and its root are Fourier series of a masked value is ours (`periodic`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.mpc.operations import (
    SCALE,
    Add,
    AnyOperation,
    Broadcast,
    Concatenate,
    Kind,
    MatMul,
    Multiply,
    Number,
    Open,
    Periodic,
    Reshape,
    Select,
    Shape,
    Shift,
    Sign,
    Slice,
    Subtract,
    Sum,
    Times,
    Transpose,
    Truncate,
    Value,
)
from confide.mpc.periodic import Series, fit
from confide.mpc.series import ERROR, bits_of, reciprocal_series

Matrix = NDArray[np.float64]
Function = Callable[[Matrix], Matrix]

#: Low bits that a tree's comparison does not look at: thresholds lie half a unit of an input, 2^15, above what is left.
_TREE_DROP = 15


class Builder(Protocol):
    """What programs are written with."""

    def __call__(self, operation: AnyOperation) -> int:
        """Add an operation and return its number."""
        ...

    def value(self, number: int) -> Value:
        """Return what an operation makes."""
        ...


def opened(build: Builder, a: int) -> int:
    """Return `a` OPEN: itself, or one round."""
    return a if build.value(a).kind is Kind.OPEN else build(Open(a))


def truncated(build: Builder, a: int, scale: int = SCALE) -> int:
    """Return `a` at a coarser scale, SHARED; one round if it is SHARED and finer."""
    bits = build.value(a).scale - scale
    return build(Truncate(opened(build, a), bits)) if bits else a


def finer(build: Builder, a: int, scale: int = SCALE) -> int:
    """Return `a` OPEN at a coarser scale: up to two rounds."""
    return opened(build, truncated(build, a, scale))


def smooth(build: Builder, a: int, function: Function, low: float, high: float, *, error: float = ERROR) -> int:
    """Return a smooth function of `a`, SHARED at scale 48.

    Args:
        low, high: bounds of `a`.
        error: largest error on them.

    Raises:
        ModelError: no series is as near.
    """
    a = opened(build, a)
    return periodic(build, a, fit(function, low, high, error=error, scale=build.value(a).scale))


def periodic(build: Builder, a: int, series: Series) -> int:
    """Return a series of `a`, SHARED at scale 48."""
    return build(Periodic(opened(build, a), series.period, series.cosines, series.sines))


# --- comparisons ------------------------------------------------------------------------------------------------------


def maximum(build: Builder, a: int, window: int, drop: int) -> int:
    """Return the largest of `a` along its last axis, which keeps size 1; OPEN. Two rounds for each halving.

    Args:
        window, drop: of the signs of differences.
    """
    a = opened(build, a)
    while (count := build.value(a).shape[-1]) > 1:
        half = count // 2
        left, right = _part(build, a, 0, 2 * half, 2), _part(build, a, 1, 2 * half, 2)
        difference = build(Subtract(left, right))
        bit = build(Sign(difference, window, drop))
        larger = build(Add(build(Select(bit, difference)), right))
        a = _with_odd(build, build(Open(larger)), a, count)
    return a


def argmax(build: Builder, a: int, window: int, drop: int) -> int:
    """Return the place of the largest of `a` along its last axis, the first of several, which keeps size 1.

    SHARED at scale 0. Neighbours are compared first, so a winner's place within its block follows from one bit:
    place = bit ? left : right + size of the left block.
    """
    a, size = opened(build, a), 1
    place: int | None = None
    while (count := build.value(a).shape[-1]) > 1:
        half = count // 2
        left, right = _part(build, a, 0, 2 * half, 2), _part(build, a, 1, 2 * half, 2)
        difference = build(Subtract(left, right))
        bit = build(Sign(difference, window, drop))
        if place is None:
            chosen = build(Shift(build(Times(build(Number(bit)), -1)), 1))
            last = build(Times(_part(build, chosen, 0, 1, 1), 0))
        else:
            last = _part(build, place, count - 1, count, 1)
            one, other = _part(build, place, 0, 2 * half, 2), build(Shift(_part(build, place, 1, 2 * half, 2), size))
            apart = build(Subtract(one, other))
            chosen = build(Add(build(Select(bit, build(Open(apart)))), other))
        if count % 2:
            chosen = build(Concatenate((chosen, last), len(build.value(chosen).shape) - 1))
        place, size = chosen, 2 * size
        if count == 2:  # nobody asks for the largest itself
            break
        larger = build(Open(build(Add(build(Select(bit, difference)), right))))
        a = _with_odd(build, larger, a, count)
    return place if place is not None else build(Times(a, 0))


def _part(build: Builder, a: int, start: int, stop: int, step: int) -> int:
    """Return a slice along the last axis."""
    shape = build.value(a).shape
    rest = shape[:-1]
    return build(Slice(a, (0,) * len(rest) + (start,), (*rest, stop), (1,) * len(rest) + (step,)))


def _with_odd(build: Builder, winners: int, a: int, count: int) -> int:
    """Return the winners of a round, and whoever had no opponent in it."""
    if count % 2 == 0:
        return winners
    return build(Concatenate((winners, _part(build, a, count - 1, count, 1)), len(build.value(a).shape) - 1))


# --- what compares the numbers of a record ----------------------------------------------------------------------------


def softmax(build: Builder, a: int, *, powers: Series, inverse: Series, window: int, drop: int) -> int:
    """Return exp(factor a) over its sum along the last axis, SHARED at scale 32.

    Args:
        powers: `series.power_series` of the largest minus the smallest number of a row, at the scale of `a`.
        inverse: `series.reciprocal_series` of the row's size.
        window, drop: of the signs of differences.
    """
    a = opened(build, a)
    shape = build.value(a).shape
    below = build(Subtract(a, build(Broadcast(maximum(build, a, window, drop), shape))))
    return over_sum(build, periodic(build, below, powers), inverse)


def divided(build: Builder, powers: int, count: int) -> int:
    """Return positive numbers at scale 48 over their sum along the last axis, SHARED at scale 32: three rounds.

    The largest is 1, so the sum lies between 1 and `count`.
    """
    return over_sum(build, powers, reciprocal_series(count))


def over_sum(build: Builder, powers: int, inverse: Series) -> int:
    """Return what `divided` does, with its series given."""
    shape = build.value(powers).shape
    total = build(Reshape(build(Sum(powers, len(shape) - 1)), (*shape[:-1], 1)))
    inverted = build(Broadcast(finer(build, periodic(build, total, inverse)), shape))
    return build(Multiply(finer(build, powers), inverted))


def normalised(build: Builder, a: int, *, root: Series, scale: int, shift: int, gain: int | None = None) -> int:
    """Return gain (a - mean) / sqrt(variance + epsilon) over the last axis, SHARED.

    n a - sum has no rounding, and its squares add up to n^3 times the variance, of which the series takes the root. The
    gain is multiplied meanwhile, and takes no rounds of its own.

    Args:
        a: OPEN or SHARED, brought to scale 16.
        root, scale, shift: what `series.root_series` gave.
        gain: OPEN at scale 16, shape (size of the last axis,); None for 1.
    """
    a = finer(build, a)
    shape = build.value(a).shape
    count, extra = shape[-1], bits_of(shape[-1])
    total = build(Reshape(build(Sum(a, len(shape) - 1)), (*shape[:-1], 1)))
    centred = build(Subtract(build(Times(a, count)), build(Broadcast(total, shape))))
    squares = build(Sum(build(Multiply(centred, centred)), len(shape) - 1))
    # A scale of 32 + 3 extra bits makes of n^3 the variance times n^3 / 2^(3 extra), a number near the variance.
    fine = build(Times(squares, 1, 3 * extra)) if extra else squares
    if scale < build.value(fine).scale:
        fine = truncated(build, fine, scale)
    inverse = finer(build, periodic(build, fine, root), SCALE + 2 - max(shift - 2, 0))
    inverse = build(Times(inverse, 1 << max(-shift, 0), max(shift, 0)))
    inverse = build(Reshape(inverse, (*shape[:-1], 1)))
    if gain is not None:
        centred = finer(build, build(Multiply(centred, build(Broadcast(gain, shape)))))
    # centred is n times too large: a scale that is `extra` bits finer makes it n / 2^extra, and the rest is a factor.
    product = build(Multiply(centred, build(Broadcast(inverse, shape))))
    return build(Times(build(Times(product, 1, extra)), round(2**12 * 2**extra / count), 12))


def attention(
    build: Builder,
    queries: int,
    keys: int,
    values: int,
    *,
    powers: Series,
    inverse: Series,
    window: int,
    drop: int,
) -> int:
    """Return attention of OPEN queries, keys and values (rows, heads, size, positions) at scale 16: the same shape.

    Args:
        powers: `series.power_series` of the largest minus the smallest score of a row, at scale 32, with the factor
            1 / sqrt(size).
        inverse: `series.reciprocal_series` of the positions.
        window, drop: of the signs of differences of scores at scale 32.

    Returns:
        SHARED at scale 32.
    """
    scores = build(Open(build(MatMul(queries, keys, transpose_a=True))))
    weights = finer(build, softmax(build, scores, powers=powers, inverse=inverse, window=window, drop=drop))
    return build(MatMul(values, weights, transpose_b=True))


# --- trees ------------------------------------------------------------------------------------------------------------


def trees(
    build: Builder, x: int, *, selection: int, thresholds: int, leaves: int, count: int, depth: int, window: int = 44
) -> int:
    """Return the sums of the leaves that records reach in `count` perfect trees, SHARED at the scale of the leaves.

    Nobody learns which feature a node compares, nor which way a record goes; the number of trees and their depth are
    public, and a tree that is not perfect is made so.

    Args:
        x: OPEN, (rows, features), scale 16.
        selection: OPEN, (features, nodes), scale 16: 1 where a node compares a feature. Nodes lie level after level, in
            a level tree after tree, in a tree from left to right.
        thresholds: SHARED, (nodes,), scale 32; a record goes left if its feature is not above. Odd multiples of 2^-17
            decide every input rightly, which is a multiple of 2^-16.
        leaves: OPEN, (count 2^depth, outputs): values, tree after tree.
        window: bits of a threshold less a feature, at scale 32.
    """
    rows = build.value(x).shape[0]
    nodes = count * ((1 << depth) - 1)
    compared = build(MatMul(x, selection))
    difference = build(Subtract(build(Broadcast(thresholds, (rows, nodes))), compared))
    bit = build(Number(build(Sign(build(Open(difference)), window, _TREE_DROP))))
    start, reached = count, build(Reshape(_part(build, bit, 0, count, 1), (rows, count, 1)))
    other = build(Shift(build(Times(reached, -1)), 1))
    reached = _side_by_side(build, reached, other)
    for level in range(1, depth):
        size = count << level
        here = build(Reshape(_part(build, bit, start, start + size, 1), (rows, count, 1 << level)))
        went = build(Open(reached))
        left = build(Multiply(went, build(Open(here))))
        reached = _side_by_side(build, left, build(Subtract(reached, left)))
        start += size
    return build(MatMul(build(Open(build(Reshape(reached, (rows, count << depth))))), leaves))


def _side_by_side(build: Builder, left: int, right: int) -> int:
    """Return (rows, count, 2 n) of two (rows, count, n): left and right children next to each other."""
    rows, count, size = build.value(left).shape
    wide: Shape = (rows, count, size, 1)
    both = build(Concatenate((build(Reshape(left, wide)), build(Reshape(right, wide))), 3))
    return build(Reshape(both, (rows, count, 2 * size)))


def turned(build: Builder, a: int) -> int:
    """Return `a` with its last two axes swapped."""
    axes = len(build.value(a).shape)
    return build(Transpose(a, (*range(axes - 2), axes - 1, axes - 2)))
