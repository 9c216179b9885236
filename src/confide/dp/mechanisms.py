"""Clipping: records to integers of bounded norm, and their sum with its sensitivity.

Each record's vector g is scaled to L2 norm at most C' = C (1 - sqrt(d) / 2s), multiplied by s / C and rounded to the
nearest integers, which moves it by at most sqrt(d) / 2: its integer norm is at most s, exactly. Then it is summed. So
adding or removing one record moves the integer sum by at most s, whatever the record and whatever the others.
Rounding the sum instead would move it by up to sqrt(d) further for each silo.

    paper   here                paper   here
    C       clip_norm           s       grid (integer steps per clip norm)
    d       length              n       records; never leaves this module
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.errors import UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: s^2 and every integer below it is exact in int64 and in float64's range of the squares that we form.
LARGEST_GRID = 1 << 30

_BLOCK_VALUES = 1 << 20  # rows are handled in blocks of about this many values, to bound temporary memory
_SHRINK = 1 - 2.0**-40  # keeps the norm below s in spite of float64's rounding; the integers are checked all the same


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """A sum of clipped records: private to its silo until noise is added, hence no repr and no wire form.

    Args:
        total: int64, shape (d,).
        sensitivity: largest L2 distance by which one record more or less moves `total`.
        clip_norm: what `sensitivity` grid steps stand for.
        ignored: records that counted as zero because they were zero or not finite; for the silo's own eyes.
    """

    total: Vector = field(repr=False)
    sensitivity: int = field(repr=False)
    clip_norm: float = field(repr=False)
    ignored: int = field(repr=False)


def default_grid(length: int) -> int:
    """Return the smallest power of two s >= 50 sqrt(length): rounding then costs at most 1 % of the clip norm."""
    return 1 << (math.isqrt(2500 * length - 1)).bit_length()


def clipped_sum(per_record: Matrix, *, clip_norm: float, grid: int) -> Clipped:
    """Return the sum of the records' vectors, each clipped and rounded to the grid before summing.

    Args:
        per_record: float64, shape (n, d), n >= 0: one row for each record. Rows that are zero or hold NaN or infinity
            count as zero; they take the same path as the others and raise nothing.
        clip_norm: the norm C that `grid` steps stand for, > 0.
        grid: s, with sqrt(d) <= s <= 2^30.

    Raises:
        UsageError: shape, dtype, clip_norm or grid do not fit. None of this depends on a value in `per_record`.

    **Guarantees** that `total` of any two data sets that differ by one record differ by an L2 norm of at most s.
    """
    if per_record.ndim != 2 or not per_record.shape[1] or per_record.dtype != np.float64:
        raise UsageError(f"Expected float64 rows of shape (n, d), got {per_record.dtype} {per_record.shape}")
    length = per_record.shape[1]
    if not (0 < clip_norm < math.inf):
        raise UsageError(f"Expected clip_norm={clip_norm} to be finite and above 0")
    if not math.sqrt(length) <= grid <= LARGEST_GRID:
        raise UsageError(f"Expected grid={grid} from sqrt({length}) to 2^30; {default_grid(length)} costs 1 %")
    total = np.zeros(length, np.int64)
    ignored = 0
    step = max(1, _BLOCK_VALUES // length)
    for start in range(0, len(per_record), step):
        rows, usable = to_grid(per_record[start : start + step], clip_norm, grid)
        total += rows.sum(axis=0)
        ignored += len(rows) - usable
    return Clipped(total, grid, clip_norm, ignored)


def ranks(units: Vector) -> tuple[Vector, Vector, Vector]:
    """Return the place of each record's unit among the units, its rank within it, and the records of each unit.

    Args:
        units: int64, shape (n,): equal numbers for records of one unit.
    """
    _, places, counts = np.unique(units, return_inverse=True, return_counts=True)
    order = np.argsort(places, kind="stable")
    rank = np.empty(len(units), np.int64)
    rank[order] = np.arange(len(units)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places.reshape(-1).astype(np.int64), rank, counts.astype(np.int64)


def unit_sums(per_record: Matrix, units: Vector) -> Matrix:
    """Return the sum of the vectors of each unit's records, shape (units, d).

    Args:
        per_record: float64, shape (n, d). Rows that hold NaN or infinity count as zero.
        units: int64, shape (n,): equal numbers for records of one unit.

    **Guarantees** that a sum is bit for bit the same whatever the records of other units are: its records are added one
    after the other in their order.
    """
    if per_record.ndim != 2 or units.shape != (len(per_record),):
        raise UsageError(f"Expected one unit for each record, got {units.shape} for {per_record.shape}")
    places, rank, counts = ranks(units)
    sums = np.zeros((len(counts), per_record.shape[1]))
    usable = np.isfinite(per_record).all(axis=1, keepdims=True)
    finite = np.where(usable, per_record, 0.0)
    with np.errstate(over="ignore"):
        for number in range(int(counts.max(initial=0))):
            rows = rank == number
            sums[places[rows]] += finite[rows]
    return sums


def clipped_unit_sum(per_record: Matrix, units: Vector, *, clip_norm: float, grid: int, parties: int = 1) -> Clipped:
    """Return the sum over units of one vector each: the sum of its records' vectors, clipped and rounded to the grid.

    Where a unit's records may lie at several parties, each of these clips to an equal part of `clip_norm`, so that the
    sum of all parties moves by `clip_norm` at most. Scaling the noise up by `parties` instead would be the same
    mechanism under another `clip_norm`; so this one's is what a unit can add in all, and the noise stays as stated.

    Args:
        per_record, units: as in `unit_sums`.
        clip_norm: largest norm of what one unit adds at all parties together.
        grid: s, steps of `clip_norm`.
        parties: the most parties k that hold records of one unit; public, and nobody can check it.

    Raises:
        UsageError: as in `clipped_sum`, for a grid of s // k steps.

    **Guarantees** that `total` moves by an L2 norm of at most s // k when all records of one unit are added or removed,
    and the sum of k parties' by at most s.
    """
    share = grid // parties
    clipped = clipped_sum(unit_sums(per_record, units), clip_norm=clip_norm * (share / grid), grid=share)
    return Clipped(clipped.total, grid, clip_norm, clipped.ignored)


def to_grid(rows: Matrix, clip_norm: float, grid: int) -> tuple[Vector, int]:
    """Return each row clipped and rounded, as integers of norm <= grid, and how many rows were neither zero nor wild.

    A row is g = peak * direction with the largest entry of `direction` 1, so no square over- or underflows.
    """
    radius = grid - math.sqrt(rows.shape[1]) / 2  # C' in grid steps
    peak = np.abs(rows).max(axis=1)
    usable = (peak > 0) & (peak < math.inf)  # False for NaN
    direction = np.where(usable[:, None], rows, 0.0) / np.where(usable, peak, 1.0)[:, None]
    # A running sum has one order; any other would round a long row by its place, and others' records choose that.
    length = np.sqrt(np.cumsum(direction * direction, axis=1)[:, -1])
    largest = clip_norm * (radius / grid)  # C'
    share = np.minimum(np.minimum(peak, largest) / largest, 1 / np.where(usable, length, 1.0))
    share = np.where(usable, share, 0.0)
    integers = np.rint(direction * (share * (radius * _SHRINK))[:, None]).astype(np.int64)
    beyond = np.einsum("ij,ij->i", integers, integers) > grid * grid  # never, by the margin; never again by this line
    return np.where(beyond[:, None], 0, integers), int(usable.sum())


def count_step(marks: int, grid: int) -> int:
    """Return what each of a record's `marks` adds to its cell, in grid steps: marks * step^2 <= grid^2, exactly."""
    return math.isqrt(grid * grid // marks)


def counted(cells: Vector, *, length: int, grid: int) -> Clipped:
    """Return how many records have marked each cell, as multiples of `count_step`.

    Args:
        cells: int64, shape (n, marks), n >= 0: the cells that each record marks, below `length`; those of one record
            differ.
        length: d, how many cells there are.
        grid: s, the norm of one record's marks together, in grid steps.

    Raises:
        UsageError: shape, dtype or grid do not fit, or a record marks no cell, or one twice.

    **Guarantees** that `total` of any two data sets that differ by one record differ by an L2 norm of at most s: a
    record adds `step` to `marks` cells, whatever the others are, in integers throughout.
    """
    if cells.ndim != 2 or not cells.shape[1] or cells.dtype != np.int64:
        raise UsageError(f"Expected int64 cells of shape (n, marks), got {cells.dtype} {cells.shape}")
    step = count_step(cells.shape[1], grid)
    if not 1 <= step <= LARGEST_GRID:
        raise UsageError(f"Expected grid={grid} from sqrt({cells.shape[1]}) to 2^30")
    ordered = np.sort(cells, axis=1)
    if (np.diff(ordered, axis=1) == 0).any() or (cells < 0).any() or (cells >= length).any():
        raise UsageError(f"Expected different cells from 0 to {length - 1} for each record")
    total = np.bincount(cells.ravel(), minlength=length).astype(np.int64) * step
    return Clipped(total, grid, grid / step, 0)
