"""Certified ranges: between which values every unit of every layer lies, for all inputs of a box.

    x in [l, h] with centre c = (l + h) / 2 and radius r = (h - l) / 2
    W x + b in W c + b ± |W| r, attained in a corner

Each layer is taken by itself, so ranges grow wider than the true ones with depth, and never narrower; a calibration on
data would have it the other way round. Every bound is moved outwards by more than float64 can have rounded, here or in
`Graph.apply`.

Paper: Moore, "Interval Analysis" (1966); for networks, Gowal et al., "On the Effectiveness of Interval Bound
Propagation" (2018), equation 6. Rounding of a sum of n products: Higham, "Accuracy and Stability" (2002), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.attention import Argmax, Attention, LayerNorm, Softmax
from confide.model.graph import Graph
from confide.model.layers import (
    AveragePool,
    Conv,
    Gelu,
    Layer,
    Linear,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
    applied,
)
from confide.model.max_pool import MaxPool
from confide.model.trees import Trees

Matrix = NDArray[np.float64]

_ROUNDING = 2.0**-50  # four times what one operation rounds by, relative to its largest operand
_LEAST_OF_GELU = -0.7517915246935645  # where x Phi(x) is smallest: Phi(x) + x phi(x) = 0


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """The range of each unit of a vector.

    Args:
        low, high: float64, shape (units,), low <= high, finite.

    Raises:
        ModelError: a range that is none, or beyond float64.
    """

    low: Matrix
    high: Matrix

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not self.low.size:
            raise ModelError(f"Expected bounds of shape (units,) both, got {self.low.shape} and {self.high.shape}")
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and (self.low <= self.high).all()):
            raise ModelError("Expected finite ranges, low <= high; scale the inputs or the weights down")

    def __repr__(self) -> str:  # ranges tell about weights
        return f"Interval({len(self.low)} units)"

    @property
    def ends(self) -> tuple[float, float]:
        """Return the one range that holds every unit's."""
        return float(self.low.min()), float(self.high.max())


def intervals(graph: Graph, low: float | Matrix, high: float | Matrix) -> tuple[Interval, ...]:
    """Return the ranges of the inputs, then after each layer of a graph.

    Args:
        graph: any.
        low, high: bounds of the features, one for all or shape (features,).

    Raises:
        ModelError: bounds of another shape, or a range beyond float64.
    """
    box = input_box(graph, low, high)
    return (box, *_after_all(graph.layers, box))


def input_box(graph: Graph, low: float | Matrix, high: float | Matrix) -> Interval:
    """Return bounds of the features as an interval. Raises ModelError if they have another shape."""
    if any(np.ndim(bound) and np.shape(bound) != (graph.features,) for bound in (low, high)):
        raise ModelError(f"Expected bounds of {graph.features} features, got {np.shape(low)} and {np.shape(high)}")
    return Interval(*(np.broadcast_to(np.asarray(bound, np.float64), graph.features).copy() for bound in (low, high)))


def interval_after(layer: Layer, box: Interval) -> Interval:
    """Return the ranges of what a layer gives, one range for each unit.

    **Guarantees** that for every x of the box, the layer's exact result and its result in float64 lie in the ranges.
    They are the narrowest but for rounding, except for `Residual`, whose branches are taken as independent.

    Raises:
        ModelError: a range beyond float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # Interval refuses what is not finite
        match layer:
            case Linear() | Conv():
                return _affine(layer, box)
            case AveragePool():
                return _widened(applied(layer, box.low[None])[0], applied(layer, box.high[None])[0], layer.height)
            case MaxPool():  # rounds nothing
                return Interval(layer.apply(box.low[None])[0], layer.apply(box.high[None])[0])
            case Relu() | Sigmoid() | Tanh():
                return _widened(applied(layer, box.low), applied(layer, box.high))
            case Square() | Gelu() | Polynomial():
                return _through_turns(layer, box, _turns(layer))
            case Residual(body, shortcut):
                one, other = (_after_all(chain, box)[-1] if chain else box for chain in (body, shortcut))
                return _widened(one.low + other.low, one.high + other.high)
            case Softmax() | LayerNorm() | Attention() | Argmax():
                return _compared(layer, box)
            case Trees():
                return _leaves(layer, box)


def _after_all(layers: Sequence[Layer], box: Interval) -> list[Interval]:
    found: list[Interval] = []
    for layer in layers:
        box = interval_after(layer, box)
        found.append(box)
    return found


def _widened(low: Matrix, high: Matrix, terms: int = 1) -> Interval:
    """Return [low, high] moved outwards by the rounding of `terms` additions of numbers of its size."""
    slack = _ROUNDING * terms * np.maximum(np.abs(low), np.abs(high))
    return Interval(low - slack, high + slack)


def _affine(layer: Linear | Conv, box: Interval) -> Interval:
    without = np.zeros_like(layer.bias)
    absolute = replace(layer, weight=np.abs(layer.weight), bias=without)
    radius = (box.high - box.low) / 2
    centre = applied(layer, (box.low + radius)[None])[0]
    reach = applied(absolute, radius[None])[0]
    largest = np.maximum(np.abs(box.low), np.abs(box.high))
    sizes = applied(replace(absolute, bias=np.abs(layer.bias)), largest[None])[0]  # what terms of a sum come to at most
    slack = _ROUNDING * (layer.weight[0].size + 4) * sizes
    return Interval(centre - reach - slack, centre + reach + slack)


def _turns(layer: Square | Gelu | Polynomial) -> Matrix:
    """Return every x at which a layer may turn from falling to rising or back.

    The real parts of complex roots are among them: a double root, rounded, is a pair of such. What is no turn does no
    harm, its value is attained.
    """
    match layer:
        case Square():
            return np.zeros(1)
        case Gelu():
            return np.array([_LEAST_OF_GELU])
        case Polynomial(coefficients, low, high):
            slope = np.polynomial.chebyshev.chebder(coefficients)
            kept = np.flatnonzero(slope)
            roots = np.polynomial.chebyshev.chebroots(slope[: kept[-1] + 1]) if kept.size else np.zeros(0)
            return (low + high) / 2 + np.real(roots) * (high - low) / 2


def _through_turns(layer: Square | Gelu | Polynomial, box: Interval, turns: Matrix) -> Interval:
    """Return the ranges of an elementwise function: its values at the ends of each unit's range and at turns inside."""
    at_ends = np.stack([applied(layer, box.low), applied(layer, box.high)])
    low: Matrix = at_ends.min(axis=0)
    high: Matrix = at_ends.max(axis=0)
    for turn in turns.tolist():
        value = float(applied(layer, np.array([turn]))[0])
        inside = (box.low < turn) & (turn < box.high)
        np.minimum(low, value, out=low, where=inside)
        np.maximum(high, value, out=high, where=inside)
    if isinstance(layer, Polynomial):
        reach = np.maximum(np.abs(box.low), np.abs(box.high))
        return _polynomial_slack(layer, low, high, reach)
    floor = np.where(low >= 0, 0.0, -np.inf) if isinstance(layer, Square) else -np.inf
    found = _widened(low, high, 4)
    return Interval(np.maximum(found.low, floor), found.high)


