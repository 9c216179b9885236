"""Polynomials in place of activations: the best fit on an interval, and a whole graph's, on certified ranges.

Encrypted arithmetic adds and multiplies, so it runs ReLU, sigmoid, tanh and GELU as polynomials. A polynomial holds on
its interval alone and grows fast outside of it. `approximated` therefore takes each interval from the box of inputs
(`intervals`): no input of the box leaves it.

    f     the activation
    p     the polynomial, sum over k of c_k T_k(u), u in [-1, 1]
    E     the largest |f - p| on the interval

The best p in the largest error is the one whose error takes E with alternating signs degree + 2 times (Chebyshev), and
Remez's exchange finds it: solve for alternating errors at degree + 2 points, move the points to the error's peaks,
repeat. It runs on a dense grid here, which holds the points where an activation bends.

Paper: Remez (1934); as in Pachon and Trefethen, "Barycentric-Remez algorithms" (BIT 2009), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.folded import Scale, folded
from confide.model.graph import Graph
from confide.model.intervals import Interval, input_box, interval_after
from confide.model.layers import (
    Gelu,
    Layer,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
    applied,
    chebyshev,
    width_after,
)

Matrix = NDArray[np.float64]

#: What a polynomial can stand for.
Activation = Relu | Sigmoid | Tanh | Gelu
#: Largest degree that is fitted: beyond it the exchange ends in rounding.
MOST_FITTED_DEGREE = 63

_GRID = 1 << 13  # points per unit of degree are many: 128 at the largest one
_EXCHANGES = 60
_ENOUGH = 1e-6  # how near the exchange must come to the best error, relative to it
_NOTHING = 1e-6  # a constant that training in float32 cannot tell from 0, relative to the others
_NARROWEST = 1e-6  # an interval is widened to this size, relative to its ends or to 1


@dataclass(frozen=True, slots=True)
class Fit:
    """One activation and the polynomial in its place.

    Args:
        layer: where it is in the graph: "3", or "3.body.1" inside a residual block.
        activation: "Relu", "Sigmoid", "Tanh" or "Gelu".
        low, high: the certified range of its inputs.
        degree: of the polynomial.
        largest_error: on a dense grid of the range.
    """

    layer: str
    activation: str
    low: float
    high: float
    degree: int
    largest_error: float

    def __str__(self) -> str:
        interval = f"[{self.low:.3g}, {self.high:.3g}]"
        return (
            f"layer {self.layer}: {self.activation} on {interval}, degree {self.degree}, error {self.largest_error:.2g}"
        )


def approximated(graph: Graph, low: float | Matrix, high: float | Matrix, degree: int) -> tuple[Graph, tuple[Fit, ...]]:
    """Return a graph with polynomials in place of its activations, and what each is.

    A sigmoid at the end stays, because it runs at the client.

    Args:
        graph: any without trees.
        low, high: bounds of the features, one for all or shape (features,).
        degree: of every polynomial, 1 to 63.

    Raises:
        ModelError: a degree out of range, or ranges beyond float64: the activations need a narrower range first
            (`confide fit-polynomial`).
    """
    last = graph.layers[-1]
    inner = graph.layers[:-1] if isinstance(last, Sigmoid) else graph.layers
    layers, _, fits = _replaced(inner, input_box(graph, low, high), degree, "")
    return replace(graph, layers=(*layers, *graph.layers[len(inner) :])), tuple(fits)


def _replaced(
    layers: Sequence[Layer], box: Interval, degree: int, where: str
) -> tuple[tuple[Layer, ...], Interval, list[Fit]]:
    done: list[Layer] = []
    fits: list[Fit] = []
    for number, layer in enumerate(layers):
        name = f"{where}{number}"
        if isinstance(layer, Relu | Sigmoid | Tanh | Gelu):
            made, error = fit(layer, *box.ends, degree)
            fits.append(Fit(name, type(layer).__name__, made.low, made.high, degree, error))
        elif isinstance(layer, Residual):
            body, _, inside = _replaced(layer.body, box, degree, f"{name}.body.")
            shortcut, _, beside = _replaced(layer.shortcut, box, degree, f"{name}.shortcut.")
            made, fits = Residual(body, shortcut), [*fits, *inside, *beside]
        else:
            made = layer
        done.append(made)
        box = interval_after(made, box)
    return tuple(done), box, fits


def squared(graph: Graph) -> Graph:
    """Return a graph with squares in place of polynomials of degree two, their scales merged with the layers beside.

    a x² + b x + c is (sqrt(a) x + b / (2 sqrt(a)))² + c - b² / 4a where a > 0, and a times a square else.
    """
    return replace(graph, layers=_squared(graph.layers, graph.features))


def _squared(layers: Sequence[Layer], width: int) -> tuple[Layer, ...]:
    items: list[Layer | Scale] = []
    for layer in layers:
        if isinstance(layer, Polynomial) and layer.degree == 2 and layer.coefficients[2] != 0:
            half, middle = (layer.high - layer.low) / 2, (layer.high + layer.low) / 2
            constant, slope, bend = (float(each) for each in layer.coefficients)
            a = 2 * bend / half**2  # T_2(u) = 2 u² - 1, u = (x - middle) / half
            centre = middle - slope * half / (4 * bend)  # where the parabola turns
            rest = constant - bend - slope**2 / (8 * bend)
            root = math.sqrt(a) if a > 0 else 1.0
            rest = 0.0 if abs(rest) < _NOTHING * (abs(constant) + abs(bend) + abs(slope)) else rest
            before, after = (root, -root * centre), (1.0 if a > 0 else a, rest)
            items += [_scale(before, width), Square(), _scale(after, width)]
        elif isinstance(layer, Residual):
            items.append(Residual(_squared(layer.body, width), _squared(layer.shortcut, width)))
        else:
            items.append(layer)
        width = width_after(layer, width)
    return folded(items)


def _scale(pair: tuple[float, float], width: int) -> Scale:
    return Scale(np.full(1, pair[0]), np.full(1, pair[1]), width)


def fit(activation: Activation, low: float, high: float, degree: int) -> tuple[Polynomial, float]:
    """Return the polynomial that is nearest to an activation on [low, high], and its largest error there.

    Args:
        activation: what it stands for.
        low, high: finite, low <= high; an interval without size is widened a little.
        degree: 1 to 63.

    Returns:
        the polynomial, on the interval; the error on a dense grid, which the best polynomial of this degree undercuts
        by no more than a ten-thousandth where the exchange converged (it does but for errors near float64's rounding).

    Raises:
        ModelError: an argument out of range.
    """
    if not 1 <= degree <= MOST_FITTED_DEGREE:
        raise ModelError(f"Expected a degree from 1 to {MOST_FITTED_DEGREE}, got {degree}")
    if not (math.isfinite(high - low) and low <= high):
        raise ModelError("Expected an interval, low <= high, both finite")
    least = _NARROWEST * max(1.0, abs(low), abs(high))
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    u = _grid(low, high)
    wanted = applied(activation, (low + high) / 2 + u * (high - low) / 2)
    candidates = (_least_squares(u, wanted, degree), _exchanged(u, wanted, degree))
    errors = [float(np.abs(chebyshev(u, each) - wanted).max()) for each in candidates]
    best = int(np.argmin(errors))
    return Polynomial(candidates[best], low, high), errors[best]


def _grid(low: float, high: float) -> Matrix:
    """Return points of [-1, 1], denser at its ends; where x = 0 is inside, points gather there too, for ReLU's bend."""
    u = np.cos(np.linspace(np.pi, 0.0, _GRID))
    bend = -(low + high) / (high - low)
    if abs(bend) < 1:
        # a narrow bend in a wide interval: sigmoid and tanh change within a few units of x
        near = bend + np.concatenate([[0.0], np.outer([-1, 1], np.geomspace(1e-6, 2.0, _GRID // 4)).ravel()])
        u = np.unique(np.concatenate([u, near[np.abs(near) <= 1]]))
    return u


def _least_squares(u: Matrix, wanted: Matrix, degree: int) -> Matrix:
    """Return the interpolant at Chebyshev's points, within a logarithm of the best and always there."""
    nodes = np.cos((np.arange(degree + 1) + 0.5) * np.pi / (degree + 1))
    return np.asarray(np.polynomial.chebyshev.chebfit(nodes, np.interp(nodes, u, wanted), degree), np.float64)


def _exchanged(u: Matrix, wanted: Matrix, degree: int) -> Matrix:
    """Return the coefficients that Remez's exchange ends with."""
    count = degree + 2
    at = np.unique(np.searchsorted(u, np.cos(np.linspace(np.pi, 0.0, count))).clip(0, len(u) - 1))
    signs = (-1.0) ** np.arange(count)
    basis = np.asarray(np.polynomial.chebyshev.chebvander(u, degree), np.float64)
    best: Matrix = np.zeros(degree + 1)
    least = np.inf
    for _ in range(_EXCHANGES):
        if len(at) < count:  # the error is rounding: it has no peaks
            break
        try:
            solved = np.linalg.solve(np.column_stack([basis[at], signs]), wanted[at])
        except np.linalg.LinAlgError:
            break
        error = wanted - basis @ solved[:-1]
        largest = float(np.abs(error).max())
        if largest < least:
            best, least = np.asarray(solved[:-1], np.float64), largest
        if largest <= abs(float(solved[-1])) * (1 + _ENOUGH):
            break
        at = _peaks(error, count)
    return best


def _peaks(error: Matrix, count: int) -> NDArray[np.int64]:
    """Return where the error peaks, with alternating signs, `count` of them with the largest among them; or fewer."""
    signs = np.sign(error)
    edges = np.flatnonzero(np.diff(signs)) + 1
    peaks = np.array(
        [part[0] + np.argmax(np.abs(error[part])) for part in np.split(np.arange(len(error)), edges)], np.int64
    )
    peaks = peaks[error[peaks] != 0]
    while len(peaks) > count:  # drop the smallest: an end alone, or two neighbours, so that signs keep alternating
        sizes = np.abs(error[peaks])
        if len(peaks) == count + 1:
            peaks = peaks[1:] if sizes[0] < sizes[-1] else peaks[:-1]
            continue
        least = int(np.argmin(sizes))
        if least in (0, len(peaks) - 1):
            peaks = np.delete(peaks, least)
        else:
            beside = least - 1 if sizes[least - 1] < sizes[least + 1] else least + 1
            peaks = np.delete(peaks, [least, beside])
    return peaks
