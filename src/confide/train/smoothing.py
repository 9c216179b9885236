"""How a column's function follows from noisy observations of its values: empirical Bayes, which costs no privacy.

What is observed of the value f of each code has a known variance V, from the noise and from how many records have the
code. A priori f = u + e: e is independent from code to code, of deviation `alone`, and u is a random walk along the
intervals of a number whose steps have the deviation `along` for a sixteenth of the range; a category has no u. Both
deviations are chosen for each column by the likelihood of what was observed, on a grid. So a column that steps are not
told apart in comes out flat or smooth, and one with rare tell-tale values keeps them.

u given the observations is a Kalman filter forwards and a smoother backwards: as many operations as there are codes,
each on all columns and all points of the grid, element by element, so equal sums give equal bits on every machine. (The
logarithm decides between points of the grid alone.)

Source: Rauch, Tung, Striebel, Maximum likelihood estimates of linear dynamic systems (1965).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

#: The grid: deviations of a code by itself, and of a walk along a sixteenth of the range.
ALONE = np.array([0.01, 0.03, 0.1, 0.3, 0.6, 1.2])
ALONG = np.array([0.0, 0.02, 0.06, 0.15, 0.4])

_USUAL_ALONE, _USUAL_ALONG = 0.3, 0.1  # where the weak prior of the grid's points has its mode
_APART = 4.0  # variance of the step between a missing value and the lowest interval
_FIRST = 4.0  # of the walk's first value


def smoothed(observed: Sequence[Matrix], variance: Sequence[Matrix], missing: Sequence[bool]) -> list[Matrix]:
    """Return the mean of every number's function given what was observed, each of shape (codes,).

    Args:
        observed: of each column, the values of its codes in their order, with noise.
        variance: of these, > 0, the same shapes.
        missing: whether a column's code 0 is a missing value.
    """
    if not observed:
        return []
    longest = max(map(len, observed))
    y = np.zeros((len(observed), longest, 1, 1))
    v = np.full((len(observed), longest, 1, 1), 1e30)  # codes that a column does not have tell nothing
    steps = np.zeros((len(observed), longest, 1, 1))
    for place, (values, spread) in enumerate(zip(observed, variance, strict=True)):
        y[place, : len(values), 0, 0], v[place, : len(values), 0, 0] = values, spread
        steps[place, : len(values)] = 16.0 / len(values)
    alone, along = ALONE[None, :, None] ** 2, ALONG[None, None, :] ** 2
    apart = np.array(missing)[:, None, None]
    shape = (len(observed), longest, len(ALONE), len(ALONG))
    mean, around, told = np.zeros(shape), np.zeros(shape), _usual(len(observed))
    total = v + alone[:, None]  # of an observation around the walk
    m, p = np.zeros((len(observed), 1, 1)), np.full((len(observed), 1, 1), _FIRST)
    for code in range(longest):
        s = p + total[:, code]
        off = y[:, code] - m
        told = told - 0.5 * (off * off / s + np.log(s / total[:, code])) - 0.5 * np.log(total[:, code] / v[:, code])
        gain = p / s
        m, p = m + gain * off, p * (1.0 - gain)
        mean[:, code], around[:, code] = m, p
        p = p + (steps[:, code] * along if code else np.where(apart, _APART, steps[:, code] * along))
    for code in range(longest - 2, -1, -1):
        step = steps[:, code] * along if code else np.where(apart, _APART, steps[:, code] * along)
        back = around[:, code] / (around[:, code] + step)
        mean[:, code] += back * (mean[:, code + 1] - mean[:, code])
    found = mean + alone[:, None] / total * (y - mean)
    best = told.reshape(len(observed), -1).argmax(axis=1)
    return [
        found[place, : len(values)].reshape(len(values), -1)[:, best[place]].copy()
        for place, values in enumerate(observed)
    ]


def shrunk(observed: Matrix, variance: Matrix) -> Matrix:
    """Return the same for a category, whose codes have no order."""
    total = ALONE[:, None] ** 2 + variance
    told = -0.5 * (observed * observed / total + np.log(total)).sum(axis=1) + _usual(1)[0, :, 0]
    best = ALONE[int(told.argmax())] ** 2
    found: Matrix = best / (best + variance) * observed
    return found


def _usual(columns: int) -> Matrix:
    """Return the logarithm of the weak prior of the grid's points, shape (columns, alone, along)."""
    alone = -0.25 * np.log(ALONE / _USUAL_ALONE) ** 2
    along = -0.25 * np.log(np.maximum(ALONG, 0.01) / _USUAL_ALONG) ** 2
    return np.broadcast_to(alone[:, None] + along, (columns, len(ALONE), len(ALONG))).copy()
