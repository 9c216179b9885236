"""Robust rules: one vector out of several, of which a few may be lies.

Over the means of groups (`confide.secagg.Groups`) they are post-processing of what the server has learnt anyway. Over
single clients' vectors they need somebody who sees those: the enclave of `confide.tee.Tee`.

    symbol   here     meaning
    m        rows     vectors (of groups, or of clients)
    f        liars    how many of them may be arbitrary

A rule can bound what liars do only while they are few: m > 2 f for median and trimmed mean, m > 2 f + 2 for multi-Krum.
One lying client spoils its whole group, so of groups f counts those that hold a liar.

Every rule adds in one fixed order, so equal rows give equal bits, whoever combines them.

Paper: Yin et al., ICML 2018 (median, trimmed mean); Blanchard et al., NeurIPS 2017 (Krum, section 4; multi-Krum).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError

Matrix = NDArray[np.float64]


#: How many vectors each rule needs, as (for every liar, beyond these).
_NEEDS: Mapping[str, tuple[int, int]] = {
    "mean": (0, 1),
    "median": (2, 1),
    "trimmed-mean": (2, 1),
    "multi-krum": (2, 3),
}


#: The names of the rules.
RULES = tuple(_NEEDS)


def fewest(rule: str, liars: int) -> int:
    """Return how many vectors `rule` needs to outvote `liars` of them; a mean outvotes nobody."""
    each, beyond = _NEEDS[rule]
    return each * liars + beyond


def combine(rule: str, rows: Matrix, *, liars: int) -> Matrix:
    """Return one vector out of `rows` by the rule's name in a job.

    Args:
        rule: "mean", "median", "trimmed-mean" or "multi-krum".
        rows: float64, shape (m, d), m >= fewest(rule, liars).
        liars: f.

    Returns:
        Shape (d,).

    Raises:
        UsageError: too few rows, or a value that is not finite.
    """
    match rule:
        case "median":
            return median(rows, liars=liars)
        case "trimmed-mean":
            return trimmed_mean(rows, liars=liars)
        case "multi-krum":
            return multi_krum(rows, liars=liars)
        case _:
            return mean(rows)


def _checked(rows: Matrix, liars: int, needed: int) -> Matrix:
    if rows.ndim != 2 or liars < 0 or len(rows) < needed or not np.isfinite(rows).all():
        raise UsageError(
            f"Expected at least {needed} finite vectors to outvote liars={liars}, got {len(rows)}; take more of them"
        )
    return rows


def mean(rows: Matrix) -> Matrix:
    """Return the plain mean, which one liar moves anywhere.

    Args:
        rows: float64, shape (m, d), m >= 1.

    Returns:
        Shape (d,).
    """
    return _checked(rows, 0, 1).mean(axis=0)


def median(rows: Matrix, *, liars: int) -> Matrix:
    """Return the median of each coordinate, the mean of the middle two for even m.

    Args:
        rows: float64, shape (m, d), m > 2 liars.
        liars: f; each coordinate of the result lies between the smallest and the largest honest one.

    Returns:
        Shape (d,).

    Raises:
        UsageError: too few rows, or a value that is not finite.
    """
    return np.median(_checked(rows, liars, 2 * liars + 1), axis=0)


def trimmed_mean(rows: Matrix, *, liars: int) -> Matrix:
    """Return, for each coordinate, the mean without the `liars` smallest and the `liars` largest values.

    Args:
        rows: float64, shape (m, d), m > 2 liars.
        liars: f; each coordinate of the result lies between the smallest and the largest honest one.

    Returns:
        Shape (d,).

    Raises:
        UsageError: too few rows, or a value that is not finite.
    """
    ordered = np.sort(_checked(rows, liars, 2 * liars + 1), axis=0)
    return ordered[liars : len(rows) - liars].mean(axis=0)


def multi_krum(rows: Matrix, *, liars: int) -> Matrix:
    """Return the mean of the m - f - 2 rows of smallest score: summed squared distance to the m - f - 2 nearest others.

    Args:
        rows: float64, shape (m, d), m > 2 liars + 2.
        liars: f.

    Returns:
        Shape (d,).

    Raises:
        UsageError: too few rows, or a value that is not finite.
    """
    rows = _checked(rows, liars, 2 * liars + 3)
    near = len(rows) - liars - 2
    # over the first axis numpy adds row by row; along the last it would add in an order that depends on the processor
    columns = np.ascontiguousarray(rows.T)
    squared = np.array([((columns - row[:, None]) ** 2).sum(axis=0) for row in rows])
    np.fill_diagonal(squared, np.inf)
    scores = np.ascontiguousarray(np.sort(squared, axis=1)[:, :near].T).sum(axis=0)
    return rows[np.argsort(scores, kind="stable")[:near]].mean(axis=0)
