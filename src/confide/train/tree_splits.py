"""Which split is best, from sums of gradients: the same sums give the same bits on every machine.

    symbol   here        meaning
    G, H     sums        of the first and second derivatives of the loss over a node's records
    lambda   ridge       penalty on the square of a leaf's value
    w        values      of a leaf, -G / (H + lambda), before the learning rate

A split gains (G_l^2 / (H_l + lambda) + G_r^2 / (H_r + lambda) - G^2 / (H + lambda)) / 2. A column that the model may
only rise with allows no split whose right side is below its left; what lies below such a split stays on its side of the
middle between the two.

Source: Chen, Guestrin, XGBoost: a scalable tree boosting system (2016), equations 5 to 7; the bounds of monotone
columns as in its implementation's documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.train.tree_columns import Candidates

try:
    import confide._native as _native
except ImportError:
    _native = None

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty:
    """What a split must be worth.

    Args:
        ridge: on the square of a leaf's value, >= 0.
        least_hessian: second derivatives that each side has at least, > 0.
        least_gain: what a split gains at least, >= 0.
    """

    ridge: float
    least_hessian: float
    least_gain: float

    def value(self, sums: Matrix, bounds: Matrix) -> Matrix:
        """Return the values of leaves.

        Args:
            sums: (G, H) in the last axis.
            bounds: (lowest, highest) in the last axis.
        """
        value = -sums[..., 0] / np.maximum(sums[..., 1] + self.ridge, 1e-12)
        return np.clip(value, bounds[..., 0], bounds[..., 1])

    def loss(self, sums: Matrix, value: Matrix) -> Matrix:
        """Return the change of the penalised loss that leaves with these values make."""
        return sums[..., 0] * value + 0.5 * (sums[..., 1] + self.ridge) * value * value


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The best split of each node.

    Args:
        split: int64, shape (nodes,): the candidate, or -1 where none is worth it.
        gain: float64, shape (nodes,).
        value: float64, shape (nodes,): of each node as a leaf.
        sides: float64, shape (nodes, 2): of its two sides as leaves, left and right.
        weights: float64, shape (nodes, 2): sums of second derivatives of both sides.
        bounds: float64, shape (nodes, 2, 2): of what lies below each side.
    """

    split: Indices
    gain: Matrix
    value: Matrix
    sides: Matrix
    weights: Matrix
    bounds: Matrix


def best(candidates: Candidates, sums: Matrix, first_column: int, bounds: Matrix, penalty: Penalty) -> Chosen:
    """Return the best split of each node.

    Args:
        candidates: of all columns.
        sums: float64, shape (nodes, codes, 2): (G, H) of each code of each column.
        first_column: how many codes the first column has, whose sums add up to the node's.
        bounds: float64, shape (nodes, 2): lowest and highest value that a leaf below each node may have.
        penalty: what a split must be worth.
    """
    whole: Matrix = sums[:, :first_column].sum(axis=1)
    value = penalty.value(whole, bounds)
    if not len(candidates.low):
        nothing = np.full(len(sums), -1, np.int64)
        either = np.stack([value, value], axis=1)
        return Chosen(nothing, np.zeros(len(sums)), value, either, np.zeros_like(either), np.stack([bounds, bounds], 1))
    split, gain = _largest(candidates, sums, whole, bounds, penalty)
    gain = gain + penalty.loss(whole, value)
    one = _between(sums, candidates.low[split], candidates.high[split])
    right = candidates.right[split][:, None]
    sides = np.stack([np.where(right, whole - one, one), np.where(right, one, whole - one)], axis=1)
    values = penalty.value(sides, bounds[:, None])
    return Chosen(
        split=np.where(gain > penalty.least_gain, split, -1),
        gain=gain,
        value=value,
        sides=values,
        weights=sides[:, :, 1],
        bounds=_bounds_below(candidates.rises[split], values, bounds),
    )


def _between(sums: Matrix, low: Indices, high: Indices) -> Matrix:
    """Return each node's sums over its codes from `low` to below `high`, shape (nodes, 2)."""
    sides = zip(sums, low.tolist(), high.tolist(), strict=True)
    return np.stack([own[first:last].sum(axis=0) for own, first, last in sides])


def _largest(
    candidates: Candidates, sums: Matrix, whole: Matrix, bounds: Matrix, penalty: Penalty
) -> tuple[Indices, Matrix]:
    """Return the first of each node's best candidates, and minus the loss of its two leaves.

    In C++ where it was compiled and nothing is bounded: the same bits, faster.
    """
    if _native and not candidates.rises.any():
        split, gain = np.zeros(len(sums), np.int64), np.zeros(len(sums))
        low, high, ridge, least = candidates.low, candidates.high, penalty.ridge, penalty.least_hessian
        _native.best_splits(np.ascontiguousarray(sums), whole, low, high, ridge, least, split, gain)
        return np.maximum(split, 0), gain
    before = np.zeros((len(sums), sums.shape[1] + 1, 2))
    np.cumsum(sums, axis=1, out=before[:, 1:])
    gains = _gains(candidates, before, whole, bounds, penalty)
    split = gains.argmax(axis=1)
    return split, gains[np.arange(len(sums)), split]


def _gains(candidates: Candidates, before: Matrix, whole: Matrix, bounds: Matrix, penalty: Penalty) -> Matrix:
    """Return minus the loss of each candidate's two leaves, shape (nodes, splits); minus infinity where not allowed.

    Args:
        before: float64, shape (nodes, codes + 1, 2): the sums of all codes before each.
    """
    low, high = candidates.low, candidates.high
    g, h = (before[:, high, part] - before[:, low, part] for part in (0, 1))
    other_g, other_h = whole[:, :1] - g, whole[:, 1:] - h
    allowed = (h >= penalty.least_hessian) & (other_h >= penalty.least_hessian)
    free = not candidates.rises.any()
    with np.errstate(all="ignore"):  # where it is not allowed
        if free:  # a leaf's loss at its best value is -G^2 / 2 (H + lambda)
            found = (g * g / (h + penalty.ridge) + other_g * other_g / (other_h + penalty.ridge)) / 2
        else:
            one, other = (np.stack(side, axis=-1) for side in ((g, h), (other_g, other_h)))
            values = [penalty.value(side, bounds[:, None]) for side in (one, other)]
            found = -penalty.loss(one, values[0]) - penalty.loss(other, values[1])
            allowed &= candidates.rises * (values[1] - values[0]) >= 0
    return np.where(allowed, found, -np.inf)


def _bounds_below(rises: NDArray[np.int8], values: Matrix, bounds: Matrix) -> Matrix:
    """Return the bounds of the left and the right side of each split, shape (nodes, 2, 2)."""
    found = np.stack([bounds, bounds], axis=1)
    middle = values.mean(axis=1)
    rising, falling = rises > 0, rises < 0
    found[rising, 0, 1] = found[rising, 1, 0] = middle[rising]
    found[falling, 0, 0] = found[falling, 1, 1] = middle[falling]
    return found
