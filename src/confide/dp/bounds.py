"""Public bounds for columns of numbers under differential privacy: where nobody knows what can occur.

A histogram whose cells are bounded by powers of two, the same for every column and fixed beforehand, gets exact noise;
the bounds are the outer edges of the cells that stand clearly out of it. One record is in one cell of each column, and
every column takes the same share of a budget's mu^2, so many columns cost as much as one under more noise.

The clearance is chosen so that with probability 1 - `_STRAY` no empty cell of any column stands out. A cell with few
records is missed: what lies there is beyond the bounds, so a schema with them should clip.

Paper: Wilson et al., Differentially private SQL with bounded user contribution (arXiv 1909.01917), section 5.1.1, has
the histogram over powers of two; Gaussian noise, joint account and clearance for all cells are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.queries import histogram
from confide.dp.spending import Budget

Matrix = NDArray[np.float64]

#: Powers of two that bound cells: numbers nearer 0 than the least count as 0, none is counted beyond the largest.
LEAST_POWER, LARGEST_POWER = -10, 40

_STRAY = 0.01  # chance that any empty cell of any column is taken for one with records


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a release says of one column.

    Args:
        low, high: powers of two, signed, or 0; None where no cell stood out of the noise, or only that of 0.
        gaps: whether records without a number stood out.
    """

    low: float | None
    high: float | None
    gaps: bool


def bounds(columns: Mapping[str, Matrix], *, budget: Budget, rng: Randomness | None = None) -> dict[str, Bounds]:
    """Return bounds of columns of numbers; all of the budget's mu^2 that is left is spent.

    Args:
        columns: float64, shape (n,) each, NaN where there is no number.
        budget: what it costs.
        rng: secret randomness; the operating system's without it.

    Raises:
        PrivacyError: nothing is left of the budget.

    Example:
        >>> ages = np.linspace(18, 90, 5000)
        >>> bounds({"age": ages}, budget=Budget(epsilon=1.0))["age"]
        Bounds(low=16.0, high=128.0, gaps=False)
    """
    edges = _edges()
    absent = edges[-1] + 1.0  # the last cell is of records without a number
    cells = len(edges)
    clearance = NormalDist().inv_cdf(1 - _STRAY / max(1, len(columns) * cells))
    found: dict[str, Bounds] = {}
    for place, (name, values) in enumerate(columns.items()):
        share = budget.mu_left**2 / budget.mu**2 / (len(columns) - place) * (1 - 1e-9)
        known = np.where(np.isfinite(values), np.clip(values, edges[0], edges[-1] - 1.0), absent)
        estimate = histogram(known, edges=[*edges, absent], budget=budget, share=share, rng=rng)
        clear = np.asarray(estimate.value) > math.ceil(clearance * float(np.max(estimate.standard_error)))
        places = np.flatnonzero(clear[:-1])
        low, high = (_rounded(edges[places[0]]), _rounded(edges[places[-1] + 1])) if len(places) else (0.0, 0.0)
        ends = (low, high) if low < high else (None, None)
        found[name] = Bounds(*ends, gaps=bool(clear[-1]))
    return found


def _rounded(edge: Any) -> float:
    """Return 0 for the edges of the cell that holds it."""
    return 0.0 if abs(edge) <= 2.0**LEAST_POWER else float(edge)


def _edges() -> Matrix:
    powers = np.exp2(np.arange(LEAST_POWER, LARGEST_POWER + 1, dtype=np.float64))
    return np.concatenate([-powers[::-1], powers])
