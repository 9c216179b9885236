"""Quantiles of one holder's records: counts of cells that get finer around the ranks that are asked for.

The bounds are cut into 16 cells, whose noisy counts say in which one a rank lies; that cell is cut into 16 again, and
so on, `levels` times. A record lies in one cell of every level, so a level costs one count whatever number of quantiles
is asked for, and each is charged before the first.

Why not the exponential mechanism, which needs one release a quantile? Its probabilities are real numbers that floats
only approximate, its privacy is pure and gains nothing from exact Gaussian composition, and at epsilon 1 and delta 1e-6
it is no better: it misses a rank by about log(cells) / epsilon' with epsilon' = 0.8 mu, here by a root of (4.25 levels)
deviations of the noise, 9 / mu at 65,536 cells: both some 40 records. Three quantiles cost it three times as much.

A cell's count is known twice: from its own level, and as the part of its parent's that its siblings leave. With noise
of one variance on all numbers, the count left of child j of m is best read as the mean of both weighted m + 1 - j to j,
which has at most (m + 1) / 4 = 4.25 variances.

Source: hierarchical counts, Hay et al., Boosting the accuracy of differentially private histograms (arXiv 0904.0942);
their consistency, here along one path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.dp.queries import (
    GRID,
    Asked,
    Bounds,
    Estimate,
    Spending,
    asked_for,
    checked_bounds,
    within,
)
from confide.dp.values import number_column, numbers
from confide.errors import UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_BITS = 4  # 16 cells a level
_CELLS = 1 << _BITS
_VARIANCES = (_CELLS + 1) / 4
_CLEAR = 5.0


def quantile(
    values: ArrayLike,
    q: float | Sequence[float],
    *,
    bounds: Bounds,
    levels: int = 4,
    **spending: Unpack[Spending],
) -> Estimate:
    """Return quantiles of numbers, each cut to public bounds: a number, or an array in the order of `q`.

    Where there are too few records to tell, the value is the middle of the bounds with an infinite standard error.
    Elsewhere the standard error is half the distance of the quantiles one deviation of the rank's noise to either side.

    Args:
        values: shape (n,), n >= 0; values that are not finite are no record.
        q: which quantiles, 0 <= q <= 1; several cost what one does.
        bounds: (low, high) in the unit of the values, public.
        levels: how often a cell is cut into 16, 1 to 8: 4 give a 65,536th of the bounds; each takes its part of the
            budget.
        spending: see `queries.Spending`.

    Example:
        >>> import numpy as np
        >>> found = quantile(np.arange(20_000) / 200, [0.25, 0.5], bounds=(0, 100), epsilon=1.0, delta=1e-6)
        >>> [bool(abs(one - wanted) < 2) for one, wanted in zip(found.value, (25, 50))]
        [True, True]
    """
    low, high = checked_bounds(bounds)
    wanted = np.atleast_1d(np.asarray(q, np.float64))
    if wanted.ndim != 1 or not len(wanted) or not ((wanted >= 0) & (wanted <= 1)).all() or levels not in range(1, 9):
        raise UsageError(f"Expected q from 0 to 1 and levels={levels} from 1 to 8")
    asked, values = asked_for(f"{len(wanted)} quantiles", spending), number_column(values)
    paths = 3 * len(wanted)
    lengths = [_CELLS * min(paths, _CELLS**level) for level in range(levels)]
    asked.charge(lengths, sensitivity=GRID)
    x = numbers(values)
    x = x[np.isfinite(x)]
    units = 1 << (_BITS * levels)
    cell = np.minimum(np.floor((within(x, low, high) + 1) / 2 * units), units - 1).astype(np.int64)
    place, known = _descended(asked, cell, wanted, levels, lengths)
    at = low + (high - low) * np.clip(place / units, 0.0, 1.0)
    below, value, above = at.reshape(3, -1)
    error = np.where(known, np.maximum((above - below) / 2, (high - low) / units), np.inf)
    value = np.where(known, value, low / 2 + high / 2)
    if np.ndim(q) == 0:
        return asked.estimate(float(value[0]), float(error[0]), low=low, high=high, releases=levels)
    return asked.estimate(value, error, low=low, high=high, releases=levels)


def median(values: ArrayLike, *, bounds: Bounds, levels: int = 4, **spending: Unpack[Spending]) -> Estimate:
    """Return the median of numbers, each cut to public bounds; see `quantile`."""
    return quantile(values, 0.5, bounds=bounds, levels=levels, **spending)


def _descended(asked: Asked, cell: Vector, wanted: Matrix, levels: int, lengths: Sequence[int]) -> tuple[Matrix, bool]:
    """Return where the ranks lie, in cells of the last level, shape (3 len(wanted),), and whether that says anything.

    The first third are the ranks one deviation below those wanted, the last third those above.
    """
    paths = np.zeros(3 * len(wanted), np.int64)
    rank, parent, deviation = np.zeros(len(paths)), np.full(len(paths), math.nan), asked.deviation / GRID
    known, inside = False, np.zeros(len(paths))
    for level in range(levels):
        nodes, node_of = np.unique(paths, return_inverse=True)
        counts = _counts(
            asked, cell >> (_BITS * (levels - level)), cell >> (_BITS * (levels - level - 1)), nodes, lengths[level]
        )
        if level == 0:
            total = float(counts.sum())
            known = total > max(1.0, _CLEAR * deviation * math.sqrt(_CELLS))
            beside = deviation * math.sqrt(_VARIANCES * levels)
            rank = np.clip(
                np.concatenate([wanted * total + side * beside for side in (-1, 0, 1)]), 0.0, max(total, 0.0)
            )
        for path, node in enumerate(node_of.tolist()):
            child, left, width = _step(counts[node], float(parent[path]), float(rank[path]))
            rank[path], parent[path] = rank[path] - left, width
            paths[path] = paths[path] * _CELLS + child
            inside[path] = min(max(rank[path] / width, 0.0), 1.0) if width > 0 else 0.5
    return paths + inside, known


def _counts(asked: Asked, node: Vector, child: Vector, nodes: Vector, length: int) -> Matrix:
    """Return the noisy counts of the children of some nodes, shape (nodes, 16); noise is drawn for `length` numbers."""
    at = np.searchsorted(nodes, node)
    at = np.where((at < len(nodes)) & (nodes[np.minimum(at, len(nodes) - 1)] == node), at, -1)
    kept = at >= 0
    exact = np.bincount(at[kept] * _CELLS + (child[kept] & (_CELLS - 1)), minlength=length).astype(np.int64) * GRID
    return (asked.noisy(exact)[: _CELLS * len(nodes)] / GRID).reshape(-1, _CELLS)


def _step(counts: Matrix, parent: float, rank: float) -> tuple[int, float, float]:
    """Return the child in which a rank lies, how many records lie left of it in its node, and how many in it."""
    left = np.concatenate([[0.0], np.cumsum(counts)])
    if not math.isnan(parent):
        terms = np.arange(_CELLS + 1)
        left = (left * (_CELLS + 1 - terms) + (parent - (left[-1] - left)) * terms) / (_CELLS + 1)
    left = np.maximum.accumulate(left)
    child = int(np.clip(np.searchsorted(left, rank, side="right") - 1, 0, _CELLS - 1))
    return child, float(left[child]), float(left[child + 1] - left[child])
