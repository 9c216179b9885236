"""Sums of gradients for each code of each column: what a record adds to the choice of a split, as fast as can be.

The work is done by `confide._native` (C++, interpreter lock released) or, where no compiler was at hand when confide
was installed, by numpy here: the same integers, slower.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError

try:
    import confide._native as _native
except ImportError:
    _native = None

Codes = NDArray[np.uint8]
Places = NDArray[np.int32]
Sums = NDArray[np.int64]


def histograms(codes: Codes, gradients: Places, slots: Places, wanted: Places, starts: NDArray[np.int64]) -> Sums:
    """Return the sums of both numbers of each gradient over the records of each wanted slot, by column and code.

    Args:
        codes: uint8, shape (n, columns), C-contiguous, each below its column's levels, as `tree_columns.codes_of` has
            them: it is not checked again for every sum.
        gradients: int32, shape (n, 2).
        slots: int32, shape (n,): where each record is, 0 <= slot < len(wanted).
        wanted: int32, shape (slots,): the histogram that a slot's records add to; below 0 for none.
        starts: int64, shape (columns + 1,): where each column's codes start among all codes.

    Returns:
        int64, shape (histograms, codes, 2), histograms = max(wanted) + 1.

    Raises:
        UsageError: arrays that do not fit each other.
    """
    n, columns = codes.shape
    count = int(wanted.max(initial=-1)) + 1
    fitting = gradients.shape == (n, 2) and slots.shape == (n,) and starts.shape == (columns + 1,)
    if not fitting or (gradients.dtype, slots.dtype, wanted.dtype) != (np.dtype(np.int32),) * 3:
        raise UsageError("Expected one pair of int32 gradients and one int32 slot for each record")
    if n and not (0 <= int(slots.min()) and int(slots.max()) < len(wanted)):
        raise UsageError("Expected slots of which each is wanted or not")
    found = np.zeros((count, int(starts[-1]), 2), np.int64)
    if count and n:
        (_native.histograms if _native else _by_numpy)(codes, gradients, slots, wanted, starts, found)
    return found


def _by_numpy(
    codes: Codes, gradients: Places, slots: Places, wanted: Places, starts: NDArray[np.int64], found: Sums
) -> None:
    """Add to `found`; float64 holds such sums exactly up to 2^53."""
    places = wanted[slots]
    rows = np.flatnonzero(places >= 0)
    size = found.shape[1]
    for column, start in enumerate(starts[:-1].tolist()):
        at = places[rows].astype(np.int64) * size + start + codes[rows, column]
        for part in (0, 1):
            sums = np.bincount(at, weights=gradients[rows, part], minlength=len(found) * size)
            found[:, :, part] += sums.reshape(len(found), size).astype(np.int64)


def route(codes: Codes, slots: Places, column: Places, goes_left: Codes) -> Places:
    """Return the slot of each record one level further down: twice its own, and one more if it goes right.

    Args:
        codes: as in `histograms`.
        slots: int32, shape (n,), 0 <= slot < len(column).
        column: int32, shape (slots,): the column that a slot's node looks at; below 0 sends all left.
        goes_left: uint8, shape (slots, 256): 0 for the codes that go right.

    Raises:
        UsageError: arrays that do not fit each other.
    """
    if slots.shape != codes.shape[:1] or goes_left.shape != (len(column), 256):
        raise UsageError("Expected one slot for each record, and 256 codes for each slot")
    if len(slots) and not (0 <= int(slots.min()) and int(slots.max()) < len(column) and column.max() < codes.shape[1]):
        raise UsageError("Expected slots and columns that there are")
    if _native:
        found = np.empty_like(slots)
        _native.route(codes, slots, column, goes_left, found)
        return found
    looked = column[slots]
    left = goes_left[slots, codes[np.arange(len(codes)), np.maximum(looked, 0)]] != 0
    return 2 * slots + ((looked >= 0) & ~left).astype(np.int32)