def _polynomial_slack(layer: Polynomial, low: Matrix, high: Matrix, reach: Matrix) -> Interval:
    """Return [low, high] moved outwards by the rounding of Clenshaw's sum and of the map to [-1, 1].

    The map rounds u by a few units of the last place of the largest |x| over half the interval's size; within [-1, 1] a
    polynomial moves by at most degree² times its coefficients' sum for a unit of u (Markov), and Clenshaw's sum rounds
    by no more. Outside, values themselves are as large as what they round by.
    """
    half = (layer.high - layer.low) / 2
    scale = 1 + (reach + abs(layer.low) + abs(layer.high)) / half
    sizes = np.maximum(np.abs(layer.coefficients).sum(), np.maximum(np.abs(low), np.abs(high)))
    slack = 16 * _ROUNDING * (layer.degree + 1) ** 2 * scale * sizes
    return Interval(low - slack, high + slack)


def _compared(layer: Softmax | LayerNorm | Attention | Argmax, box: Interval) -> Interval:
    """Return the ranges of what compares numbers with each other.

    A softmax lies in [0, 1]. Of n numbers none is further from their mean than sqrt(n - 1) deviations (Samuelson). What
    attention gives is a mean of values of its channel.
    """
    match layer:
        case Softmax():
            return Interval(np.zeros(layer.inputs), np.full(layer.inputs, 1.0 + _ROUNDING * layer.channels))
        case LayerNorm(gain, bias, positions):
            reach = np.abs(gain) * np.sqrt(max(len(gain) - 1, 0))
            low, high = (np.repeat(bias + side * reach, positions) for side in (-1, 1))
            slack = _ROUNDING * (len(gain) + 8) * np.repeat(np.abs(bias) + reach, positions)
            return Interval(low - slack, high + slack)
        case Attention():
            values = [end[-layer.outputs :].reshape(-1, layer.positions) for end in (box.low, box.high)]
            low, high = (np.repeat(end, layer.positions) for end in (values[0].min(axis=1), values[1].max(axis=1)))
            return _widened(low, high, 4 * layer.positions)
        case Argmax():
            return Interval(np.zeros(1), np.full(1, layer.channels - 1.0))


def _leaves(trees: Trees, box: Interval) -> Interval:
    """Return the sums of the least and the largest leaf of each tree that some record of the box may reach.

    A node is judged by itself: that a path asks one feature twice is not used.
    """
    low, high = np.zeros(len(trees.feature)), np.zeros(len(trees.feature))

    def of(child: int, bounds: Matrix) -> float:
        return float(bounds[child] if child >= 0 else trees.value[-1 - child])

    for node in range(len(trees.feature) - 1, -1, -1):  # children come after their parent
        feature, threshold = int(trees.feature[node]), float(trees.threshold[node])
        sides = [int(trees.left[node])] if box.low[feature] <= threshold else []
        sides += [int(trees.right[node])] if box.high[feature] > threshold else []
        low[node] = min(of(side, low) for side in sides)
        high[node] = max(of(side, high) for side in sides)
    ends = [np.array([of(int(root), bounds) for root in trees.roots]) for bounds in (low, high)]
    sums = [trees.offset + np.bincount(trees.outputs, end, len(trees.offset)) for end in ends]
    largest = np.abs(trees.offset) + np.bincount(trees.outputs, np.abs(ends).max(axis=0), len(trees.offset))
    slack = _ROUNDING * (len(trees.roots) + 1) * largest
    return Interval(sums[0] - slack, sums[1] + slack)
