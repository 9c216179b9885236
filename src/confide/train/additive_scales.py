"""What the counts of codes say to an additive model: which entries a record's row has, and what its noise is worth.

All of it follows from the noisy counts by square roots and quotients, so it is the same on every machine. (A bell is
fitted by products whose order a library may choose; they decide between widths and places alone.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.train.additive_columns import AdditiveColumns
from confide.train.additive_sums import ROW, Rows

Matrix = NDArray[np.float64]

_CONSTANT = 1.5  # entry that every record has, before scaling
_LEAST_SHARE = 0.003  # of a code, in its weight
_TOLD = 2.0  # deviations of the noise from which a count is taken for what it is
_UNTOLD = 0.2  # of that deviation: what any other code is taken to have
_WIDER = 1.5  # one bell's width over that of the one before
_DEVIATIONS = 1.6  # of a normal law, in the width of the bell that fits it
_BEND = 3.0  # where a score comes to, far out


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """What the counts say: public from then on.

    Args:
        rows: the entries of a record's row, in whole numbers.
        share: float64, shape (codes,): of the records, of each code; above 0, 1 in all for each column.
        score: float64, shape (codes,): along which a number's trend goes; 0 where there is none.
        unit: steps of a row for one of its entries as they were before rounding.
        records: how many there are, at least 1.
    """

    rows: Rows
    share: Matrix
    score: Matrix
    unit: float
    records: float


def scales_of(counts: Matrix, columns: AdditiveColumns, trended: tuple[int, ...], deviation: float) -> Scales:
    """Return the scales that noisy counts give.

    Args:
        counts: float64, shape (codes,).
        trended: places of the columns that have trends.
        deviation: of the noise on a count.
    """
    share, totals = np.zeros(len(counts)), list[float]()
    for place in range(len(columns.columns)):
        part = columns.part(place)
        own, told = counts[part], counts[part] > _TOLD * deviation
        guess = np.where(told, own, _UNTOLD * deviation)
        share[part] = guess / guess.sum()
        totals.append(float(own.sum()))
    score, trends = np.zeros(len(counts)), np.full(len(columns.columns), -1)
    rare = np.sqrt(np.sqrt(np.maximum(share, _LEAST_SHARE)))
    own = 1.0 / (rare * np.sqrt(rare))  # the power -3/8
    for trend, place in enumerate(trended):
        part = columns.part(place)
        score[part] = _score(counts[part], columns.known[part])
        trends[place], own[part] = trend, 0.0
    expected = math.sqrt(_CONSTANT**2 + len(trended) + float((share * own * own).sum()))
    unit = ROW / expected
    rows = Rows(
        own=np.rint(own * unit).astype(np.int64),
        trend=np.rint(score * unit).astype(np.int64),
        trends=trends,
        constant=round(_CONSTANT * unit),
    )
    return Scales(rows, share, score, unit, max(1.0, math.fsum(totals) / len(totals)))


def _score(counts: Matrix, known: NDArray[np.bool_]) -> Matrix:
    """Return a score for each code of a number from noisy counts; 0 for a missing value.

    A bell (1 + u^2)^-2, u = (code - middle) / width, is fitted to the counts by least squares: all intervals together
    tell where the records lie far better than any quantile of a noisy cumulative count. The score is u, bent.
    """
    own = counts[known]
    total, best, at, width = max(1.0, float(own.sum())), -math.inf, 0, 1.0
    wide = 1.0
    while wide < len(own):
        reach = min(len(own) - 1, math.ceil(6 * wide))
        u = np.arange(-reach, reach + 1) / wide
        bell = 1.0 / (1.0 + u * u) ** 2
        bell /= bell.sum()
        fit = 2.0 * np.convolve(own, bell, "same" if len(bell) <= len(own) else "full")
        fit = fit[(len(fit) - len(own)) // 2 :][: len(own)] - total * float((bell * bell).sum())
        if fit.max() > best:
            best, at, width = float(fit.max()), int(fit.argmax()), wide
        wide *= _WIDER
    away = _DEVIATIONS * (np.arange(len(own)) - at) / width
    found = np.zeros(len(counts))
    found[known] = away / (1.0 + np.abs(away) / _BEND)
    return found
