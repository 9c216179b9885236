"""Clipped sums of outer products, exact in integers at the speed of a matrix product.

The gradient of a linear layer is, for each record, residual x features: an outer product l r^T. Its norm is |l| |r|, so
it needs no vector of its own to be clipped, and it needs none to be rounded either: r is rounded once, l in every sum,
and the outer product of integer vectors is an integer vector. Then the sum over the records is one matrix product of
integers, which float64 computes without rounding as long as no sum of absolute values reaches 2^53.

    r -> a, integers with |a| <= s_r          l -> b, integers with |b| <= s / |a|, s = s_l s_r

    |b a^T| = |b| |a| <= s, so adding or removing one record moves the integer sum by at most s: its sensitivity,
    whatever the record, the others, their order, and however a library groups its additions.

    paper   here                            paper   here
    l       left: residuals, (k, n)         s_l     left_grid
    r       right: features, (n, d)         s_r     right_grid
    s       grid                            C       clip_norm
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.dp.mechanisms import LARGEST_GRID, Clipped, default_grid, to_grid
from confide.errors import UsageError

Matrix = NDArray[np.float64]

#: Sums of integers below it are exact in float64, in every order.
_EXACT = 2.0**52

_SMALLEST_NORM, _LARGEST_NORM = 1e-60, 1e60  # so that no factor between norms over- or underflows

_BLOCK_VALUES = 1 << 20  # rows are rounded in blocks of about this many values, to bound temporary memory
_SHRINK = 1 - 2.0**-40  # keeps the norm below s in spite of float64's rounding; the integers are checked all the same


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """Right vectors on their grid: private to their holder, like the records that they come from.

    Args:
        steps: whole numbers as float64, shape (n, d), each row of norm at most the grid.
        squares: their squared norms, exact, int64, shape (n,).
    """

    steps: Matrix = field(repr=False)
    squares: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSums:
    """Sums of l r^T over records, each of norm at most `clip_norm`.

    Args:
        rows: k, the length of a left vector.
        columns: d, the length of a right vector.
        right_norm: largest norm of a right vector; longer ones are scaled down to it.
        clip_norm: largest norm C of one record's outer product.
        finer: factor of both grids, a power of two, for right vectors much shorter than `right_norm`.

    Example:
        >>> import numpy as np
        >>> sums = OuterSums(rows=1, columns=2, right_norm=1.0, clip_norm=0.5)
        >>> right = sums.rounded(np.array([[0.6, 0.0], [0.0, 0.8]]))
        >>> total = sums.summed(np.array([[0.25, 100.0]]), right).total
        >>> (total * 0.5 / sums.grid).round(2)
        array([0.15, 0.5 ])
    """

    rows: int
    columns: int
    right_norm: float
    clip_norm: float
    finer: int = 1

    def __post_init__(self) -> None:
        for name, norm in (("right_norm", self.right_norm), ("clip_norm", self.clip_norm)):
            if not _SMALLEST_NORM <= norm <= _LARGEST_NORM:
                raise UsageError(f"Expected {name}={norm} from 1e-60 to 1e60; beyond, quotients leave float64's range")
        if min(self.rows, self.columns) < 1 or self.grid > LARGEST_GRID:
            raise UsageError(f"Expected from 1 to some 50,000 rows and columns, got {self.rows} and {self.columns}")

    @property
    def left_grid(self) -> int:
        """Return s_l: what one record loses to the rounding of its left vector is at most 1 %."""
        return self.finer * default_grid(self.rows)

    @property
    def right_grid(self) -> int:
        """Return s_r: the same for its right vector."""
        return self.finer * default_grid(self.columns)

    @property
    def grid(self) -> int:
        """Return s, integer steps for each clip norm and the sensitivity of the sum."""
        return self.left_grid * self.right_grid

    @property
    def length(self) -> int:
        """Return the length of a sum: rows times columns."""
        return self.rows * self.columns

    @property
    def step(self) -> float:
        """Return what one step of a right vector stands for."""
        return self.right_norm / self.right_grid

    def rounded(self, right: Matrix) -> Rounded:
        """Return right vectors on their grid, each from its record alone.

        Args:
            right: float64, shape (n, d); rows that hold NaN or infinity count as zero.
        """
        if right.ndim != 2 or right.shape[1] != self.columns or right.dtype != np.float64:
            raise UsageError(f"Expected float64 rows of length {self.columns}, got {right.dtype} {right.shape}")
        steps, squares = np.empty_like(right), np.empty(len(right), np.int64)
        block = max(1, _BLOCK_VALUES // self.columns)
        for start in range(0, len(right), block):
            integers, _ = to_grid(right[start : start + block], self.right_norm, self.right_grid)
            steps[start : start + block] = integers
            squares[start : start + block] = np.einsum("ij,ij->i", integers, integers)
        return Rounded(steps, squares)

    def summed(self, left: Matrix, right: Rounded) -> Clipped:
        """Return the sum over the records of l r^T, each clipped and on the grid.

        Args:
            left: float64, shape (k, n): one column for each record, from that record and public values alone; columns
                that hold NaN or infinity count as zero.
            right: from `rounded`, n rows.

        Returns:
            `total` in row-major order of (k, d).

        **Guarantees** that `total` of any two data sets that differ by one record differ by an L2 norm of at most s.
        """
        if left.shape != (self.rows, len(right.steps)) or left.dtype != np.float64:
            raise UsageError(f"Expected float64 columns, shape ({self.rows}, {len(right.steps)}), got {left.shape}")
        total = np.zeros((self.rows, self.columns), np.int64)
        ignored = 0
        block = max(1, int(_EXACT // self.grid))
        for start in range(0, len(right.steps), block):
            part = slice(start, start + block)
            whole, usable = self._left(left[:, part], right.squares[part])
            total += (whole @ right.steps[part]).astype(np.int64)
            ignored += whole.shape[1] - usable
        return Clipped(total.ravel(), self.grid, self.clip_norm, ignored)

    def _left(self, left: Matrix, squares: NDArray[np.int64]) -> tuple[Matrix, int]:
        """Return left vectors as whole numbers b with |b| |a| <= s, and how many were neither zero nor wild."""
        peak = np.abs(left).max(axis=0)
        usable = (peak > 0) & (peak < math.inf) & (squares > 0)  # False for NaN
        direction = np.where(usable, left, 0.0)
        direction /= np.where(usable, peak, 1.0)
        length = np.zeros(len(squares))
        for row in direction:  # in one order, whatever numpy would choose: a record's own
            length += row * row
        room = self.grid / np.sqrt(np.maximum(squares, 1)) - math.sqrt(self.rows) / 2
        steps = self.right_norm * self.left_grid / self.clip_norm  # of the left grid for each unit
        wanted = np.minimum(peak, self.grid / steps) * steps  # what is longer is cut to `room` anyway
        scale = np.minimum(wanted, room / np.sqrt(np.where(usable, length, 1.0))) * _SHRINK
        direction *= np.where(usable & np.isfinite(scale), scale, 0.0)
        whole = np.rint(direction, out=direction)
        integers = whole.astype(np.int64)
        norms = np.einsum("ij,ij->j", integers, integers)
        # never, by the margin; never again by these lines: the first is safe from overflow, the second is exact
        within = norms.astype(np.float64) * squares <= 2.0 * self.grid * self.grid
        within &= norms * np.where(within, squares, 0) <= self.grid * self.grid
        if not within.all():
            whole[:, ~within] = 0.0
        return whole, int(usable.sum())
