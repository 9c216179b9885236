"""Edges between intervals that hold about as many records each, from counts over even cells.

The cells are public and even, between the bounds of the schema; their counts come from one sum over all parties. What
is made of them is a function of the sum alone. Counts may carry noise: their running sums are then made to rise by the
middle of the highest before and the lowest after each, where cutting every count at 0 would add records of noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def even_edges(low: float, high: float, bins: int) -> tuple[float, ...]:
    """Return the edges between even intervals of [low, high]."""
    return tuple(low + (high - low) * (place / bins) for place in range(1, bins))


def cell_counts(values: Matrix, low: float, high: float, cells: int) -> Matrix:
    """Return how many values lie in each cell, shape (cells,); NaN in none, values beyond the bounds at the ends."""
    known = values[~np.isnan(values)]
    places = np.searchsorted(np.array(even_edges(low, high, cells)), known, side="right")
    return np.bincount(places, minlength=cells).astype(np.float64)


def edges_of(counts: Matrix, low: float, high: float, bins: int) -> tuple[float, ...]:
    """Return the edges of at most `bins` intervals with about as many records each.

    Args:
        counts: float64, shape (cells,), with noise or without.
        low, high: bounds of the column.
        bins: at least 2.

    Returns:
        Rising edges between cells, fewer than `bins`; cells that hold more than their share are intervals of their own.
    """
    sums = counts.cumsum()
    highest, lowest = np.maximum.accumulate(sums), np.minimum.accumulate(sums[::-1])[::-1]
    rising = np.maximum((highest + lowest) / 2.0, 0.0)
    held = np.diff(rising, prepend=0.0)
    alone, share = _heavy(held, bins)
    cuts, total, filled, target = list[int](), 0.0, False, share
    for cell, (count, by_itself) in enumerate(zip(held.tolist(), alone.tolist(), strict=True)):
        if by_itself:
            cuts += [cell, cell + 1] if filled else [cell + 1]
            filled = False
            continue
        total, filled = total + count, filled or count > 0
        if filled and total >= target:  # of all so far, so that what one interval has too many the next has fewer
            cuts.append(cell + 1)
            filled, target = False, total + share - (total - target) % share
    edges = even_edges(low, high, len(counts))
    return tuple(edges[cut - 1] for cut in sorted(set(cuts)) if 0 < cut < len(counts))[: bins - 1]


def _heavy(held: Matrix, bins: int) -> tuple[NDArray[np.bool_], float]:
    """Return the cells that hold at least a share by themselves, and the share of the others' intervals."""
    alone = np.zeros(len(held), np.bool_)
    while True:
        left, mass = bins - int(alone.sum()), float(held[~alone].sum())
        share = mass / max(1, left)
        more = ~alone & (held >= share) & (held > 0)
        if not more.any() or left <= 1:
            return alone, share
        alone |= more
