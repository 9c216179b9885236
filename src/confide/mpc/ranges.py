"""How large values become before each layer: what windows of signs and intervals of smooth functions are made from.

A window that is too narrow makes a wrong result, never a leak. There are two sources. Intervals hold for every input of
a box, and are wide after many layers. Calibration on public rows is narrow, and holds for inputs like those rows: it
leaves a margin. Both see the weights; what becomes public of them are whole numbers of bits and rounded bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.graph import (
    Attention,
    Conv,
    Graph,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    Problem,
    Relu,
    Residual,
    Softmax,
    Square,
    applied,
)
from confide.model.intervals import Interval, input_box, interval_after
from confide.mpc.architecture import MOST_BITS, WHOLE_BITS, computed, named

Matrix = NDArray[np.float64]

#: By how much calibrated ranges are widened.
MARGIN = 4.0
#: Interval of smooth functions where no range is known.
SMOOTH = (-8.0, 8.0)
#: |values| of products stay below 2^PRODUCT_BITS: at scale 32 they fit the 62 bits that a truncation takes.
PRODUCT_BITS = 29

_NARROW = "scale the weights down, or normalise in training"


@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges before and after layers.

    Args:
        before, after: by the name of a layer, lowest and highest value that goes in and comes out.
        inside: what lies within a layer: of softmax and attention (0, how far numbers of a row lie apart), of scores
            before their factor; of layer norms the lowest and highest variance.
        narrow: whether windows are as narrow as the ranges allow; else `WHOLE_BITS` where that is enough.
    """

    before: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    after: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    narrow: bool = False
    inside: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def __repr__(self) -> str:  # ranges tell about weights
        return f"Ranges({len(self.before)} layers)"

    def needed_bits(self, name: str) -> int:
        """Return the least k with |values before a layer| < 2^k; the usual one where no range is known."""
        if name not in self.before:
            return WHOLE_BITS
        return max(1, math.frexp(max(map(abs, self.before[name])))[1])

    def whole_bits(self, name: str) -> int:
        """Return the window of a layer."""
        needed = self.needed_bits(name)
        return min(MOST_BITS, needed if self.narrow else max(needed, WHOLE_BITS))

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the interval of a smooth layer: whole numbers."""
        low, high = self.before.get(name, SMOOTH)
        return math.floor(low), math.floor(high) + 1.0

    def spread(self, name: str) -> float:
        """Return how far numbers that a layer compares lie apart, a whole number.

        Raises:
            ModelError: nothing is known of it.
        """
        return math.floor(self._inside(name)[1]) + 1.0

    def variance(self, name: str) -> tuple[float, float]:
        """Return bounds of a layer norm's variances, powers of 2 to a quarter of a bit.

        Raises:
            ModelError: nothing is known of them.
        """
        low, high = self._inside(name)
        least = 2.0 ** (math.floor(4 * math.log2(low)) / 4) if low > 0 else 0.0
        return least, 2.0 ** (math.floor(4 * math.log2(max(high, 2.0**-60)) + 1) / 4)

    def _inside(self, name: str) -> tuple[float, float]:
        if name not in self.inside:
            raise ModelError(
                f"Expected ranges of layer {name}; calibrate with rows: --calibrate, or confide.mpc.ranges.by_rows"
            )
        return self.inside[name]

    def problems(self, graph: Graph) -> list[Problem]:
        """Return the layers whose values do not fit: into a window, or into the 62 bits of a product."""
        found: list[Problem] = []
        for name, layer in named(computed(graph)):
            where = f"layer {name} ({type(layer).__name__})"
            if isinstance(layer, Relu | MaxPool) and self.needed_bits(name) > MOST_BITS:
                found.append(Problem(where, f"values of 2^{self.needed_bits(name)} before a sign", _NARROW))
            largest = max(map(abs, self.after.get(name, (0.0, 0.0))))
            if isinstance(layer, Linear | Conv | Square | Residual) and largest >= 2.0**PRODUCT_BITS:
                found.append(Problem(where, f"values of 2^{math.log2(largest):.0f}, 62 bits with fractions", _NARROW))
        return found


def by_intervals(graph: Graph, low: float | Matrix, high: float | Matrix, *, narrow: bool = False) -> Ranges:
    """Return ranges that hold for every input of a box.

    Args:
        low, high: bounds of the features, one for all or shape (features,).

    Raises:
        ModelError: bounds of another shape, or a range beyond float64.
    """
    before: dict[str, tuple[float, float]] = {}
    after: dict[str, tuple[float, float]] = {}
    inside: dict[str, tuple[float, float]] = {}

    def through(layers: tuple[Layer, ...], prefix: str, box: Interval) -> Interval:
        for number, layer in enumerate(layers):
            name = f"{prefix}{number}"
            before[name] = box.ends
            if (within := _within_box(layer, box)) is not None:
                inside[name] = within
            if isinstance(layer, Residual):
                through(layer.body, f"{name}.body.", box)
                through(layer.shortcut, f"{name}.shortcut.", box)
            box = interval_after(layer, box)
            after[name] = box.ends
        return box

    through(computed(graph), "", input_box(graph, low, high))
    return Ranges(before, after, narrow, inside)


def by_rows(graph: Graph, rows: Matrix, *, margin: float = MARGIN, narrow: bool = False) -> Ranges:
    """Return ranges of the values that rows give, times a margin; its root for what lies inside layers.

    Args:
        rows: float64, shape (rows, features): public ones, or a sample that may become known to within bits of windows.
        margin: at least 1.

    Raises:
        ModelError: rows of another shape or not finite, or a margin below 1.
    """
    if rows.ndim != 2 or rows.shape[1] != graph.features or not len(rows) or not np.isfinite(rows).all():
        raise ModelError(f"Expected finite rows of shape (rows, {graph.features}), got {rows.shape}")
    if not 1 <= margin < math.inf:
        raise ModelError(f"Expected margin={margin} of at least 1")
    before: dict[str, tuple[float, float]] = {}
    after: dict[str, tuple[float, float]] = {}
    inside: dict[str, tuple[float, float]] = {}

    def seen(x: Matrix) -> tuple[float, float]:
        return margin * min(float(x.min()), 0.0), margin * max(float(x.max()), 0.0)

    def through(layers: tuple[Layer, ...], prefix: str, x: Matrix) -> Matrix:
        for number, layer in enumerate(layers):
            name = f"{prefix}{number}"
            before[name] = seen(x)
            if (within := _within_rows(layer, x)) is not None:
                inside[name] = within[0] / math.sqrt(margin), within[1] * math.sqrt(margin)
            if isinstance(layer, Residual):
                x = through(layer.body, f"{name}.body.", x) + through(layer.shortcut, f"{name}.shortcut.", x)
            else:
                x = applied(layer, x)
            after[name] = seen(x)
        return x

    through(computed(graph), "", np.asarray(rows, np.float64))
    return Ranges(before, after, narrow, inside)


def _within_rows(layer: Layer, x: Matrix) -> tuple[float, float] | None:
    """Return what `Ranges.inside` says of a layer whose inputs are x, None where it says nothing."""
    match layer:
        case Softmax(channels, positions):
            values = x.reshape(-1, channels, positions)
            return 0.0, float(np.ptp(values, axis=1).max())
        case Attention(channels, positions, heads):
            parts = x.reshape(len(x), 3, heads, channels // heads, positions)
            scores = parts[:, 0].swapaxes(-1, -2) @ parts[:, 1]
            return 0.0, float(np.ptp(scores, axis=-1).max())
        case LayerNorm():
            variances = x.reshape(-1, layer.channels, layer.positions).var(axis=1)
            return float(variances.min()), float(variances.max())
        case _:
            return None


def _within_box(layer: Layer, box: Interval) -> tuple[float, float] | None:
    """Return what `Ranges.inside` says of a layer for every input of a box."""
    match layer:
        case Softmax(channels, positions):
            low, high = (end.reshape(channels, positions) for end in (box.low, box.high))
            return 0.0, float((high.max(axis=0) - low.min(axis=0)).max())
        case Attention(channels, positions, heads):
            reach = np.maximum(np.abs(box.low), np.abs(box.high)).reshape(3, heads, channels // heads, positions)
            return 0.0, 2 * float((reach[0].swapaxes(-1, -2) @ reach[1]).max())
        case LayerNorm():
            low, high = (end.reshape(layer.channels, layer.positions) for end in (box.low, box.high))
            return 0.0, float(((high.max(axis=0) - low.min(axis=0)) / 2).max()) ** 2  # Popoviciu
        case _:
            return None
