"""What a silo's records add to the sums of an additive model, in integers from the record to the sum.

A record is a row of a few whole numbers: one at the code of each column, or one for each number's trend, and one that
every record has. The tables of these whole numbers are public, so a row is a record's own, and so are its norm and what
it adds. Three sums are taken:

    counts        the records that have each code
    products      a_i a_j of the row's entries for trends, i <= j
    gradients     b a, with the residual r of the loss rounded to a whole number b

    |a| is the norm of a row. In the second sum long rows are scaled down to `SHORT`, and products are counted twice for
    i = j and three times otherwise, for then 4 sum a_i^4 + 9 sum_(i<j) a_i^2 a_j^2 <= 4.5 |a|^4 <= s^2, and what is
    beside the diagonal, which is most of it, gets the lesser noise.
    |b a| <= s = ROW RESIDUAL in the third: b is r / clip in steps of 1 / RESIDUAL, cut at s / |a|.

So one record more or less moves every sum by at most its sensitivity, in integers throughout, whatever the record and
whatever the others: docs/private-trees.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.dp.mechanisms import Clipped

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
Vector = NDArray[np.int64]

#: Steps of a row whose length is the expected one, and of a residual at its clip.
ROW, RESIDUAL = 1 << 11, 1 << 11

#: The sensitivity of products and of gradients, in grid steps.
GRID = ROW * RESIDUAL

#: The largest norm of a row in `products`: 4.5 SHORT^4 <= GRID^2, exactly.
SHORT = 1406

#: How often a product of two entries, and a square, is counted.
BESIDE, SQUARE = 3, 2

_LARGEST_ENTRY = 1 << 20  # so that squares of rows stay below 2^53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """The public tables that make a record's row.

    Args:
        own: int64, shape (codes,): the entry of a code in the coordinate of that code; 0 where it has none.
        trend: int64, shape (codes,): its entry in the coordinate of its column's trend.
        trends: int64, shape (columns,): the coordinate of each column's trend, from 0; -1 for none.
        constant: the entry that every record has, in the coordinate after the trends.
    """

    own: Vector
    trend: Vector
    trends: Indices
    constant: int

    def __post_init__(self) -> None:
        for name in ("own", "trend"):
            if np.abs(getattr(self, name)).max(initial=0) > _LARGEST_ENTRY:
                object.__setattr__(self, name, np.clip(getattr(self, name), -_LARGEST_ENTRY, _LARGEST_ENTRY))

    @property
    def count(self) -> int:
        """Return how many trends there are, the constant one included."""
        return int((self.trends >= 0).sum()) + 1

    @property
    def length(self) -> int:
        """Return the coordinates of a gradient: trends, the constant one, then codes."""
        return self.count + len(self.own)

    def squares(self, codes: Indices) -> Vector:
        """Return |a|^2 of every record, exact."""
        found = np.full(len(codes), self.constant**2, np.int64)
        for column in range(codes.shape[1]):
            found += self.own[codes[:, column]] ** 2 + self.trend[codes[:, column]] ** 2
        return found


@dataclass(frozen=True, slots=True, eq=False)
class CodedSilo:
    """A silo's records as additive models see them: private to their holder.

    Args:
        codes: int64, shape (n, columns), among all codes.
        positive: bool, shape (n,): whether a record is of the second class.
        weights: float64, shape (n,): of the record's class in the loss, in [0, 1].
    """

    codes: Indices = field(repr=False)
    positive: NDArray[np.bool_] = field(repr=False)
    weights: Matrix = field(repr=False)


def products(rows: Rows, silo: CodedSilo, *, length: int, clip_norm: float) -> Clipped:
    """Return the sums of a_i a_j over the trends' entries, i <= j row by row, in a vector of `length`."""
    dense = np.full((len(silo.codes), rows.count), rows.constant, np.int64)
    for column, trend in enumerate(rows.trends.tolist()):
        if trend >= 0:
            dense[:, trend] = rows.trend[silo.codes[:, column]]
    squares = (dense * dense).sum(axis=1)
    factor = np.minimum(1.0, ROW / np.sqrt(np.maximum(squares, 1).astype(np.float64))) * (SHORT / ROW)
    short = np.trunc(dense * factor[:, None] * (1 - 2.0**-40)).astype(np.int64)
    short[(short * short).sum(axis=1) > SHORT * SHORT] = 0  # never, by the margin; never again by this line
    at = np.triu_indices(rows.count)
    total = np.zeros(length, np.int64)
    whole = short.astype(np.float64)  # exact: sums of whole numbers below 2^53
    often = np.where(at[0] == at[1], SQUARE, BESIDE)
    total[: len(at[0])] = np.rint((whole.T @ whole)[at]).astype(np.int64) * often
    return Clipped(total, GRID, clip_norm, 0)


def gradients(
    rows: Rows, silo: CodedSilo, residuals: Matrix, *, residual_clip: float, length: int, clip_norm: float
) -> Clipped:
    """Return the sums of b a over the records: trends, the constant one, then codes, in a vector of `length`.

    Args:
        residuals: float64, shape (n,), each from its own record.
        residual_clip: the largest absolute residual.
    """
    squares = rows.squares(silo.codes)
    norms = np.sqrt(np.maximum(squares, 1).astype(np.float64))
    most = np.minimum(float(RESIDUAL), np.floor(GRID / norms * (1 - 2.0**-40)))
    scaled = np.clip(residuals / residual_clip, -1.0, 1.0) * np.minimum(1.0, ROW / norms)
    whole = np.clip(np.rint(scaled * RESIDUAL), -most, most).astype(np.int64)
    whole[whole * whole * squares > GRID * GRID] = 0  # never, by the margin; never again by this line
    b = whole.astype(np.float64)
    total = np.zeros(length, np.int64)
    codes_at, found = rows.count, np.zeros(len(rows.own))
    for column, trend in enumerate(rows.trends.tolist()):
        codes = silo.codes[:, column]
        found += np.bincount(codes, weights=b * rows.own[codes], minlength=len(found))
        if trend >= 0:
            total[trend] = round(float((b * rows.trend[codes]).sum()))
    total[rows.count - 1] = int(whole.sum()) * rows.constant
    total[codes_at : codes_at + len(found)] = np.rint(found).astype(np.int64)
    return Clipped(total, GRID, clip_norm, 0)
